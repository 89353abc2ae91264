"""Image lists: the CSV files of the homework's layout.

`image_name`, and columns of small integers: attributes of 0 and 1, or a label.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dlcvlib.utils.errors import UserError


def read_attributes(path: Path, folder: Path) -> pd.DataFrame:
    """A list of faces: `image_name`, and columns of 0 and 1 as uint8.

    Raises:
        UserError: if the list or a column is malformed, or names a file that is not in `folder`.
    """
    table = _read(path, folder)
    for name in table.columns.drop("image_name"):
        table[name] = _integers(path, table[name], 1, "attribute")
    return table


def read_labels(path: Path, folder: Path) -> pd.DataFrame:
    """A list of digits: `image_name`, and `label` from 0 to 9 as uint8; other columns are dropped.

    Raises:
        UserError: as `read_attributes`, and if there is no column `label`.
    """
    table = _read(path, folder)
    if "label" not in table:
        raise UserError(f"{path} has no column 'label' (it has: {', '.join(table)})")
    return table.assign(label=_integers(path, table["label"], 9, "column"))[["image_name", "label"]]


def _integers(path: Path, column: pd.Series, highest: int, what: str) -> pd.Series:
    """A column as uint8, each value from 0 to the highest."""
    numbers = pd.to_numeric(column, errors="coerce")
    if not (valid := numbers.isin(range(highest + 1))).all():
        line = int((~valid).idxmax())
        allowed = "0 or 1" if highest == 1 else f"a whole number from 0 to {highest}"
        raise UserError(
            f"{path}, line {line + 2}: {what} {column.name!r} is '{column[line]}', not {allowed}"
        )
    return numbers.astype(np.uint8)


def _read(path: Path, folder: Path) -> pd.DataFrame:
    """An image list whose names are checked against `folder`; the index gives the line."""
    try:
        # Blank lines are dropped here, not by pandas, so that the index gives the line.
        table = pd.read_csv(
            path, dtype={"image_name": str}, skipinitialspace=True, skip_blank_lines=False
        )
    except (OSError, ValueError) as error:
        why = str(error)
        if isinstance(error, FileNotFoundError):
            why = "there is no such file"
        elif isinstance(error, UnicodeDecodeError):
            why = f"{error}; save it as UTF-8"
        raise UserError(f"cannot read {path}: {why}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: its first line has more fields than the header has names")
    table = table.dropna(how="all")
    if "image_name" not in table:
        raise UserError(
            f"{path} has no column 'image_name' (it has: {', '.join(table)}); its first line names "
            "the columns, with commas between them"
        )
    if table.empty:
        raise UserError(f"{path} lists no images")
    names = table["image_name"].fillna("")
    try:
        # As strings: a hundred thousand Path objects would take a hundred MB.
        inside, files = folder.resolve(), names.map(lambda name: str((folder / name).resolve()))
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        raise UserError(f"{path} names an impossible file: {str(error)[:100]}") from None
    if strays := names[[not Path(file).is_relative_to(inside) for file in files]].tolist():
        raise UserError(f"{path} names files outside of {folder}: {_some(strays)}")
    if repeated := names[files.duplicated()].unique().tolist():
        raise UserError(f"{path} lists images twice: {_some(repeated)}")
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{path} names files that are not in {folder}: {_some(absent)}")
    return table


def _some(names: Sequence[str]) -> str:
    rest = len(names) - 3
    return ", ".join(map(repr, names[:3])) + (f" and {rest:,} more" if rest > 0 else "")
