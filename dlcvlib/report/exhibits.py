"""What a notebook shows: numbered figures and tables, computed prose, values for `results.json`.

A `Page` puts everything into the cell's outputs, so that the executed notebook alone holds what
the report needs: each exhibit carries, beside the picture or the HTML that JupyterLab shows, a
JSON payload under `MIME` that `dlcvlib.report` reads:

    kind      "figure" | "table" | "prose" | "abstract" | "headline"
    name      the exhibit's name within its notebook, for example "reconstructions"
    label     its number, for example "Figure 1-3.1"
    caption   Markdown
    alt       what a picture shows, for a reader who cannot see it             (figures)
    csv       the values behind it                                            (figures)
    text      Markdown                                                        (prose, abstract)
    runs      names of the training runs it came from
    values    what it adds to results.json under this notebook's key
    seconds   by kind of work, since the exhibit before it (see `dlcvlib.stopwatch`)
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from dlcvlib.utils import stopwatch
from dlcvlib.utils.markdown import escaped

MIME = "application/vnd.dlcv.v1+json"
PIXEL_DPI = 200
"""Pictures made of pixels are drawn at twice the screen's usual 100 dots per inch."""


class HasName(Protocol):
    """A training run, as far as a caption is concerned."""

    @property
    def name(self) -> str: ...


class Page:
    """The exhibits of one notebook, numbered as they come.

    Args:
        notebook: the problem's number, such as "1-3"; it prefixes every label.
    """

    def __init__(self, notebook: str) -> None:
        self.notebook = notebook
        self._numbers: dict[tuple[str, str], int] = {}

    def _label(self, kind: str, name: str) -> str:
        """Number a figure or table; a cell that is run again keeps its number."""
        known = [key for key in self._numbers if key[0] == kind]
        number = self._numbers.setdefault((kind, name), len(known) + 1)
        return f"{kind} {self.notebook}.{number}"

    def figure(
        self,
        figure: Figure,
        name: str,
        caption: str,
        *,
        alt: str,
        data: pd.DataFrame,
        runs: Sequence[HasName] = (),
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Show a figure: as SVG if it is lines and points, as PNG if it holds pixels.

        Args:
            figure: the figure; it is closed, so that the inline backend does not show it again.
            name: its name within the notebook; also the name of its CSV.
            caption: Markdown, one or two sentences.
            alt: what a reader who cannot see the picture should know.
            data: the values behind the picture.
            runs: the training runs that it came from.
            values: additions to `results.json`.
        """
        label = self._label("Figure", name)
        payload = {
            "kind": "figure",
            "name": name,
            "label": label,
            "caption": caption,
            "alt": alt,
            "csv": data.to_csv(index=False),
            "runs": _names(runs),
            "values": plain(values or {}),
        }
        self._display(_picture(figure, label), payload)
        display(Markdown(f"**{label}.** {caption}"), metadata={"dlcv": "caption"})

    def table(
        self,
        frame: pd.DataFrame,
        name: str,
        caption: str,
        *,
        labels: Mapping[str, str] | None = None,
        formats: Mapping[str, str] | None = None,
        runs: Sequence[HasName] = (),
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Show a table; its columns go to `results.json` under `name`, unrounded.

        Args:
            frame: one row a line; column names are the keys in `results.json`.
            name: the table's name within the notebook.
            caption: Markdown.
            labels: column name -> heading with its unit.
            formats: column name -> format specification, such as ".4f".
            runs: the training runs that it came from.
            values: further additions to `results.json`, beside the columns.
        """
        label = self._label("Table", name)
        shown = _formatted(frame, formats or {}).rename(columns=dict(labels or {}))
        numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame]
        payload = {
            "kind": "table",
            "name": name,
            "label": label,
            "caption": caption,
            "runs": _names(runs),
            "values": plain({name: frame.to_dict("list")} | dict(values or {})),
        }
        data = {"text/html": _html(shown), "text/markdown": markdown_table(shown, numeric)}
        display(Markdown(f"**{label}.** {caption}"), metadata={"dlcv": "caption"})
        self._display(data, payload)

    def say(self, text: str, *, values: Mapping[str, Any] | None = None) -> None:
        """Prose computed from the results, as Markdown."""
        payload = {"kind": "prose", "text": text, "values": plain(values or {})}
        self._display({"text/markdown": text}, payload)

    def abstract(self, text: str) -> None:
        """A sentence or two for the report's first page; shown here too, as the notebook's gist."""
        payload = {"kind": "abstract", "text": text, "values": {}}
        self._display({"text/markdown": f"*In short:* {text}"}, payload)

    def headline(
        self, quantity: str, ours: float, original: float | None, *, format: str, data: str
    ) -> None:
        """A row of the report's main table: what was measured, ours, the original's, on what."""
        row = {
            "quantity": quantity,
            "ours": f"{ours:{format}}",
            "original": "" if original is None else f"{original:{format}}",
            "data": data,
        }
        text = f"{quantity}: {row['ours']}" + (
            f" (original: {row['original']})" if row["original"] else ""
        )
        payload = {"kind": "headline", "row": row, "values": {}}
        self._display({"text/markdown": text}, payload)

    @staticmethod
    def _display(data: dict[str, str], payload: dict[str, Any]) -> None:
        text = payload.get("label") or payload["kind"]
        payload["seconds"] = stopwatch.take()
        display({**data, MIME: payload, "text/plain": f"<{text}>"}, raw=True)


def _names(runs: Sequence[HasName]) -> list[str]:
    return list(dict.fromkeys(run.name for run in runs))


def _picture(figure: Figure, salt: str) -> dict[str, str]:
    """The figure as a MIME bundle; the same figure gives the same bytes."""
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    pixels = any(axes.images for axes in figure.axes)
    with mpl.rc_context({"svg.hashsalt": salt}):
        if pixels:
            figure.savefig(buffer, format="png", dpi=PIXEL_DPI, bbox_inches="tight")
        else:
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    if pixels:
        return {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    return {"image/svg+xml": buffer.getvalue().decode()}


def _formatted(frame: pd.DataFrame, formats: Mapping[str, str]) -> pd.DataFrame:
    """Every cell as text: numbers by their format, missing ones as an en dash."""

    def text(value: Any, format: str) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "–"
        return f"{value:{format}}" if not isinstance(value, str) else value

    columns = {name: [text(v, formats.get(name, "")) for v in frame[name]] for name in frame}
    return pd.DataFrame(columns, columns=list(frame.columns))


def _html(shown: pd.DataFrame) -> str:
    return shown.to_html(index=False, escape=True, border=0)


def markdown_table(shown: pd.DataFrame, numeric: Sequence[bool]) -> str:
    """A pipe table of text; pandoc takes the columns' widths from the rule if a line is long.

    Args:
        shown: cells as text.
        numeric: which columns stand to the right.
    """
    # A long column is worth no more than 45: the short ones keep room for their longest word.
    lengths = [
        3 + min(45, max([len(str(name)), *(len(str(v)) for v in shown[name])])) for name in shown
    ]
    rules = [
        "-" * length + ":" if right else ":" + "-" * length
        for length, right in zip(lengths, numeric, strict=True)
    ]
    lines = ["| " + " | ".join(escaped(str(name)) for name in shown.columns) + " |"]
    lines.append("|" + "|".join(rules) + "|")
    lines += ["| " + " | ".join(escaped(str(v)) for v in row) + " |" for row in shown.to_numpy()]
    return "\n".join(lines)


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
