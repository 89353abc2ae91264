"""Faces from three sources: drawn here, a folder in the homework's layout, torchvision's CelebA.

A prepared data set is cached in a folder of its own: one tensor file, and a JSON pointer that is
written last and holds its content hash. The folder's name covers the content of every file that
went into it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from dlcvlib import fingerprints, storage
from dlcvlib.data import decoding
from dlcvlib.data.images import FaceData, ImageSet
from dlcvlib.errors import UserError
from dlcvlib.params import FaceParams

FORMAT = 2
"""Raised when the cached form changes, so that older caches are made anew."""

TENSORS, POINTER = "faces.safetensors", "faces.json"

PREFIX = "attribute."
"""Keeps a column that happens to be called "images" apart from the images."""


@dataclass(frozen=True)
class Prepared:
    """What a source is going to give, known before any picture is decoded.

    Attributes:
        source: a few words for captions.
        synthetic: whether the faces are drawn.
        key: hex digest of all that decides the content.
        train: number of training images, which come first in `items`.
        items: what `work` takes, one an image.
        work: chunk of items -> pictures and columns (see `decoding.fill`).
        attributes: name -> (len(items),) uint8; empty if the columns of `work` are the attributes.
        columns: names of the columns of `work`.
        notes: what a reader must know.
    """

    source: str
    synthetic: bool
    key: str
    train: int
    items: Sequence[Any]
    work: Callable[..., decoding.Chunk]
    attributes: dict[str, np.ndarray]
    columns: Sequence[str]
    notes: tuple[str, ...] = ()


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
    if params.validation_size >= prepared.train:
        raise UserError(
            f"validation_size: {params.validation_size} leaves nothing of the {prepared.train} "
            "training images; lower it"
        )
    cache = storage.make_dir(Path(params.runs_dir) / "data") / f"faces-{prepared.key[:16]}"
    with _lock(cache):
        tensors, meta = _cached(cache) or _prepare(cache, prepared)
    return _split(prepared, tensors, meta, params.validation_size)


def _split(
    prepared: Prepared, tensors: dict[str, Tensor], meta: dict[str, Any], validation_size: int
) -> FaceData:
    """Split into train, validation and test.

    The prepared order is already a fixed permutation of the training images, then the test ones:
    each split is a view, so that the pictures are in memory once.
    """
    images = tensors.pop("images")
    bounds = {"validation": (0, validation_size), "train": (validation_size, prepared.train)}
    bounds["test"] = (prepared.train, len(images))
    attributes = {key.removeprefix(PREFIX): values for key, values in tensors.items()}
    splits = {
        name: ImageSet(images[a:b], {key: values[a:b] for key, values in attributes.items()})
        for name, (a, b) in bounds.items()
    }
    identity = {"content": meta["content"], "validation": validation_size}
    return FaceData(
        **splits,
        source=prepared.source,
        synthetic=prepared.synthetic,
        notes=tuple(meta["notes"]),
        fingerprint=fingerprints.json_hash(identity),
    )


def _prepare(cache: Path, prepared: Prepared) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Decode or draw everything, write the cache, then its pointer."""
    # Only this cache's lock is held: another cache's temporary files may be in the making.
    storage.sweep(storage.make_dir(cache))
    order = _training_order(prepared.train, len(prepared.items))
    images = torch.empty(len(order), 3, decoding.SIZE, decoding.SIZE, dtype=torch.uint8)
    columns = decoding.fill(
        prepared.work, [prepared.items[i] for i in order], images.numpy(), label="faces"
    )
    attributes = {name: values[order] for name, values in prepared.attributes.items()}
    extra = {name: columns[:, i] for i, name in enumerate(prepared.columns)}
    notes = list(prepared.notes)
    if (resized := int(extra.pop("resized", np.zeros(1)).sum())) > 0:
        notes.append(
            f"{resized:,} images were not {decoding.SIZE}×{decoding.SIZE}: cropped to their "
            "central square and resized."
        )
    tensors = {"images": images}
    for name, values in (attributes | extra).items():
        tensors[PREFIX + name] = torch.from_numpy(values.astype(np.uint8))
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().data)
    meta = {"notes": notes, "content": digest.hexdigest()}
    path = cache / TENSORS
    storage.write_tensors(path, tensors, meta)
    storage.write_json(cache / POINTER, {"sha256": storage.sha256(path)})
    return tensors, meta


def _training_order(train: int, total: int) -> list[int]:
    """A fixed permutation of the training images, then the test images as they are."""
    shuffled = np.random.default_rng(0).permutation(train)
    return [*shuffled.tolist(), *range(train, total)]


