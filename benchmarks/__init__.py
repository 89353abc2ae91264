"""How fast this project trains, how its cost grows, and what memory it takes; see `__main__`."""
