"""Data frames as tables of text: headings, number formats, groups of rows, bold cells, Markdown."""

import copy
import functools
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pandas.io.formats.style import Styler

from dlcvlib.plots.style import pair_name
from dlcvlib.utils import markdown

MISSING = "–"
BETWEEN = "\x1f"
"""Between the cells of a row: ASCII's unit separator, which no cell holds."""


BOLD = "font-weight", "bold"
"""What a Styler says of a cell that is shown in bold."""


def to_markdown(shown: pd.DataFrame | Styler) -> str:
    """A pipe table in pandoc's Markdown."""
    text = as_text(shown)
    return markdown.table(text.to_numpy().tolist(), list(text.columns), _bold(shown, text.shape[1]))


def as_text(shown: pd.DataFrame | Styler) -> pd.DataFrame:
    """A table as it is shown: its columns' headings, and every cell a string.

    Headings and formats are those of columns.yaml, by the columns' names, but for what a Styler
    formats, renames or hides. Negative numbers have a true minus. Where the index has several
    levels, rows are groups: a row leaves out what it shares with the row above.
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
        [o if o == MISSING or t == d else t for t, d, o in zip(*cells, strict=True)]
        for cells in zip(*map(_cells, (styler, default, ours)), strict=True)
    ]
    rows = [[pair_name(markdown.typeset(cell)) for cell in row] for row in rows]
    hidden = styler.export()["hide_index"]
    heads = styler.data.columns.nlevels + (any(styler.data.index.names) and not hidden)
    names = ["_".join(filter(None, parts)) for parts in zip(*rows[:heads], strict=True)]
    headings = [layout().get(name, {}).get("heading", _spaced(name)) for name in names]
    text = pd.DataFrame(rows[heads:], columns=headings, dtype=str)
    levels = 1 if hidden and styler is shown else shown.index.nlevels
    groups = text.iloc[:, : levels - 1]
    text.iloc[:, : levels - 1] = groups.mask((groups == groups.shift()).cummin(axis=1), "")
    return text


def best(
    shown: pd.DataFrame | Styler, *columns: str, lowest: bool = False, among: Any = True
) -> Styler:
    """A table with the best value of each of some columns in bold, of each group if it has groups.

    Args:
        shown: the table, or a Styler of it.
        columns: of numbers, or of text that begins with one, such as a mean with its deviation.
        lowest: the lowest value is the best one, not the highest.
        among: whether each row competes.
    """

    def style(values: pd.Series) -> np.ndarray:
        numbers = values.astype(str).str.extract(r"^([-+]?[\d.]+)", expand=False).astype(float)
        numbers = numbers.where(pd.Series(among, values.index))
        group = [0] * len(values) if values.index.nlevels == 1 else values.index.droplevel(-1)
        extreme = numbers.groupby(group).transform("min" if lowest else "max")
        return np.where(numbers == extreme, ": ".join(BOLD), "")

    return (shown if isinstance(shown, Styler) else shown.style).apply(style, subset=list(columns))


def by_pair(verdicts: pd.DataFrame, places: int = 2) -> Styler:
    """Claims on pairs, as from `significance.verdicts`: a row per claim and a column per pair.

    A cell is the mean difference with its 95% interval, bold if the claim is supported or
    contradicted.
    """

    def cell(row: Any) -> str:
        interval = f" [{row.low:+z.{places}f}, {row.high:+z.{places}f}]"
        return f"{row.difference:+z.{places}f}{'' if pd.isna(row.low) else interval}"

    cells = verdicts["claim"].str.extract(r"(?P<claim>.*?)(?:,| on) (?P<pair>\S+->\S+)$")
    cells["text"] = list(map(cell, verdicts.itertuples()))
    cells["bold"] = verdicts["verdict"].isin(["supported", "contradicted"])
    cells = cells.set_index(["claim", "pair"]).unstack(sort=False)
    bold = np.where(cells["bold"].eq(True), ": ".join(BOLD), "")
    return cells["text"].style.apply(lambda _: bold, axis=None)


def outcome(verdicts: pd.DataFrame, claim: str) -> str:
    """The verdicts on a claim in words, such as "supported on A → B, inconclusive on C → D"."""
    rows = verdicts[verdicts["claim"].str.startswith(claim)]
    pairs = rows["claim"].str.split().str[-1].map(pair_name)
    return ", ".join(
        f"{verdict} on {'all pairs' if len(some) == len(pairs) else ' and '.join(some)}"
        for verdict, some in pairs.groupby(rows["verdict"], sort=False)
    )


def _bold(shown: pd.DataFrame | Styler, columns: int) -> np.ndarray:
    """Which cells a Styler has in bold, of the table as text with so many columns."""
    if not isinstance(shown, Styler):
        return np.zeros((len(shown), columns), bool)
    shown._compute()  # no public method says which styles a cell gets
    cells = np.zeros(shown.data.shape, bool)
    for place, styles in shown.ctx.items():
        cells[place] = BOLD in styles
    cells = np.delete(np.delete(cells, shown.hidden_rows, 0), shown.hidden_columns, 1)
    return np.pad(cells, ((0, 0), (columns - cells.shape[1], 0)))


def _cells(styler: Styler) -> list[list[str]]:
    text = styler.to_string(sparse_index=False, sparse_columns=False, delimiter=BETWEEN)
    rows = [[cell.strip() for cell in line.split(BETWEEN)] for line in text.splitlines()]
    # pandas writes a delimiter after the last visible column if there are hidden ones behind it.
    return [row[:-1] for row in rows] if rows[0][-1] == "" else rows


def _spaced(name: str) -> str:
    """A column's name as its heading; domains, which a pair joins, keep their names."""
    return name if "→" in name else name.replace("_", " ")


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
        return str(value)
    if (format := layout().get(column, {}).get("format")) is None:
        format = ",.0f" if isinstance(value, Integral) or abs(value) >= 1000 else ".3g"
    return f"{value:{format}}"
