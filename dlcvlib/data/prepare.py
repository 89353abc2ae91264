"""Prepared image sets on disk: decoded or drawn once, then looked up by their sources' content.

Each set is cached in a folder of its own (see `storage.cached`), whose name covers the content of
every source file (for CelebA, sizes and times) and the code that reads them:

    images.u8              (N, 3, side, side) uint8 without a header, mapped into memory to be read
    columns.safetensors    (N,) uint8 by name: attributes or labels
"""

import hashlib
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dlcvlib.config.schema import DigitParams, FaceParams
from dlcvlib.data.decode import REMARKS, Source, fill
from dlcvlib.data.types import ImageSet, Splits
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

PIECE = 10_000
"""Images prepared at a time: held in memory, and prepared again if the process is killed."""
PREFIX = "column."
"""Separates a column that happens to be called "images" from the images."""


def chosen(data: str, name: str, other: str) -> tuple[str, Path]:
    """The kind of source that the parameter `data` names, and its folder.

    Args:
        data: the parameter.
        name: subfolder that a source of kind folder must have.
        other: chapters that do not need it.

    Raises:
        UserError: if it is not embedded, folder:PATH or torchvision:PATH, or there is no such
            folder; torchvision's need not exist.
    """
    kind, _, place = data.partition(":")
    root = Path(place).expanduser()
    if (kind, bool(place)) not in {("embedded", False), ("folder", True), ("torchvision", True)}:
        raise UserError(f"data: {data!r} is not one of embedded, folder:PATH and torchvision:PATH")
    needed = root / name if kind == "folder" else root
    if not needed.is_dir() and (kind == "folder" or needed.exists()):
        raise UserError(
            f"data: there is no folder {needed} (README.md shows the layout): correct the path, or "
            f"choose chapters that do not need it (--only {other})"
        )
    return kind, root


def downloaded(
    name: str,
    root: Path,
    read: Callable[[str], Any],
    download: Callable[[str], object],
    remedy: str,
) -> Any:
    """What is read from a data set under `root`, downloaded if it is not there or damaged.

    Into a temporary folder first: libraries read what an interrupted download leaves, and unpickle
    what they find.

    Args:
        name: of the data set.
        root: the folder of all data sets.
        read: called with such a folder; raises any exception if the data set is not there.
        download: called with a folder to download to.
        remedy: what to do if it cannot be downloaded.

    Raises:
        UserError: if it cannot be downloaded.
    """
    with suppress(Exception):
        return read(str(root))
    try:
        with storage.exclusive_lock(storage.make_dir(root) / name, "downloaded"):
            with suppress(Exception):  # if another process has downloaded it meanwhile
                return read(str(root))
            storage.sweep(root, name)
            prefix = f"{storage.TEMPORARY}{name}-"
            with tempfile.TemporaryDirectory(dir=root, prefix=prefix) as temporary:
                download(temporary)
                _move(Path(temporary), root)
        return read(str(root))
    except Exception as error:
        raise UserError(
            f"{name} is not in {root} and could not be downloaded ({error}): {remedy}"
        ) from error


def _move(source: Path, target: Path) -> None:
    """Move files, and in one step folders that are not there yet."""
    if source.is_dir() and target.is_dir():
        for path in source.iterdir():
            _move(path, target / path.name)
    else:
        source.replace(target)


def mapped(path: Path | str, *shape: int) -> Tensor:
    """A file's bytes as a uint8 tensor of a shape, read only where and when it is used.

    Its memory is the operating system's, shared by all processes, and must not be written to.
    """
    with warnings.catch_warnings(action="ignore"):  # torch's, of memory that must not be written to
        # Not `torch.from_file`: a mapping that may be written to cannot exceed the memory.
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=shape))


def prepare(
    name: str, source: Source, side: int, params: FaceParams | DigitParams
) -> tuple[Splits[ImageSet], str]:
    """The images of a source, prepared now or by an earlier call.

    The training images come in a fixed random order, and the first of them are held out.

    Args:
        name: of the set, such as "faces", for the cache's name and the progress bar.
        source: what to prepare.
        side: height and width of the images.
        params: `validation_size`, the number of training images to hold out, and `runs_dir`, the
            folder of the runs; the cache is in its `data`.

    Returns:
        The splits, which are views of the same tensors, and a fingerprint of the images alone. The
        images are mapped from their file (see `mapped`).

    Raises:
        UserError: if nothing is left to train on, a picture cannot be read, or the disk is full.
    """
    train, held_out = len(source.train), params.validation_size
    if held_out >= train:
        raise UserError(
            f"validation_size: {held_out} leaves none of the {train} training images of {name}; "
            "lower it"
        )
    reading = ["data/prepare", "data/decode", "data/scans"]
    identity = {
        "source": source.identity,
        "known": [*source.known, joblib.hash(source.known)],
        "sizes": [train, len(source.test), side],
        "code": fingerprints.module_hashes([*reading, *source.code]),
        "packages": fingerprints.versions("numpy", "pillow", *source.packages),
    }
    key = fingerprints.json_hash(identity)[:16]
    folder = Path(params.runs_dir) / "data" / f"{name}-{key}"
    file = folder / "images.u8"
    columns, meta = storage.cached(
        folder / "columns.safetensors",
        lambda: _make(source, side, name, file),
        lambda meta: storage.check(file, meta["digests"]["images"]),
    )
    images = mapped(file, train + len(source.test), 3, side, side)

    def part(rows: slice) -> ImageSet:
        return ImageSet(images[rows], {name: values[rows] for name, values in columns.items()})

    digests, sizes = meta["digests"], {"train": train, "validation": held_out}
    parts = map(part, (slice(held_out, train), slice(held_out), slice(train, None)))
    notes, drawn = (*source.notes, *meta["notes"]), bool(source.code)
    fingerprint = fingerprints.json_hash(digests | sizes)
    images_fingerprint = fingerprints.json_hash({"images": digests["images"]} | sizes)
    return Splits(*parts, source.description, drawn, notes, fingerprint), images_fingerprint


@timed("data")
def _make(
    source: Source, side: int, label: str, file: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Decode or draw everything, a piece at a time: columns, and their digests and notes."""
    shuffled = np.random.default_rng(0).permutation(len(source.train))
    items = [*source.train, *source.test]
    order = [*shuffled, *range(len(shuffled), len(items))]
    size = len(items) * 3 * side**2
    title = f"preparing {label}, {tqdm.format_sizeof(size, 'B')}"

    def piece(number: int) -> tuple[memoryview, dict[str, list[int]]]:
        first = number * PIECE
        chosen = [items[i] for i in order[first : first + PIECE]]
        images = np.empty((len(chosen), 3, side, side), np.uint8)
        columns = fill(source.work, chosen, images, title, first, len(items))
        return images.reshape(-1).data, {name: v.tolist() for name, v in columns.items()}

    digest, parts = storage.write_pieces(file, size, PIECE * 3 * side**2, piece)
    columns = {n: np.concatenate([part[n] for part in parts]).astype(np.uint8) for n in parts[0]}
    notes, shown = [], {"side": side, "background": source.background}
    for name, remark in REMARKS.items():
        if count := int(columns.pop(name, np.zeros(1)).sum()):
            notes.append(f"{count:,} images {remark.format(**shown)}.")
    columns |= {name: values[order].astype(np.uint8) for name, values in source.known.items()}
    digests = {PREFIX + n: hashlib.sha256(v.data).hexdigest() for n, v in columns.items()}
    meta = {"notes": notes, "digests": {"images": digest} | digests}
    return {name: torch.from_numpy(values) for name, values in columns.items()}, meta
