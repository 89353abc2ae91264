"""The project's folders; every other module takes them from here."""

from dlcvlib.utils.environment import ROOT

PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
