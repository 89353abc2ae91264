"""Faces: drawn here, from a folder in the homework's layout, or CelebA, or LFW."""

import hashlib
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlcvlib.config.schema import FaceParams
from dlcvlib.data import decode, prepare
from dlcvlib.data.prepare import Prepared
from dlcvlib.data.tables import read_attributes, unlisted
from dlcvlib.data.types import FaceData, ImageSet
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError

SIDE = 64
LFW_SQUARE = 128
"""Pixels of the 250 that are cut out: a detected face takes 250/2.2 of them."""
LFW_TEST = 10
LFW_PEOPLE = 7
"""Those with 70 pictures and more, whom scikit-learn's own example tells apart."""


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
        prepared = _photographed(Path(place).expanduser(), params.image_limit)
    else:
        raise UserError(
            f"data: {params.data!r} is none of embedded, folder:PATH and torchvision:PATH"
        )
    found = prepare.prepare("faces", prepared, params.runs_dir, params.validation_size)
    return _split(prepared, found, params.validation_size)


def _split(prepared: Prepared, found: prepare.Columns, validation_size: int) -> FaceData:
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
    from dlcvlib.data.synthetic import faces as drawn_faces

    code = fingerprints.source_hash(
        fingerprints.modules("data/synthetic/faces", "data/synthetic/people")
    )
    identity = {
        "code": code,
        "versions": fingerprints.versions("skia-python"),
        "train": train,
        "test": test,
    }
    return Prepared(
        source="faces drawn by this project (synthetic)",
        synthetic=True,
        key=prepare.key(identity),
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
        raise UserError(
            f"data: {root} has no folder 'face' (with train/, train.csv, …); add it, or choose "
            "chapters 3 and 4 alone (--only 3,4)"
        )
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
    files = decode.contents(paths)
    notes += decode.also_training(files, len(train))
    identity = {
        "files": files,
        "attributes": {name: values.tolist() for name, values in attributes.items()},
        "train": len(train),
    }
    return Prepared(
        source=f"photographs in {root.name}",
        synthetic=False,
        key=prepare.key(identity),
        train=len(train),
        side=SIDE,
        items=paths,
        work=partial(decode.decode_files, side=SIDE),
        known=attributes,
        columns=["resized"],
        notes=tuple(notes),
    )


# --- torchvision ------------------------------------------------------------------------------


def _photographed(root: Path, limit: int) -> Prepared:
    """CelebA or else LFW, whichever is under `root`; if neither, whichever can be downloaded."""
    if root.exists() and not root.is_dir():
        raise UserError(f"data: {root} is no folder")
    lfw = root / "lfw_home" / "lfw_funneled"
    brought = (root / "celeba" / "img_align_celeba").is_dir()  # a refused download leaves none
    if brought or not lfw.is_dir():
        try:
            return _celeba(root, limit)
        except UserError as error:
            if brought:
                raise
            print(f"{error}. LFW (200 MB) instead.")
            _download_lfw(lfw, error)
    return _lfw(lfw, limit)


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
        key=prepare.key(identity),
        train=counts[0],
        side=SIDE,
        items=[str(folder / file) for file in files],
        work=partial(decode.decode_pictures, side=SIDE),
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


def _lfw(folder: Path, limit: int) -> Prepared:
    """LFW as scikit-learn lays it out, `<person>/<person>_0001.jpg`; its attributes are people.

    Its own splits share no person: a probe could learn none of them.
    """
    files = sorted(map(str, folder.glob("*/*.jpg")))
    if not files:
        raise UserError(f"{folder} holds no pictures: remove it, and LFW is downloaded again")
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    edge = len(files) // LFW_TEST
    train, test = (split[: limit or None] for split in (files[edge:], files[:edge]))
    people = np.array([Path(file).parent.name for file in train + test])
    known = {
        person: (people == person).astype(np.uint8)
        for person, _ in Counter(people[: len(train)].tolist()).most_common(LFW_PEOPLE)
    }
    identity = {
        "files": decode.contents(train + test),
        "people": people.tolist(),
        "train": len(train),
        "square": LFW_SQUARE,
    }
    return Prepared(
        source="LFW",
        synthetic=False,
        key=prepare.key(identity),
        train=len(train),
        side=SIDE,
        items=train + test,
        work=partial(decode.decode_pictures, side=SIDE, square=LFW_SQUARE),
        known=known,
        columns=[],
        notes=(
            f"Funneled pictures, cropped to their central {LFW_SQUARE}×{LFW_SQUARE} pixels and "
            f"resized to {SIDE}×{SIDE}; one in {LFW_TEST} is for testing. Its attributes are the "
            f"{len(known)} people with most pictures.",
        ),
    )


def _download_lfw(folder: Path, refused: UserError) -> None:
    """Let scikit-learn download LFW to `folder`.

    Somewhere else first: it takes a half-unpacked archive for whole, and unpickles what it finds.
    """
    from sklearn.datasets import fetch_lfw_people

    home = storage.make_dir(folder.parent)
    with storage.exclusive_lock(folder, "downloaded"):
        if folder.is_dir():
            return
        storage.sweep(home)
        try:
            with tempfile.TemporaryDirectory(dir=home, prefix=storage.TEMPORARY) as temporary:
                one_pixel = (slice(0, 1), slice(0, 1))
                fetch_lfw_people(data_home=temporary, slice_=one_pixel, resize=None)
                (Path(temporary) / home.name / folder.name).replace(folder)
        except Exception as error:
            raise UserError(f"{refused}. Nor could LFW be downloaded ({error})") from error
