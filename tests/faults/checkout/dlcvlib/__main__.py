"""Says what is installed and, if there are options, where it was started with which."""

import importlib.metadata
import sys
from pathlib import Path

print("has", importlib.metadata.version("needed"))
if sys.argv[2:]:
    print(Path.cwd(), *sys.argv[1:])
