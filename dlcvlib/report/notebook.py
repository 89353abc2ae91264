"""What a notebook needs of the report, in the kernel.

`begin` reads the parameters and has IPython show figures and data frames as the report wants them:
each exhibit (see `dlcvlib.report.exhibits`) carries, beside the picture or the table that
JupyterLab shows, a JSON payload under `MIME`:

    kind      "figure" | "table" | "summary" | "headline" | "values"
    csv       the values behind a figure, empty if it has none        (figure, summary)
    interactive  what the page shows to a pointer (see `dlcvlib.report.interactive`)  (figure)
    values    what is added to results.json under this notebook's key
    rows      of the main table                                              (headline)
    parameters  what `begin` has read, which must be what was asked            (values)
    runs      names of the training runs that this process has been handed so far
    seconds   by kind of work, since the payload before (see `dlcvlib.utils.stopwatch`)
"""

import base64
import io
import json
import re
import string
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from PIL import Image

from dlcvlib.config.schema import P, Parameters
from dlcvlib.plots import style
from dlcvlib.report import interactive, tables
from dlcvlib.report.exhibits import MIME, name_of, options
from dlcvlib.utils import markdown, stopwatch
from dlcvlib.utils.errors import UserError

RASTER_DPI = 300
"""Of dots that are too many for a vector picture, within one."""
NUMBER = re.compile(r'(?<=[ (="])-?\d+\.\d{3,}(?![\w.])')
INJECTED = "# Parameters"
"""The first line of the cell in which papermill sets parameters."""
ASSIGNED = re.compile(r"^([^\W\d]\w*)(?:: *[^=\n]+)? *=(?!=)", re.MULTILINE)
"""A name that a cell assigns at its top level."""

_cell: dict[str, Any] = {}
"""Options of the cell that runs now; its label only until an exhibit has been shown under it."""


def begin(cls: type[P], cells: Sequence[str]) -> P:
    """Read the parameters and set everything up; the second code cell of every notebook.

    It can be run again after the parameters' cell has been edited and run.

    Args:
        cls: the chapter's parameters.
        cells: the sources of all cells that have run, `In` in a notebook.

    Raises:
        UserError: if parameters are missing, unknown or out of range.
    """
    params = cls.parse(parameters(cls, cells), "parameters of this notebook")
    from dlcvlib.training import device  # loads torch, which `show_exhibits` alone does without

    show_exhibits()
    style.use()
    device.setup()
    display({MIME: _payload("values", {}, parameters=params.model_dump())}, raw=True)
    return params


def show_exhibits() -> None:
    """Have IPython show figures and data frames as the report needs them."""
    shell = get_ipython()
    shell.run_line_magic("matplotlib", "inline")  # whatever backend the environment names
    for kind in (Figure, Axes):
        shell.display_formatter.ipython_display_formatter.for_type(kind, _show_figure)
    for kind in (pd.DataFrame, Styler):
        shell.display_formatter.mimebundle_formatter.for_type(kind, _table_bundle)
    shell.events.register("pre_run_cell", _enter_cell)


def parameters(cls: type[Parameters], cells: Sequence[str]) -> dict[str, Any]:
    """What the parameters' cell has set, and papermill's after it: name -> value.

    The notebook's own cell assigns more than half of all parameters; the last such cell that was
    run counts, with what papermill has set after it. They are run by themselves, so that imports,
    start-up files and other cells neither hide nor add nor change a parameter.

    Raises:
        UserError: if there is no such cell, or papermill's comes before it.
    """
    fields = cls.model_fields

    def sets_most(cell: str) -> bool:
        return len(fields.keys() & ASSIGNED.findall(cell)) > len(fields) / 2

    setting = [cell for cell in cells if cell.startswith(INJECTED) or sets_most(cell)]
    own = [n for n, cell in enumerate(setting) if not cell.startswith(INJECTED)]
    if not own or own[0] > 0:
        raise UserError(
            f"the first cell that sets parameters ({cls.__name__}) must be the notebook's own: "
            f"tag it `parameters`, or papermill's comes before it ({INJECTED!r} begins papermill's)"
        )
    source = "\n".join(setting[own[-1] :])
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return {name: namespace[name] for name in ASSIGNED.findall(source)}


