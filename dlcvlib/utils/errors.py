"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can put right: the message names the file or field and what to do."""
