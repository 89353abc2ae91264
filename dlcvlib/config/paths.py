"""The project's folders; every other module takes them from here."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
