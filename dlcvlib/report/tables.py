"""Data frames as tables of text: headings, number formats, Markdown."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dlcvlib.plots.style import pair_name
from dlcvlib.utils import markdown


@dataclass(frozen=True)
class Table:
    """A data frame that is shown in another way than columns.yaml has it.

    Attributes:
        formats: column -> its cells' format, such as "+.3f", or a function that gives the text.
        headings: column -> heading.
        hidden: columns that only results.json has.
    """

    frame: pd.DataFrame
    formats: Mapping[str, str | Callable[[Any], str]] = field(default_factory=dict)
    headings: Mapping[str, str] = field(default_factory=dict)
    hidden: Sequence[str] = ()

    def as_text(self) -> pd.DataFrame:
        """The table as it is shown: its columns' headings, and every cell a string.

        Negative numbers have a true minus.
        """
        texts, headings = {}, {}
        for name, values in flat(self.frame).drop(columns=list(self.hidden)).items():
            known = layout().get(name, {})
            format = self.formats.get(name, known.get("format"))
            texts[name] = [markdown.minus(_text(value, format)) for value in values.tolist()]
            headings[name] = known.get("heading", str(name).replace("_", " "))
        return pd.DataFrame(texts, dtype=str).rename(columns=headings | self.headings)

    def to_markdown(self) -> str:
        """A pipe table in pandoc's Markdown."""
        text = self.as_text()
        return markdown.table(text.to_numpy().tolist(), list(text.columns))


def flat(frame: pd.DataFrame) -> pd.DataFrame:
    """A data frame whose index, if it says anything, is columns."""
    numbered = frame.index.names == [None] and pd.api.types.is_integer_dtype(frame.index)
    return frame if numbered else frame.reset_index()


@functools.cache
def layout() -> dict[str, dict[str, str]]:
    """Heading and format of a table's columns: name -> {"heading": …, "format": …}."""
    return yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text(encoding="utf-8"))


def _text(value: Any, format: str | Callable[[Any], str] | None) -> str:
    """A cell as text: numbers by their format, pairs by their name, missing ones as an en dash."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    if callable(format):
        return format(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return pair_name(str(value))
    if format is None:
        format = ",.0f" if isinstance(value, int) or abs(value) >= 1000 else ".3g"
    return f"{value:{format}}"
