"""Folders in the homework's layout: `{train,test}/*.png`, and beside them `{train,test}.csv`.

Or, without a split, `images/*.png` and `labels.csv`, of which a fixed random fifth is for testing.
A list has a column `image_name`, and columns of small integers: attributes of 0 and 1, or a label.
What people's lists have instead is accepted where it has one meaning, with a note in the report.
"""

import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dlcvlib.config.schema import DigitParams, FaceParams
from dlcvlib.data.decode import Source, decode_file
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError


def source(
    root: Path, place: str, side: int, params: FaceParams | DigitParams, **reading: Any
) -> Source:
    """The images of a folder and of its lists.

    Args:
        root: of the data.
        place: folder under `root`, such as "face".
        side: height and width of the prepared images.
        params: `background`, and `image_limit`, to which a split is drawn at random: lists are
            often sorted.
        reading: further arguments of `read_list`.

    Raises:
        UserError: as `read_list`, or if a file cannot be read.
    """
    folder = root / place
    if (whole := folder / "labels.csv").is_file():
        table, notes = read_list(whole, folder / "images", **reading)
        tested = np.random.default_rng(0).permutation(len(table)) % 5 == 0
        splits = [table[~tested], table[tested]]
        notes.append("A fifth of the images, chosen at random, is for testing.")
    else:
        pairs = ((folder / f"{split}.csv", folder / split) for split in ("train", "test"))
        splits, remarks = zip(*(read_list(*pair, **reading) for pair in pairs), strict=True)
        notes = [*remarks[0], *remarks[1]]
    tables = []
    for table in splits:
        if 0 < params.image_limit < len(table):
            order = np.random.default_rng(0).permutation(len(table))
            table = table.iloc[np.sort(order[: params.image_limit])]
        tables.append(table)
    train, test = tables
    shared = pd.concat(tables, join="inner")
    if single := sorted(set(train).symmetric_difference(test)):
        notes.append(f"In one of the two CSVs only, and left out: {', '.join(single)}.")
    digests = identities([*train.index, *test.index], storage.sha256)
    if count := sum(pd.Series(digests[len(train) :]).isin(digests[: len(train)])):
        notes.append(f"{count:,} of the test images are training images too.")
    known = {name: column.to_numpy() for name, column in shared.items()}
    work = partial(decode_file, side=side, background=params.background)
    items = f"images in {root.name}/{place}", train.index, test.index, work
    identity = [params.background, *digests]
    return Source(*items, identity, known, notes, background=params.background)


