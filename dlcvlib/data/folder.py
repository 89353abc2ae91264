"""Folders in the homework's layout: `{train,test}/*.png`, and beside them `{train,test}.csv`.

A list has a column `image_name`, and columns of small integers: attributes of 0 and 1, or a label.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dlcvlib.data.decode import Source, decode_file
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError


def source(
    root: Path, place: str, side: int, limit: int, values: range, columns: Sequence[str] = ()
) -> Source:
    """The images of a folder and of its lists.

    Args:
        root: of the data.
        place: folder under `root`, such as "face".
        side: height and width of the prepared images.
        limit: maximum number of images per split; 0: all.
        values: as `read_list`.
        columns: as `read_list`.

    Raises:
        UserError: as `read_list`, if the lists share no column, or if a file cannot be read.
    """
    folder, tables, notes = root / place, [], []
    for split in ("train", "test"):
        table = read_list(folder / f"{split}.csv", folder / split, values, columns)
        if others := len(_files(folder / split)) - len(table):
            notes.append(f"{others:,} files in {split}/ are not in {split}.csv: left out.")
        tables.append(table.iloc[: limit or None])
    train, test = tables
    shared = pd.concat(tables, join="inner")
    if shared.columns.empty:
        raise UserError(
            f"{folder / 'train.csv'} and test.csv share no attributes: add the same columns of 0 "
            "and 1 to both"
        )
    if single := sorted(set(train).symmetric_difference(test)):
        notes.append(f"In one of the two CSVs only, and left out: {', '.join(single)}.")
    digests = identities([*train.index, *test.index], storage.sha256)
    if count := sum(pd.Series(digests[len(train) :]).isin(digests[: len(train)])):
        notes.append(f"{count:,} of the test images are training images too.")
    known = {name: column.to_numpy() for name, column in shared.items()}
    work = partial(decode_file, side=side)
    return Source(
        f"images in {root.name}/{place}", train.index, test.index, work, digests, known, notes
    )


def read_list(path: Path, folder: Path, values: range, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A list of images: columns as uint8, by the path of the image.

    Args:
        path: of the CSV file.
        folder: of the images.
        values: permitted in the columns.
        columns: to be read; none: all but `image_name`.

    Raises:
        UserError: if the list or a column is malformed, or names a file that is not in `folder`.
    """
    try:
        # Blank lines are dropped here, not by pandas, so that the index gives the line.
        table = pd.read_csv(
            path, dtype={"image_name": str}, skipinitialspace=True, skip_blank_lines=False
        )
        files = _files(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} (CSV in UTF-8) and {folder.name}/: {error}") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: its first line has more fields than the header has names")
    for name in ("image_name", *columns):
        if name not in table:
            raise UserError(
                f"{path} has no column {name!r} (it has: {', '.join(table)}); its first line names "
                "the columns, with commas between them"
            )
    table = table.dropna(how="all")
    if table.empty:
        raise UserError(f"{path} lists no images")
    names = table.pop("image_name").fillna("")
    if absent := names[~names.isin(files)].tolist():
        raise UserError(
            f"{path} names files that are not in {folder} (links do not count): {_some(absent)}"
        )
    if repeated := names[names.duplicated()].tolist():
        raise UserError(f"{path} lists images twice: {_some(repeated)}")
    numbers = table[list(columns or table)].apply(pd.to_numeric, errors="coerce")
    for name in numbers:
        if not (valid := numbers[name].isin(values)).all():
            line = int((~valid).idxmax())
            raise UserError(
                f"{path}, line {line + 2}: {name!r} is '{table[name][line]}', not one of "
                f"{', '.join(map(str, values))}"
            )
    # As strings: a hundred thousand Path objects would take a hundred MB.
    return numbers.astype(np.uint8).set_axis([str(folder / name) for name in names])


def identities(paths: Iterable[str], identify: Callable[[Path], Any]) -> list[Any]:
    """What identifies the content of each file, such as its `storage.sha256`.

    Raises:
        UserError: naming a file that cannot be read.
    """
    try:
        return [identify(Path(path)) for path in paths]
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from None


def _files(folder: Path) -> set[str]:
    """Names of the files in a folder; a link could lead out of it."""
    return {entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)}


def _some(names: Sequence[str]) -> str:
    rest = len(names) - 3
    return ", ".join(map(repr, names[:3])) + (f" and {rest:,} more" if rest > 0 else "")
