"""How fast this project trains, against plain loops and against the machine; see `__main__`."""
