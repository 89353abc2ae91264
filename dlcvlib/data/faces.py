"""Faces from three sources: drawn here, a folder in the homework's layout, torchvision's CelebA."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlcvlib import fingerprints, storage
from dlcvlib.data import cache, decoding
from dlcvlib.data.cache import Prepared
from dlcvlib.data.images import FaceData, ImageSet
from dlcvlib.data.tables import read_attributes, unlisted
from dlcvlib.errors import UserError
from dlcvlib.params import FaceParams

SIDE = 64


def load_faces(params: FaceParams) -> FaceData:
    """The faces that the parameters name, prepared now or by an earlier call.

    `embedded` draws `drawn_train` and `drawn_test` faces of the series 0; the other sources read
    the first `image_limit` images of a split in the order of its list (0: all). Validation images
    are taken out of train by a fixed permutation.

    Raises:
        UserError: naming the file or field at fault, before anything long is done.
    """
    kind, _, place = params.data.partition(":")
    if kind == "embedded" and not place:
        prepared = _embedded(params.drawn_train, params.drawn_test)
    elif kind == "folder" and place:
        prepared = _folder(Path(place).expanduser(), params.image_limit)
    elif kind == "torchvision" and place:
        prepared = _celeba(Path(place).expanduser(), params.image_limit)
    else:
        raise UserError(
            f"data: {params.data!r} is none of embedded, folder:PATH and torchvision:PATH"
        )
    found = cache.prepare("faces", prepared, params.runs_dir, params.validation_size)
    return _split(prepared, found, params.validation_size)


def _split(prepared: Prepared, found: cache.Columns, validation_size: int) -> FaceData:
    """Split into train, validation and test: views, so that the pictures are in memory once."""
    bounds = {"validation": (0, validation_size), "train": (validation_size, found.train)}
    bounds["test"] = (found.train, len(found.images))
    splits = {
        name: ImageSet(
            found.images[a:b], {key: values[a:b] for key, values in found.columns.items()}
        )
        for name, (a, b) in bounds.items()
    }
    identity = {"content": found.digests, "train": found.train, "validation": validation_size}
    return FaceData(
        **splits,
        source=prepared.source,
        synthetic=prepared.synthetic,
        notes=found.notes,
        fingerprint=fingerprints.json_hash(identity),
    )


# --- embedded ---------------------------------------------------------------------------------


def _embedded(train: int, test: int) -> Prepared:
    from dlcvlib.data import drawn_faces

    code = fingerprints.source_hash(fingerprints.modules("data/drawn_faces", "data/people"))
    identity = {
        "code": code,
        "versions": fingerprints.versions("skia-python"),
        "train": train,
        "test": test,
    }
    return Prepared(
        source="faces drawn by this project (synthetic)",
        synthetic=True,
        key=cache.key(identity),
        train=train,
        side=SIDE,
        items=range(train + test),
        work=partial(drawn_faces.draw_faces, 0),
        known={},
        columns=drawn_faces.ATTRIBUTES,
    )


# --- folder -----------------------------------------------------------------------------------


def _folder(root: Path, limit: int) -> Prepared:
    """`face/{train,test}/*.png` with `face/{train,test}.csv` under `root`."""
    faces = root / "face"
    if not root.is_dir():
        raise UserError(f"data: there is no folder {root}")
    if not faces.is_dir():
        raise UserError(f"data: {root} has no folder 'face' (with train/, train.csv, …)")
    paths, tables, notes = [], [], []
    for split in ("train", "test"):
        table = read_attributes(faces / f"{split}.csv", faces / split)
        if others := unlisted(faces / split, table):
            notes.append(f"{others:,} files in {split}/ are not in {split}.csv: left out.")
        table = table.iloc[: limit or None]
        # As text: two hundred thousand paths, which keep their parts, are a hundred MB.
        paths += [str(faces / split / name) for name in table["image_name"]]
        tables.append(table.drop(columns="image_name"))
    train, test = tables
    shared = [name for name in train if name in test]
    if not shared:
        raise UserError(
            f"{faces / 'train.csv'} and test.csv share no attributes: add the same columns of 0 "
            "and 1 to both"
        )
    if alone := sorted(set(train).symmetric_difference(test)):
        notes.append(f"In one of the two CSVs only, and left out: {', '.join(alone)}.")
    attributes = {
        name: np.concatenate([table[name].to_numpy(np.uint8) for table in tables])
        for name in shared
    }
    identity = {
        "files": decoding.contents(paths),
        "attributes": {name: values.tolist() for name, values in attributes.items()},
        "train": len(train),
    }
    return Prepared(
        source=f"photographs in {root.name}",
        synthetic=False,
        key=cache.key(identity),
        train=len(train),
        side=SIDE,
        items=paths,
        work=partial(decoding.decode_files, side=SIDE),
        known=attributes,
        columns=["resized"],
        notes=tuple(notes),
    )


# --- torchvision ------------------------------------------------------------------------------


def _celeba(root: Path, limit: int) -> Prepared:
    """CelebA as torchvision lays it out under `root`, downloaded if it is not there."""
    from torchvision.datasets import CelebA

    splits = []
    for split in ("train", "test"):
        try:
            splits.append(CelebA(str(root), split, target_type="attr"))
        except RuntimeError:
            splits.append(_download_celeba(root, split))
    names = [name for name in splits[0].attr_names if name]
    folder = Path(splits[0].root) / splits[0].base_folder / "img_align_celeba"
    counts = [min(limit or len(split), len(split)) for split in splits]
    files = [n for s, count in zip(splits, counts, strict=True) for n in s.filename[:count]]
    attributes = torch.cat([s.attr[:count] for s, count in zip(splits, counts, strict=True)])
    try:
        found = ((file, (folder / file).stat()) for file in files)
        stats = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in found]
    except OSError as error:
        raise UserError(f"CelebA in {root} is incomplete: {error}") from None
    identity = {
        "files": stats,
        "attributes": hashlib.sha256(attributes.numpy().tobytes()).hexdigest(),
        "train": counts[0],
    }
    return Prepared(
        source="CelebA",
        synthetic=False,
        key=cache.key(identity),
        train=counts[0],
        side=SIDE,
        items=[str(folder / file) for file in files],
        work=partial(decoding.decode_pictures, side=SIDE),
        known={name: attributes[:, i].numpy() for i, name in enumerate(names)},
        columns=[],
        notes=("178×218 pictures, cropped to their central square and resized to 64×64.",),
    )


def _download_celeba(root: Path, split: str) -> Any:
    from torchvision.datasets import CelebA

    storage.make_dir(root)
    try:
        return CelebA(str(root), split, target_type="attr", download=True)
    except Exception as error:
        raise UserError(
            f"CelebA is not in {root} and could not be downloaded ({error}). Its host often "
            f"refuses: put img_align_celeba/ and the list_*.txt files into {root / 'celeba'}"
        ) from error
