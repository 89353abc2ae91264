"""Data frames as tables of text: headings, number formats, Markdown."""

import functools
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pandas.io.formats.style import Styler

from dlcvlib.plots.style import pair_name
from dlcvlib.utils import markdown


def to_markdown(shown: pd.DataFrame | Styler) -> str:
    """A pipe table in pandoc's Markdown."""
    text = as_text(shown)
    return markdown.table(text.to_numpy().tolist(), list(text.columns))


def as_text(shown: pd.DataFrame | Styler) -> pd.DataFrame:
    """A table as it is shown: its columns' headings, and every cell a string.

    Headings and formats are those of columns.yaml, by the columns' names, but for what a Styler
    formats, renames or hides. Negative numbers have a true minus.
    """
    styler = shown if isinstance(shown, Styler) else shown.style
    untouched = styler.data.style
    frame = flat(styler.data)
    from_index = len(frame.columns) - len(styler.data.columns)
    headings, columns = [], []
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
        texts = [text for row, text in enumerate(texts) if row not in styler.hidden_rows]
        columns.append(map(markdown.minus, texts))
    return pd.DataFrame(list(zip(*columns, strict=True)), columns=headings, dtype=str)


def _changed(
    styler: Styler, untouched: Styler, formats: str, place: tuple[int, int], value: Any
) -> str:
    """A cell as a Styler shows it; empty if it is as an untouched one would show it."""
    if _missing(value):
        return ""
    text = str(getattr(styler, formats)[place](value))
    return "" if text == str(getattr(untouched, formats)[place](value)) else text


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
