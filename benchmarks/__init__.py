"""How fast this project trains, how that grows, and what memory it takes; see `__main__`."""
