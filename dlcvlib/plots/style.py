"""Sizes, colours and names that all figures share, and the frame behind each."""

import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.textpath import TextPath
from noto_cjk_sans_otc import FONT_PATH

SHEET = mpl.rc_params_from_file(
    Path(__file__).with_name("report.mplstyle"), use_default_template=False
)
WIDTH = 7.0
"""Width of a full figure in inches."""
PIXEL_DPI = 200
"""Least resolution of a figure that holds pixels: twice that of the usual screen."""
CYCLE: list[str] = SHEET["axes.prop_cycle"].by_key()["color"]
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""
GREY, DARK = "#888888", "#222222"
"""Baselines and reference lines; the dots of single runs."""
SOURCE, TARGET = CYCLE[0], "#CC3311"
"""Blue and red, as in the original; they differ in lightness too."""
METHOD_COLORS = defaultdict(itertools.cycle([CYCLE[n] for n in (1, 5, 4)]).__next__, {
    "source only": "#CCCCCC", "AdaBN": "#999999", "target only": "#666666",
    "DANN": CYCLE[0], "PixelDA": CYCLE[2], "AdaMatch": CYCLE[3],
})  # fmt: skip
"""Further methods get what is left of the cycle, in their order in a notebook."""
CLASS_COLORS = (
    "#332288", "#CC6677", "#117733", "#DDAA33", "#88CCEE",
    "#882255", "#44AA99", "#666666", "#AA4499", "#999933",
)  # fmt: skip
"""Paul Tol's muted colours, which colour-blind readers can tell apart, with a darker grey."""

Drawn = TypeVar("Drawn", Figure, Axes)


def use() -> None:
    """Matplotlib's own defaults, whatever the user's matplotlibrc says, then the style sheet.

    The backend is not changed. Chinese, Japanese and Korean names are drawn in a font of their own.
    """
    mpl.rcdefaults()
    mpl.rcParams.update(SHEET)
    fontManager.addfont(str(FONT_PATH))
    # It has no bold weight, of which a line on every page would tell.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def with_values(drawn: Drawn, frame: pd.DataFrame) -> Drawn:
    """Keep the tidy frame behind a picture as `values` of its figure; returns the picture."""
    drawn.get_figure(root=True).values = frame
    return drawn


def text_width(lines: Iterable[str], size: float) -> float:
    """Width in inches of the longest of some lines of text, which may hold formulas, at a size."""
    paths = (TextPath((0, 0), line, size=size) for line in lines if line.strip())
    return max((path.get_extents().width for path in paths), default=0) / 72


def domain_name(name: str) -> str:
    """A domain as figures and tables show it: "mnistm" -> "MNIST-M"."""
    return {"usps": "USPS", "mnistm": "MNIST-M", "svhn": "SVHN"}.get(name, name)


def pair_name(text: str) -> str:
    """A pair, or each in a text, as figures and tables show it: "USPS → MNIST-M"."""
    return re.sub(r"(\w+)->(\w+)", lambda pair: " → ".join(map(domain_name, pair.groups())), text)