def read_list(
    path: Path, folder: Path, values: range, columns: Sequence[str] = (), zero: int | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """A list of images: columns as uint8, by the path of the image; and notes on how it was read.

    Args:
        path: of the CSV file.
        folder: of the images.
        values: permitted in the columns.
        columns: to be read; none: all but `image_name` and those that hold nothing.
        zero: stands for 0 in columns that have it and no 0, such as CelebA's -1.

    Raises:
        UserError: if the list or a column is malformed, or names a file that is not in `folder`.
    """
    try:
        table, files, notes = _fields(path), _files(folder), []
    except (OSError, ValueError) as error:
        others = [other.name for other in path.parent.glob(f"{path.stem}.*") if other != path]
        hint = f"; there is {', '.join(others)}: save it as {path.name}" if others else ""
        raise UserError(
            f"cannot read {path} (CSV in UTF-8, as spreadsheets can save it) and {folder.name}/: "
            f"{error}{hint}"
        ) from None
    if table.empty:
        raise UserError(f"{path} lists no images")
    find = _finder(folder, files)

    def names_files(name: str) -> bool:
        first = str(table[name].iloc[0])
        return "." in first and bool(find(first)) and not find(name)

    if "image_name" not in table and (naming := next(filter(names_files, table), None)):
        table = table.rename(columns={naming: "image_name"})
        notes.append(f"In {path.name}, {naming!r} is taken for image_name.")
    for name in ("image_name", *columns):
        if name not in table:
            raise UserError(
                f"{path} has no column {name!r} (it has: {', '.join(table)}); its first line names "
                "the columns, with commas between them"
            )
    names = table.pop("image_name").fillna("").astype(str)
    columns = columns or [name for name in table if not _holds_nothing(table[name])]
    if spare := [name for name in table if name not in columns]:
        notes.append(f"Columns of {path.name} that are not read: {_some(spare)}.")
    found = names.map(find)
    if absent := names[found == ""].tolist():
        raise UserError(
            f"{path} names files that are not in {folder} (links are not followed, as they may "
            f"lead out of it; copy the files): {_some(absent)}"
        )
    if repeated := names[found.duplicated()].tolist():
        raise UserError(f"{path} lists images twice: {_some(repeated)}")
    if not (other := names[names != found]).empty:
        example = f"{other.iloc[0]!r} for {found[other.index[0]]!r}"
        notes.append(f"{len(other):,} names in {path.name} are not the files', such as {example}.")
    if others := len(files) - len(table):
        notes.append(f"{others:,} files in {folder.name}/ are not in {path.name}: left out.")
    numbers = table[list(columns)].apply(pd.to_numeric, errors="coerce")
    if coded := [*numbers.columns[numbers.eq(zero).any() & ~numbers.eq(0).any()]]:
        numbers[coded] = numbers[coded].replace(zero, 0)
        notes.append(f"In {path.name} {zero} stands for 0: {_some(coded)}.")
    for name in numbers:
        if not (valid := numbers[name].isin(values)).all():
            line = (~valid).idxmax()
            raise UserError(
                f"{path}, line {line}: {name!r} is '{table[name][line]}', not one of "
                f"{', '.join(map(str, values))}: correct it, or leave it out"
            )
    # As strings: a hundred thousand Path objects would take a hundred MB.
    paths = [f"{folder}/{name}" for name in found]
    return numbers.astype(np.uint8).set_axis(paths), notes


def identities(paths: Iterable[str], identify: Callable[[Path], Any]) -> list[Any]:
    """What identifies the content of each file, such as its `storage.sha256`.

    Raises:
        UserError: naming a file that cannot be read.
    """
    try:
        return [identify(Path(path)) for path in paths]
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from None


def _fields(path: Path) -> pd.DataFrame:
    """A list's fields by the number of their line, without blank lines and empty last fields.

    Between the fields are commas, or else semicolons or tabs. CelebA's own lists are read as well:
    the number of images, a line with the names of the attributes alone, and then spaces.
    """
    text = path.read_text(encoding="utf-8-sig")
    head, _, rest = text.partition("\n")
    if celeba := head.strip().isdigit():
        sep, text = r"\s+", f"image_name {rest}"
    else:
        sep = next((mark for mark in ",;\t" if mark in head), ",")
        text = re.sub(rf"[{sep} ]+$", "", text, flags=re.MULTILINE)
    how = {"skipinitialspace": True, "skip_blank_lines": False, "dtype": {"image_name": str}}
    table = pd.read_csv(io.StringIO(text), sep=sep, keep_default_na=False, na_values=[""], **how)
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("its lines have more fields than its first")
    table.index += 2 + celeba
    return table.dropna(how="all")


def _holds_nothing(column: pd.Series) -> bool:
    """Whether a column is no attribute: without a name, empty, or an index."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    counts = len(numbers) > 2 and numbers.iloc[0] in (0, 1) and (numbers.diff()[1:] == 1).all()
    return column.name.startswith("Unnamed: ") or counts or column.isna().all()


def _finder(folder: Path, files: set[str]) -> Callable[[str], str]:
    """The file in a folder that a name means; "" if none does, or if it could be several.

    Besides the exact name: with `./`, backslashes or a path to the folder before it, in another
    normal form of Unicode or another case, or without the extension.
    """
    alike: dict[str, list[str]] = {}
    for file in files:
        for key in {_plain(file), _plain(posixpath.splitext(file)[0])}:
            alike.setdefault(key, []).append(file)

    def find(name: str) -> str:
        path = posixpath.normpath(name.strip().replace("\\", "/"))
        inside = f"/{path}".rpartition(f"/{folder.name}/")[2].removeprefix("/")
        same = alike.get(_plain(inside), [])
        exact = [known for known in (name, path, inside) if known in files]
        return (exact or (same if len(same) == 1 else [""]))[0]

    return find


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _files(folder: Path) -> set[str]:
    """The files in a folder and its sub-folders, relative to it; a link could lead out of it."""
    os.scandir(folder).close()  # an error if it is not there
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix() for path in files}


def _some(names: Sequence[str]) -> str:
    rest = len(names) - 3
    return ", ".join(map(repr, names[:3])) + (f" and {rest:,} more" if rest > 0 else "")
