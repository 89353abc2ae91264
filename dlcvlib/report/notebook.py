"""What a notebook needs of the report, in the kernel.

`begin` reads the parameters and has IPython show figures and data frames as the report wants them:
each exhibit (see `dlcvlib.report.exhibits`) carries, beside the picture or the table that
JupyterLab shows, a JSON payload under `MIME`:

    kind      "figure" | "table" | "headline" | "values"
    csv       the values behind a figure, empty if it has none
    values    what is added to results.json under this notebook's key
    rows      of the main table                                              (headline)
    runs      names of the training runs that this process was handed since the payload before
    seconds   by kind of work, since the payload before (see `dlcvlib.utils.stopwatch`)
"""

import ast
import base64
import io
import json
import string
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import matplotlib as mpl
import pandas as pd
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from dlcvlib.config.schema import Parameters
from dlcvlib.plots import style
from dlcvlib.report import tables
from dlcvlib.report.exhibits import MIME, name_of, options
from dlcvlib.utils import markdown, stopwatch
from dlcvlib.utils.errors import UserError

PIXEL_DPI = 200
"""Pictures made of pixels are drawn at twice the screen's usual 100 dots per inch."""
INJECTED = "# Parameters"
"""The first line of the cell in which papermill sets parameters."""

P = TypeVar("P", bound=Parameters)

_cell: dict[str, Any] = {}
"""Options of the cell that runs now."""
_reported: set[str] = set()
"""Runs that a payload has named."""


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

    style.use()
    device.setup()
    show_exhibits()
    return params


def show_exhibits() -> None:
    """Have IPython show figures and data frames as the report needs them."""
    shell = get_ipython()
    for kind in (Figure, Axes):
        shell.display_formatter.ipython_display_formatter.for_type(kind, _show_figure)
    for kind in (pd.DataFrame, Styler):
        shell.display_formatter.mimebundle_formatter.for_type(kind, _table_bundle)
    shell.events.register("pre_run_cell", _enter_cell)
    shell.events.register("post_run_cell", _leave_cell)


def parameters(cls: type[Parameters], cells: Sequence[str]) -> dict[str, Any]:
    """What the parameters' cell has set, and papermill's after it: name -> value.

    The parameters' cell is the last that assigns more than half of all parameters. The sources are
    run by themselves, so that imports, start-up files and other cells neither hide nor add nor
    change a parameter.

    Raises:
        UserError: if there is no such cell, or papermill's comes before it.
    """
    fields = cls.model_fields
    injected = [n for n, cell in enumerate(cells) if cell.startswith(INJECTED)]
    defaults = [
        n
        for n, cell in enumerate(cells)
        if n not in injected and len(fields.keys() & _assigned(cell)) > len(fields) / 2
    ]
    if not defaults:
        raise UserError(f"no cell of this notebook sets the parameters ({cls.__name__})")
    if injected and injected[0] < defaults[0]:
        raise UserError(
            "papermill's parameters come before the notebook's own, which override them: "
            "tag the cell that sets them `parameters`"
        )
    namespace: dict[str, Any] = {}
    # The parameters' cell as it was run last; what papermill has injected before is overridden.
    chosen = [cells[n] for n in [defaults[-1], *(n for n in injected if n > defaults[-1])]]
    for source in chosen:
        exec(source, namespace)
    return {name: namespace[name] for source in chosen for name in _assigned(source)}


def _assigned(source: str) -> list[str]:
    """Public names that a cell assigns at its top level."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return []
    targets = [s.target for s in statements if isinstance(s, ast.AnnAssign)]
    targets += [target for s in statements if isinstance(s, ast.Assign) for target in s.targets]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


class _Prose(string.Formatter):
    """`str.format` for Markdown: text stands for itself, negative numbers have a true minus."""

    def format_field(self, value: Any, format_spec: str) -> str:
        text = super().format_field(value, format_spec)
        return markdown.minus(markdown.escaped(text) if isinstance(value, str) else text)


def say(template: str, *values: Any) -> None:
    """Show prose computed from the results: Markdown, with values filled in as by `str.format`."""
    display(Markdown(_Prose().format(template, *values)))


def record(**values: Any) -> None:
    """Add values to results.json under this notebook's key; nothing is shown."""
    display({MIME: _payload("values", values)}, raw=True)


# --- how things are shown -----------------------------------------------------------------------


def _enter_cell(info: Any) -> None:
    _cell.clear()
    _cell.update(options(info.raw_cell), source=info.raw_cell)


def _leave_cell(_: Any) -> None:
    # What a widget shows later, on a click, is no exhibit.
    _cell.clear()


def _label(kind: str) -> str:
    """The running cell's label, if it is of this kind and nothing has been shown under it yet."""
    label = str(_cell.get("label", ""))
    if not label.startswith(kind):
        return ""
    del _cell["label"]
    return label


def _payload(kind: str, values: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    handed_out = getattr(sys.modules.get("dlcvlib.training.runs"), "handed_out", [])
    runs = [name for name in dict.fromkeys(handed_out) if name not in _reported]
    _reported.update(runs)
    more |= {"values": plain(values), "runs": runs, "seconds": stopwatch.take()}
    return {"kind": kind} | more


def _show_figure(shown: Figure | Axes) -> None:
    """Show a figure: as SVG if it holds only lines and points, as PNG if it holds pixels."""
    figure = shown if isinstance(shown, Figure) else shown.get_figure(root=True)
    label = _label("fig-")
    data = _picture(figure, label or _cell.get("source", ""))
    plt.close(figure)  # or the inline backend would show it again
    if label:
        values = getattr(figure, "values", None)
        csv = "" if values is None else values.to_csv(index=False)
        data[MIME] = _payload("figure", {}, csv=csv)
    display(data | {"text/plain": f"<{label or 'figure'}>"}, raw=True)


def _picture(figure: Figure, salt: str) -> dict[str, Any]:
    """A figure as a MIME bundle; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    if any(axes.images for axes in figure.axes):
        figure.savefig(buffer, format="png", dpi=PIXEL_DPI, bbox_inches="tight")
        return {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    # The same salt in two pictures of one page could make their ids collide.
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return {"image/svg+xml": buffer.getvalue().decode()}


def _table_bundle(shown: pd.DataFrame | Styler) -> dict[str, Any]:
    """An exhibit as a MIME bundle; what is none is shown as pandas shows it."""
    headline = "headline" in _cell.get("tags", [])
    label = "" if headline else _label("tbl-")
    if not (headline or label):
        return {}
    frame, text = (shown.data if isinstance(shown, Styler) else shown), tables.as_text(shown)
    if headline:
        rows = text.set_axis(list(frame), axis="columns").to_dict("records")
        return {MIME: _payload("headline", {}, rows=rows)}
    return {
        "text/html": text.to_html(index=False, escape=True, border=0),
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
