"""Text of others, such as a column's name or a folder's, in our Markdown."""

import re


def escaped(text: str) -> str:
    """Text on one line that stands for itself in pandoc's Markdown, in a table's cell too."""
    return " ".join(re.sub(r"([\\|*_`$<>\[\]^~#@])", r"\\\1", text).split())