class _Prose(string.Formatter):
    """`str.format` for Markdown: text stands for itself, a number that is undefined is a dash.

    Negative numbers have a true minus, and powers of ten are written as such.
    """

    def format_field(self, value: Any, format_spec: str) -> str:
        text = super().format_field(value, format_spec)
        if text.strip("+-%") in {"nan", "inf"} and not isinstance(value, str):
            return "–"
        return markdown.typeset(markdown.escaped(text) if isinstance(value, str) else text)


def say(template: str, *values: Any) -> None:
    """Show prose computed from the results: Markdown, with values filled in as by `str.format`."""
    display(Markdown(_Prose().format(template, *values)))


def record(**values: Any) -> None:
    """Add values to results.json under this notebook's key; nothing is shown."""
    display({MIME: _payload("values", values)}, raw=True)


# --- how things are shown -----------------------------------------------------------------------


def _enter_cell(info: Any) -> None:
    _cell.clear()
    _cell.update(options(info.raw_cell))


def _label(kind: str) -> str:
    """The running cell's label, if it is of this kind and nothing has been shown under it yet."""
    return _cell.pop("label") if str(_cell.get("label", "")).startswith(kind) else ""


def _payload(kind: str, values: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    handed_out = getattr(sys.modules.get("dlcvlib.training.runs"), "handed_out", [])
    more |= {"kind": kind, "values": values, "runs": handed_out, "seconds": stopwatch.take()}
    return plain(more)


def _show_figure(shown: Figure | Axes) -> None:
    """Show a figure: as SVG if it holds only lines and points, as PNG if it holds pixels."""
    figure = shown if isinstance(shown, Figure) else shown.get_figure(root=True)
    label = _label("fig-")
    summary = "summary" in _cell.get("tags", [])
    data = _picture(figure, label) | {"text/plain": f"<{label or 'empty figure'}>"}
    plt.close(figure)  # or the inline backend would show it again
    if label or summary:
        values = getattr(figure, "values", None)
        csv = "" if values is None else values.to_csv(index=False)
        found = interactive.of_figure(figure)
        data[MIME] = _payload("summary" if summary else "figure", {}, csv=csv, interactive=found)
    display(data, raw=True)


def _picture(figure: Figure, salt: str) -> dict[str, str]:
    """A figure as a MIME bundle; the same figure gives the same bytes.

    JupyterLab shows no SVG of a notebook that was run elsewhere, but the PNG beside it.
    """
    if not figure.axes:
        return {}  # matplotlib shows nothing of it
    shown = {"image/png": print_figure(figure, dpi=max(figure.dpi, style.PIXEL_DPI), base64=True)}
    if any(axes.images for axes in figure.axes):
        return shown
    # The same salt in two pictures of one page could make their ids collide.
    with mpl.rc_context({"svg.hashsalt": salt}):
        options = {"metadata": {"Date": None}, "dpi": RASTER_DPI}
        svg = NUMBER.sub(_rounded, print_figure(figure, "svg", **options))
    return shown | {"image/svg+xml": re.sub(r"(?<=base64,)[^\"]+", _with_palette, svg)}


def _rounded(number: re.Match[str]) -> str:
    """A coordinate of an SVG to a hundredth of a point, a factor to four digits."""
    value = float(number[0])
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"


def _with_palette(encoded: re.Match[str]) -> str:
    """A PNG within an SVG, with 256 colours: dots have few, and take a quarter of the space."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded[0])))
    picture = picture.quantize(256, Image.Quantize.FASTOCTREE)
    picture.save(buffer := io.BytesIO(), "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _table_bundle(shown: pd.DataFrame | Styler) -> dict[str, Any]:
    """An exhibit as a MIME bundle; what is none is shown as pandas shows it."""
    frame = shown.data if isinstance(shown, Styler) else shown
    if "headline" in _cell.get("tags", []):
        return {MIME: _payload("headline", {}, rows=frame.to_dict("records"))}
    label = _label("tbl-")
    if not label:
        return {}
    return {
        "text/markdown": tables.to_markdown(shown),
        "text/plain": f"<{label}>",
        MIME: _payload("table", {name_of(label): tables.flat(frame).to_dict("list")}),
    }


def plain(value: Any) -> Any:
    """NumPy, torch and pandas values as what JSON knows; numbers that are not finite as None."""
    return json.loads(json.dumps(value, default=_listed), parse_constant=lambda _: None)


def _listed(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise TypeError(f"{type(value).__name__} does not belong into results.json")
    return value.tolist()
