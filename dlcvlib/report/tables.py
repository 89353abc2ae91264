"""Data frames as tables of text: headings, number formats, Markdown."""

import copy
import functools
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pandas.io.formats.style import Styler

from dlcvlib.plots.style import pair_name
from dlcvlib.utils import markdown

MISSING = "–"
BETWEEN = "\x1f"
"""Between the cells of a row: ASCII's unit separator, which no cell holds."""


def to_markdown(shown: pd.DataFrame | Styler) -> str:
    """A pipe table in pandoc's Markdown."""
    text = as_text(shown)
    return markdown.table(text.to_numpy().tolist(), list(text.columns))


def as_text(shown: pd.DataFrame | Styler) -> pd.DataFrame:
    """A table as it is shown: its columns' headings, and every cell a string.

    Headings and formats are those of columns.yaml, by the columns' names, but for what a Styler
    formats, renames or hides. Negative numbers have a true minus.
    """
    styler = shown if isinstance(shown, Styler) else flat(shown).style
    styler.hide(axis="columns", names=True)
    if _is_numbered(styler.data):
        styler.hide(axis="index")
    # What a Styler shows in another way than pandas would by itself, it was asked to; it writes a
    # missing value by the format of its column, as "+nan%".
    formats = {name: functools.partial(_text, name) for name in styler.columns}
    default, ours = (copy.deepcopy(styler).format(one) for one in (None, formats))
    rows = [
        [markdown.minus(o if o == MISSING or t == d else t) for t, d, o in zip(*cells, strict=True)]
        for cells in zip(*map(_cells, (styler, default, ours)), strict=True)
    ]
    named = any(styler.data.index.names) and not styler.export()["hide_index"]
    heads = styler.data.columns.nlevels + named
    names = ["_".join(filter(None, parts)) for parts in zip(*rows[:heads], strict=True)]
    headings = [layout().get(name, {}).get("heading", name.replace("_", " ")) for name in names]
    return pd.DataFrame(rows[heads:], columns=headings, dtype=str)


def _cells(styler: Styler) -> list[list[str]]:
    text = styler.to_string(sparse_index=False, sparse_columns=False, delimiter=BETWEEN)
    rows = [[cell.strip() for cell in line.split(BETWEEN)] for line in text.splitlines()]
    # pandas writes a delimiter after the last visible column if there are hidden ones behind it.
    return [row[:-1] for row in rows] if rows[0][-1] == "" else rows


def flat(frame: pd.DataFrame) -> pd.DataFrame:
    """A data frame whose index, if it says anything, is columns, and whose columns are strings."""
    frame = frame.copy() if _is_numbered(frame) else frame.reset_index()
    names = (name if isinstance(name, tuple) else (name,) for name in frame.columns)
    frame.columns = ["_".join(str(part) for part in name if part != "") for name in names]
    return frame


def _is_numbered(frame: pd.DataFrame) -> bool:
    return frame.index.names == [None] and pd.api.types.is_integer_dtype(frame.index)


@functools.cache
def layout() -> dict[str, dict[str, str]]:
    """Heading and format of a table's columns: name -> {"heading": …, "format": …}."""
    return yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text(encoding="utf-8"))


def _text(column: Any, value: Any) -> str:
    """A cell as text: numbers by their format, pairs by their name, missing ones as an en dash."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, Real):
        return pair_name(str(value))
    if (format := layout().get(column, {}).get("format")) is None:
        format = ",.0f" if isinstance(value, Integral) or abs(value) >= 1000 else ".3g"
    return f"{value:{format}}"
