"""The methods of domain adaptation, one a line, in the order of tables and figures."""

# ruff: noqa: F401, I001 - the imports are the list
from dlcvlib.methods.dann import DANN
from dlcvlib.methods.pixelda import PixelDA
from dlcvlib.methods.adamatch import AdaMatch