def _cached(cache: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What an earlier call prepared; a damaged cache is named and made again."""
    pointer = cache / POINTER
    if not pointer.is_file():
        return None
    try:
        digest = json.loads(pointer.read_text(encoding="utf-8"))["sha256"]
        return storage.read_tensors(cache / TENSORS, digest)
    except storage.DamagedFileError as error:
        print(f"{error}; preparing it again")
    except (OSError, ValueError, KeyError, TypeError):
        print(f"{pointer} is damaged; preparing its data again")
    pointer.unlink(missing_ok=True)
    return None


def _lock(cache: Path) -> FileLock:
    lock = FileLock(cache.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        print(f"another process is preparing {cache.name}; waiting for it")
    return lock


# --- embedded ---------------------------------------------------------------------------------


def _embedded(train: int, test: int) -> Prepared:
    from dlcvlib.data import drawn_faces

    code = fingerprints.source_hash(fingerprints.modules("data/drawn_faces", "data/people"))
    identity = {"code": code, "train": train, "test": test, "format": FORMAT}
    return Prepared(
        source="faces drawn by this project (synthetic)",
        synthetic=True,
        key=fingerprints.json_hash(identity),
        train=train,
        items=range(train + test),
        work=partial(drawn_faces.draw_faces, 0),
        attributes={},
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
        table = read_table(faces / f"{split}.csv", faces / split)
        listed = set(table["image_name"])
        table = table.iloc[: limit or None]
        if unlisted := sum(p.name not in listed for p in (faces / split).iterdir() if p.is_file()):
            notes.append(f"{unlisted:,} files in {split}/ are not in {split}.csv: left out.")
        paths += [faces / split / name for name in table["image_name"]]
        tables.append(table.drop(columns="image_name"))
    train, test = tables
    shared = [name for name in train if name in test]
    if alone := sorted(set(train).symmetric_difference(test)):
        notes.append(f"In one of the two CSVs only, and left out: {', '.join(alone)}.")
    attributes = {
        name: np.concatenate([table[name].to_numpy(np.uint8) for table in tables])
        for name in shared
    }
    try:
        with ThreadPoolExecutor() as pool:
            contents = list(pool.map(storage.sha256, paths))
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from None
    identity = {
        "files": contents,
        "attributes": {name: values.tolist() for name, values in attributes.items()},
        "train": len(train),
        "notes": notes,
        "format": FORMAT,
    }
    return Prepared(
        source=f"photographs in {root.name}",
        synthetic=False,
        key=fingerprints.json_hash(identity),
        train=len(train),
        items=paths,
        work=decoding.decode_files,
        attributes=attributes,
        columns=["resized"],
        notes=tuple(notes),
    )


def read_table(path: Path, folder: Path) -> pd.DataFrame:
    """An image list: `image_name`, and columns of 0 and 1 as uint8.

    Raises:
        UserError: if the list or a column is not as it should be, or names a file that is not in
            `folder`.
    """
    try:
        # Blank lines are dropped here, not by pandas, so that the index tells the line.
        table = pd.read_csv(
            path, dtype={"image_name": str}, skipinitialspace=True, skip_blank_lines=False
        ).dropna(how="all")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if "image_name" not in table:
        raise UserError(f"{path} has no column 'image_name' (it has: {', '.join(table)})")
    if table.empty:
        raise UserError(f"{path} lists no images")
    names = table["image_name"].fillna("")
    try:
        inside, files = folder.resolve(), names.map(lambda name: (folder / name).resolve())
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
        raise UserError(f"{path} names a file that cannot be: {str(error)[:100]}") from None
    if strays := names[[not file.is_relative_to(inside) for file in files]].tolist():
        raise UserError(f"{path} names files outside of {folder}: {_some(strays)}")
    if repeated := names[files.duplicated()].unique().tolist():
        raise UserError(f"{path} lists images twice: {_some(repeated)}")
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{path} names files that are not in {folder}: {_some(absent)}")
    for name in table.columns.drop("image_name"):
        numbers = pd.to_numeric(table[name], errors="coerce")
        if not (good := numbers.isin([0, 1])).all():
            line = int((~good).idxmax())
            raise UserError(
                f"{path}, line {line + 2}: attribute {name!r} is '{table[name][line]}', not 0 or 1"
            )
        table[name] = numbers.astype(np.uint8)
    return table


def _some(names: Sequence[str]) -> str:
    rest = len(names) - 3
    return ", ".join(map(repr, names[:3])) + (f" and {rest:,} more" if rest > 0 else "")


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
    paths = [folder / file for file in files]
    try:
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    except OSError as error:
        raise UserError(f"CelebA in {root} is incomplete: {error}") from None
    identity = {
        "files": stats,
        "attributes": hashlib.sha256(attributes.numpy().tobytes()).hexdigest(),
        "train": counts[0],
        "format": FORMAT,
    }
    return Prepared(
        source="CelebA",
        synthetic=False,
        key=fingerprints.json_hash(identity),
        train=counts[0],
        items=paths,
        work=decoding.decode_pictures,
        attributes={name: attributes[:, i].numpy() for i, name in enumerate(names)},
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
