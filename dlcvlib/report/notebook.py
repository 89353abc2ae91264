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
import contextlib
import functools
import importlib
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from dlcvlib.config.schema import Parameters
from dlcvlib.plots.style import pair_name
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
    for module, function in (("plots.style", "use"), ("training.device", "setup")):
        _call(f"dlcvlib.{module}", function)
    if shell := get_ipython():
        formatter = shell.display_formatter
        for kind in (Figure, Axes):
            formatter.ipython_display_formatter.for_type(kind, _show_figure)
        for kind in (pd.DataFrame, Styler):
            formatter.mimebundle_formatter.for_type(kind, _table_bundle)
        shell.events.register("pre_run_cell", _enter_cell)
        shell.events.register("post_run_cell", _leave_cell)
    return params


def _call(module: str, function: str) -> None:
    """Call a function that may not be there yet."""
    with contextlib.suppress(ModuleNotFoundError):
        getattr(importlib.import_module(module), function, lambda: None)()


def parameters(cls: type[Parameters], cells: Sequence[str]) -> dict[str, Any]:
    """What the parameters' cell has set, and papermill's after it: name -> value.

    Their sources are run by themselves, so that imports, start-up files and other cells neither
    hide nor add nor change a parameter.

    Raises:
        UserError: if there is no such cell, or papermill's comes before it.
    """
    defaults = [n for n, cell in enumerate(cells) if _sets_parameters(cls, cell)]
    injected = [n for n, cell in enumerate(cells) if cell.startswith(INJECTED)]
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


def _sets_parameters(cls: type[Parameters], source: str) -> bool:
    """Whether a cell assigns, with annotations, more than half of all parameters."""
    names = cls.model_fields.keys() & _assigned(source, annotated=True)
    return len(names) > len(cls.model_fields) / 2


def _assigned(source: str, annotated: bool = False) -> list[str]:
    """Public names that a cell assigns at its top level."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return []
    targets = [s.target for s in statements if isinstance(s, ast.AnnAssign)]
    if not annotated:
        targets += [t for s in statements if isinstance(s, ast.Assign) for t in s.targets]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def say(template: str, *values: Any) -> None:
    """Show prose computed from the results: Markdown, with values filled in by `str.format`.

    Text among the values stands for itself: nothing in it is markup.
    """
    filled = [markdown.escaped(value) if isinstance(value, str) else value for value in values]
    display(Markdown(template.format(*filled)))


def record(**values: Any) -> None:
    """Add values to results.json under this notebook's key; nothing is shown."""
    display({MIME: _payload("values", values=values)}, raw=True)


# --- how things are shown -----------------------------------------------------------------------


def _enter_cell(info: Any) -> None:
    _cell.clear()
    try:
        _cell.update(options(info.raw_cell), source=info.raw_cell)
    except UserError as error:
        print(f"this cell: {error}", file=sys.stderr)


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


