"""The project's folders; every other module takes them from here."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"


def absolute(path: str, folder: Path | str = "") -> str:
    """A path relative to a folder, by default the working directory; `~` is the home directory."""
    # os.path leaves a "~name" of nobody as it is, where Path.expanduser raises.
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))  # noqa: PTH100, PTH111, PTH118
