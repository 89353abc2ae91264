"""Prepared image sets on disk: decoded or drawn once, found again by the content that they came of.

A set is kept in a folder of its own (see `storage.cached`), whose name covers the content of every
file that went into it (of CelebA's, their sizes and times) and the code that reads them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlcvlib.data import decode
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

PREFIX = "column."
"""Keeps a column that happens to be called "images" apart from the images."""


@dataclass(frozen=True)
class Prepared:
    """What a source is going to give, known before any picture is decoded.

    Attributes:
        source: a few words for captions.
        synthetic: whether the pictures are drawn.
        key: hex digest of all that decides the content.
        train: number of training images, which come first in `items`.
        side: height and width of the pictures.
        items: what `work` takes, one an image.
        work: chunk of items -> pictures and columns (see `decode.fill`).
        known: name -> (len(items),) uint8: columns that are known without decoding.
        columns: names of the columns of `work`.
        notes: what a reader must know, and no part of the key.
        brief: the source in two or three words for captions, if it has more.
    """

    source: str
    synthetic: bool
    key: str
    train: int
    side: int
    items: Sequence[Any]
    work: Callable[..., decode.Chunk]
    known: dict[str, np.ndarray]
    columns: Sequence[str]
    notes: tuple[str, ...] = ()
    brief: str = ""


@dataclass(frozen=True)
class Columns:
    """What a prepared set holds: pictures and columns, the training images first.

    Attributes:
        images: (N, 3, side, side) uint8; the training images in a fixed random order, so that
            validation images can be taken from their front, then the test images.
        columns: name -> (N,) uint8.
        train: number of training images.
        notes: what a reader must know about how they were read.
        digests: hex digest of each tensor: "images", and "column.<name>" of each column.
    """

    images: Tensor
    columns: dict[str, Tensor]
    train: int
    notes: tuple[str, ...]
    digests: dict[str, str]


def key(identity: Mapping[str, Any]) -> str:
    """Hex digest of what a source names, and of all that reads and keeps pictures here."""
    common = {
        "reading": fingerprints.module_hashes(["data/prepare", "data/decode", "data/scans"]),
        "libraries": fingerprints.versions("numpy", "pillow"),
    }
    return fingerprints.json_hash(dict(identity) | common)


def prepare(name: str, prepared: Prepared, runs_dir: Path | str, validation_size: int) -> Columns:
    """The pictures of a source, made now or by an earlier call.

    Args:
        name: of the set, such as "faces": it begins the cache's name and labels the progress.
        prepared: what to make.
        runs_dir: folder of the runs; the cache lies in its `data`.
        validation_size: training images that are going to be held out.

    Raises:
        UserError: if that leaves nothing to train on, or a picture cannot be read.
    """
    if validation_size >= prepared.train:
        raise UserError(
            f"validation_size: {validation_size} leaves nothing of the {prepared.train} "
            f"training images of {name}; lower it"
        )
    key = fingerprints.json_hash({"content": prepared.key, "side": prepared.side})
    folder = storage.make_dir(Path(runs_dir) / "data") / f"{name}-{key[:16]}"
    tensors, meta = storage.cached(folder / "images.safetensors", lambda: _make(prepared, name))
    images = tensors.pop("images")
    columns = {key.removeprefix(PREFIX): values for key, values in tensors.items()}
    notes = (*prepared.notes, *meta["notes"])
    return Columns(images, columns, prepared.train, notes, meta["digests"])


@timed("data")
def _make(prepared: Prepared, label: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Decode or draw everything."""
    order = _training_order(prepared.train, len(prepared.items))
    images = torch.empty(len(order), 3, prepared.side, prepared.side, dtype=torch.uint8)
    columns = decode.fill(
        prepared.work, [prepared.items[i] for i in order], images.numpy(), label=label
    )
    known = {name: values[order] for name, values in prepared.known.items()}
    extra = {name: columns[:, i] for i, name in enumerate(prepared.columns)}
    notes = []
    if (resized := int(extra.pop("resized", np.zeros(1)).sum())) > 0:
        notes.append(
            f"{resized:,} images were not {prepared.side}×{prepared.side}: cropped to their "
            "central square and resized."
        )
    tensors = {"images": images}
    for name, values in (known | extra).items():
        tensors[PREFIX + name] = torch.from_numpy(values.astype(np.uint8))
    digests = {
        name: hashlib.sha256(values.numpy().data).hexdigest() for name, values in tensors.items()
    }
    return tensors, {"notes": notes, "digests": digests}


def _training_order(train: int, total: int) -> list[int]:
    """A fixed permutation of the training images, then the test images as they are."""
    shuffled = np.random.default_rng(0).permutation(train)
    return [*shuffled.tolist(), *range(train, total)]