def _payload(kind: str, *, values: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    handed_out = getattr(sys.modules.get("dlcvlib.training.runs"), "handed_out", [])
    runs = [name for name in dict.fromkeys(handed_out) if name not in _reported]
    _reported.update(runs)
    return {
        "kind": kind,
        "values": plain(values or {}),
        "runs": runs,
        "seconds": stopwatch.take(),
        **more,
    }


def _show_figure(shown: Figure | Axes) -> None:
    """Show a figure: as SVG if it holds only lines and points, as PNG if it holds pixels."""
    figure = shown if isinstance(shown, Figure) else shown.get_figure(root=True)
    label = _label("fig-")
    data = _picture(figure, label or _cell.get("source", ""))
    plt.close(figure)  # or the inline backend would show it again
    if label:
        values = getattr(figure, "values", None)
        csv = "" if values is None else values.to_csv(index=False)
        data[MIME] = _payload("figure", csv=csv)
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
    """A table as a MIME bundle; one that is no exhibit keeps the HTML that pandas gives it."""
    if isinstance(shown, pd.DataFrame) and "headline" in _cell.get("tags", []):
        text = as_text(shown)
        names = [str(name) for name in shown]
        rows = [dict(zip(names, row, strict=True)) for row in text.rows]
        return {"text/markdown": markdown.table(*text), MIME: _payload("headline", rows=rows)}
    if label := _label("tbl-"):
        text = as_text(shown)
        html = pd.DataFrame(text.rows, columns=text.headings)
        frame = flat(shown.data if isinstance(shown, Styler) else shown)
        return {
            "text/html": html.to_html(index=False, escape=True, border=0),
            "text/markdown": markdown.table(*text),
            "text/plain": f"<{label}>",
            MIME: _payload("table", values={name_of(label): frame.to_dict("list")}),
        }
    most = pd.get_option("display.max_rows")
    if isinstance(shown, Styler) or len(shown) <= most:
        return {"text/markdown": markdown.table(*as_text(shown))}
    table = markdown.table(*as_text(shown.head(most)))
    return {"text/markdown": f"{table}\n\nThe first {most} of {len(shown):,} rows."}


# --- tables as text -----------------------------------------------------------------------------


class Text(NamedTuple):
    """A table as text: headings, rows of cells, and which columns are aligned to the right."""

    headings: list[str]
    rows: list[list[str]]
    right: list[bool]


def as_text(shown: pd.DataFrame | Styler) -> Text:
    """A table as it is shown.

    Headings and formats are those of columns.yaml, by the columns' names, but for what a Styler
    formats, renames or hides.
    """
    styler = shown if isinstance(shown, Styler) else shown.style
    untouched = styler.data.style
    frame = flat(styler.data)
    from_index = len(frame.columns) - len(styler.data.columns)
    headings, columns, right = [], [], []
    for place, name in enumerate(frame):
        n = place - from_index
        if n in styler.hidden_columns or (n < 0 and all(styler.hide_index_)):
            continue
        known = layout().get(name, {})
        heading = known.get("heading", name.replace("_", " "))
        values = frame.iloc[:, place].tolist()
        texts = [_text(value, known.get("format")) for value in values]
        if n >= 0:
            # Styler has no public method that tells what it was asked for: what it shows in
            # another way than an untouched one was.
            heading = _changed(styler, untouched, "_display_funcs_columns", (0, n), name) or heading
            texts = [
                _changed(styler, untouched, "_display_funcs", (row, n), value) or text
                for row, (value, text) in enumerate(zip(values, texts, strict=True))
            ]
        headings.append(heading)
        columns.append([text for row, text in enumerate(texts) if row not in styler.hidden_rows])
        right.append(pd.api.types.is_numeric_dtype(frame.iloc[:, place]))
    return Text(headings, [list(row) for row in zip(*columns, strict=True)], right)


def _changed(
    styler: Styler, untouched: Styler, formats: str, place: tuple[int, int], value: Any
) -> str:
    """A cell as a Styler shows it; empty if it is as an untouched one would show it."""
    text = getattr(styler, formats)[place](value)
    return "" if _missing(value) or text == getattr(untouched, formats)[place](value) else text


def flat(frame: pd.DataFrame) -> pd.DataFrame:
    """A data frame whose index, if it says anything, is columns, and whose columns are strings."""
    numbered = frame.index.names == [None] and pd.api.types.is_integer_dtype(frame.index)
    frame = frame.copy() if numbered else frame.reset_index()
    frame.columns = [
        "_".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)
        for name in frame.columns
    ]
    return frame


@functools.cache
def layout() -> dict[str, dict[str, str]]:
    """Heading and format of a table's columns: name -> {"heading": …, "format": …}."""
    return yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text(encoding="utf-8"))


def _text(value: Any, format: str | None) -> str:
    """A cell as text: numbers by their format, pairs by their name, missing ones as an en dash."""
    if _missing(value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return pair_name(str(value))
    if format is None:
        format = ",.0f" if isinstance(value, int) or abs(value) >= 1000 else ".3g"
    return f"{value:{format}}"


def _missing(value: Any) -> bool:
    return pd.api.types.is_scalar(value) and pd.isna(value)


def plain(value: Any) -> Any:
    """NumPy, torch and pandas values as what JSON knows; numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} does not belong into results.json")
