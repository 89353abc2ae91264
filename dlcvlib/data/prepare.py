"""Prepared image sets on disk: decoded or drawn once, then looked up by their sources' content.

Each set is cached in a folder of its own (see `storage.cached`), whose name covers the content of
every source file (for CelebA, sizes and times) and the code that reads them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dlcvlib.data import decode
from dlcvlib.data.types import ImageSet
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

PREFIX = "column."
"""Separates a column that happens to be called "images" from the images."""
Read = Callable[[Path, Path], pd.DataFrame]


@dataclass(frozen=True)
class Source:
    """What a data source offers, known before any picture is decoded.

    Attributes:
        description: a few words for the report, such as "photographs in hw3_data".
        train: number of training images; they are numbered first.
        test: number of test images.
        work: list of items -> pictures and columns (see `decode.fill`).
        item: number of an image -> what `work` takes.
        identity: JSON-serialisable, all that determines the content besides code and packages.
        columns: names of the columns of `work` that are used.
        known: name -> (train + test,) uint8: columns that are known without decoding.
        notes: what a reader must know about the data.
        packages: installed packages whose versions determine the content.
        code: modules (see `fingerprints.module_hashes`) that draw the images, if synthetic.
    """

    description: str
    train: int
    test: int
    work: decode.Work
    item: decode.Item = int
    identity: Mapping[str, Any] = field(default_factory=dict)
    columns: Sequence[str] = ()
    known: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Sequence[str] = ()
    packages: Sequence[str] = ()
    code: Sequence[str] = ()


def chosen(data: str) -> tuple[str, Path]:
    """The kind of source that the parameter `data` names, and its folder.

    Raises:
        UserError: if it is not embedded, folder:PATH or torchvision:PATH, or PATH is not a folder.
    """
    kind, _, place = data.partition(":")
    root = Path(place).expanduser()
    if (kind, bool(place)) not in {("embedded", False), ("folder", True), ("torchvision", True)}:
        raise UserError(f"data: {data!r} is not one of embedded, folder:PATH and torchvision:PATH")
    if kind == "folder" and not root.is_dir():
        raise UserError(f"data: there is no folder {root}")
    if root.exists() and not root.is_dir():
        raise UserError(f"data: {root} is not a folder")
    return kind, root


def subfolder(root: Path, name: str, other: str) -> Path:
    """The folder of faces or digits under `root`.

    Raises:
        UserError: if it is not there; the chapters in `other` do not need it.
    """
    if not (folder := root / name).is_dir():
        raise UserError(
            f"data: {root} has no folder {name!r} (README.md shows the layout); add it, or choose "
            f"other chapters (--only {other})"
        )
    return folder


def from_folder(folder: Path, read: Read, side: int, limit: int, description: str) -> Source:
    """`{train,test}/*.png` with `{train,test}.csv`.

    Args:
        folder: that holds them.
        read: a list and the folder of its files -> `image_name`, and columns of uint8.
        side: height and width of the prepared images.
        limit: maximum number of images per split; 0: all.
        description: of the source.
    """
    paths, tables, notes = [], [], []
    for split in ("train", "test"):
        table = read(folder / f"{split}.csv", folder / split)
        files = {path.name for path in (folder / split).iterdir() if path.is_file()}
        if others := len(files.difference(table["image_name"])):
            notes.append(f"{others:,} files in {split}/ are not in {split}.csv: left out.")
        table = table.iloc[: limit or None]
        # As strings: two hundred thousand Path objects would take a hundred MB.
        paths.append([str(folder / split / name) for name in table["image_name"]])
        tables.append(table.drop(columns="image_name"))
    train, test = tables
    known = {name: np.concatenate([train[name], test[name]]) for name in train if name in test}
    if not known:
        raise UserError(
            f"{folder / 'train.csv'} and test.csv share no attributes: add the same columns of 0 "
            "and 1 to both"
        )
    if single := sorted(set(train).symmetric_difference(test)):
        notes.append(f"In one of the two CSVs only, and left out: {', '.join(single)}.")
    digests = decode.contents([*paths[0], *paths[1]])
    training = set(digests[: len(train)])
    if count := sum(digest in training for digest in digests[len(train) :]):
        notes.append(f"{count:,} of the test images are training images too.")
    identity = {"files": digests, "columns": {n: values.tolist() for n, values in known.items()}}
    work = partial(decode.decode_files, side=side)
    return from_files(description, *paths, work, identity, ["resized"], known, notes)


def from_files(
    description: str, train: Sequence[str], test: Sequence[str], work: decode.Work, *fields: Any
) -> Source:
    """A `Source` whose items are the paths of its images; `fields` are those that follow."""
    return Source(description, len(train), len(test), work, [*train, *test].__getitem__, *fields)


def downloaded(name: str, root: Path, dataset: Callable[..., Any], remedy: str) -> Any:
    """A torchvision data set under `root`, downloaded if it is not there.

    Raises:
        UserError: if it cannot be downloaded; the remedy says what to do then.
    """
    try:
        return dataset()
    except (RuntimeError, OSError):
        storage.make_dir(root)
    try:
        return dataset(download=True)
    except Exception as error:
        raise UserError(
            f"{name} is not in {root} and could not be downloaded ({error}): {remedy}"
        ) from error


def prepare(
    name: str, source: Source, side: int, runs_dir: str, validation_size: int
) -> tuple[dict[str, Any], dict[str, str], dict[str, int]]:
    """The images of a source, prepared now or by an earlier call.

    The training images come in a fixed random order, and the first of them are held out.

    Args:
        name: of the set, such as "faces", for the cache's name and the progress bar.
        source: what to prepare.
        side: height and width of the images.
        runs_dir: folder of the runs; the cache is in its `data`.
        validation_size: training images to hold out.

    Returns:
        The fields that `FaceData` and `Domain` share, the splits as `ImageSet`s that are views of
        the same tensors; a hex digest of each whole tensor, "images" and "column.<name>" of each
        column; and the numbers of all training images ("train") and of those held out.

    Raises:
        UserError: if nothing is left to train on, or a picture cannot be read.
    """
    if validation_size >= source.train:
        raise UserError(
            f"validation_size: {validation_size} leaves none of the {source.train} "
            f"training images of {name}; lower it"
        )
    reading = ["data/prepare", "data/decode", "data/scans"]
    identity = {
        "source": source.identity,
        "sizes": [source.train, source.test, side],
        "code": fingerprints.module_hashes([*reading, *source.code]),
        "packages": fingerprints.versions("numpy", "pillow", *source.packages),
    }
    key = fingerprints.json_hash(identity)[:16]
    folder = storage.make_dir(Path(runs_dir) / "data") / f"{name}-{key}"
    file = folder / "images.safetensors"
    tensors, meta = storage.cached(file, lambda: _make(source, side, name))
    images = tensors.pop("images")
    columns = {key.removeprefix(PREFIX): values for key, values in tensors.items()}

    bounds = {
        "train": slice(validation_size, source.train),
        "validation": slice(validation_size),
        "test": slice(source.train, None),
    }
    fields = {
        split: ImageSet(images[part], {name: values[part] for name, values in columns.items()})
        for split, part in bounds.items()
    }
    fields |= {"source": source.description, "synthetic": bool(source.code)}
    fields["notes"] = (*source.notes, *meta["notes"])
    sizes = {"train": source.train, "validation": validation_size}
    return fields, meta["digests"], sizes


@timed("data")
def _make(source: Source, side: int, label: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Decode or draw everything: tensors, and their digests and notes."""
    shuffled = np.random.default_rng(0).permutation(source.train)
    order = [*shuffled.tolist(), *range(source.train, source.train + source.test)]
    images = torch.empty(len(order), 3, side, side, dtype=torch.uint8)
    made = decode.fill(source.work, source.item, order, images.numpy(), label=label)
    columns = dict(zip(source.columns, made.T, strict=False))
    notes = []
    if (resized := int(columns.pop("resized", np.zeros(1)).sum())) > 0:
        notes.append(
            f"{resized:,} images were not {side}×{side}: cropped to their central square and "
            "resized."
        )
    tensors = {"images": images}
    for name, values in (columns | {n: v[order] for n, v in source.known.items()}).items():
        tensors[PREFIX + name] = torch.from_numpy(values.astype(np.uint8))
    digests = {n: hashlib.sha256(v.numpy().data).hexdigest() for n, v in tensors.items()}
    return tensors, {"notes": notes, "digests": digests}
