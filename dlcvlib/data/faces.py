"""Faces: drawn here, from a folder in the homework's layout, or CelebA, or LFW."""

import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dlcvlib.config.schema import FaceParams
from dlcvlib.data import decode, folder, prepare
from dlcvlib.data.decode import Source
from dlcvlib.data.types import FaceData
from dlcvlib.utils import storage
from dlcvlib.utils.bars import bar
from dlcvlib.utils.errors import UserError

SIDE = 64
CELEBA = "celeba"
CELEBA_LISTS = ("list_attr_celeba.txt", "list_eval_partition.txt")
LFW = "lfw_home/lfw_funneled"
LFW_SQUARE = 128
"""Side of the square that is cut out of 250×250 pixels: a detected face takes 250/2.2 of them."""
LFW_TEST = 10
"""One in this many pictures is for testing."""
LFW_PEOPLE = 7
"""The number of people with at least 70 pictures, whom scikit-learn's own example classifies."""


def load_faces(params: FaceParams) -> FaceData:
    """The faces that the parameters name, prepared now or by an earlier call.

    `embedded` draws `drawn_train` and `drawn_test` faces of the series 0; the other sources read
    at most `image_limit` images of a split (0: all), those of a folder drawn at random, otherwise
    the first of its list. Validation images are taken out of train by a fixed permutation.

    Raises:
        UserError: naming the file or field at fault, before anything long is done.
    """
    kind, root = prepare.chosen(params.data, "face", other="3,4")
    find = {"embedded": _embedded, "folder": _folder, "torchvision": _photographs}[kind]
    source = find(params, root)
    splits, _ = prepare.prepare("faces", source, SIDE, params)
    return FaceData(**vars(splits))


def _embedded(params: FaceParams, _: Path) -> Source:
    from dlcvlib.data.synthetic import faces as drawn_faces

    return Source(
        "faces drawn by this project (synthetic)",
        range(params.drawn_train),
        range(params.drawn_train, params.drawn_train + params.drawn_test),
        partial(drawn_faces.draw_face, 0),
        packages=["skia-python"],
        code=[f"data/synthetic/{name}" for name in ("faces", "hair", "people", "brushes")],
    )


def _folder(params: FaceParams, root: Path) -> Source:
    return folder.source(root, "face", SIDE, params, values=range(2), zero=-1)


def _photographs(params: FaceParams, root: Path) -> Source:
    """CelebA or else LFW, whichever is under `root`; if neither, whichever can be downloaded."""
    limit, nor = params.image_limit or None, ""
    folder = root / CELEBA / "img_align_celeba"  # a refused download leaves none
    provided = folder.is_dir() or zipfile.is_zipfile(folder.with_suffix(".zip"))
    if provided or not (root / LFW).is_dir():
        try:
            return _celeba(root, limit)
        except UserError as error:
            if provided:
                raise
            print(f"{error}. Downloading LFW (200 MB) instead.")
            nor = f". {error}"
    return _lfw(root, limit, f"remove what is there of it, and try again{nor}")


def _celeba(root: Path, limit: int | None) -> Source:
    """CelebA as torchvision lays it out under `root`, unpacked or downloaded if it is not there."""
    from torchvision.datasets import CelebA

    place = root / CELEBA
    archive = place / "img_align_celeba.zip"

    def download(folder: str) -> None:
        if not zipfile.is_zipfile(archive):  # nor is what an interrupted download leaves
            CelebA(folder, download=True)
            return
        with zipfile.ZipFile(archive) as pictures:
            files = bar(pictures.infolist(), "unpacking CelebA")
            pictures.extractall(Path(folder, CELEBA), files)

    lists = " and ".join(CELEBA_LISTS)
    remedy = f"put {archive.name}, or its folder, {lists} into {place} (docs/data.md: from where)"
    attributes, splits = prepare.downloaded("CelebA", root, _celeba_lists, download, remedy)
    names = [splits.index[splits == split][:limit] for split in (0, 2)]
    # As strings: two hundred thousand Path objects would take a hundred MB.
    paths = [[f"{place}/img_align_celeba/{name}" for name in split] for split in names]

    def identify(path: Path) -> list[Any]:
        found = path.stat()
        return [path.name, found.st_size, found.st_mtime_ns]

    identity = folder.identities([*paths[0], *paths[1]], identify)
    chosen = attributes.loc[names[0].append(names[1])]
    known = {name: (column == 1).to_numpy(np.uint8) for name, column in chosen.items()}
    return Source("CelebA", *paths, partial(decode.decode_file, side=SIDE), identity, known)


def _celeba_lists(root: str) -> tuple[pd.DataFrame, pd.Series]:
    """CelebA's attributes, 1 or -1, and its splits, 0, 1 or 2, by the names of the pictures.

    torchvision reads five lists, which takes a GB and half a minute; two are needed.

    Raises:
        OSError: if pictures or lists are missing, or a list is not the published one.
    """
    from torchvision.datasets import CelebA
    from torchvision.datasets.utils import check_integrity

    place, digests = Path(root, CELEBA), {file: md5 for _, md5, file in CelebA.file_list}
    (place / "img_align_celeba").stat()
    for name in CELEBA_LISTS:
        if not check_integrity(place / name, digests[name]):
            raise OSError(f"{name} is missing or damaged")
    attributes, splits = (place / name for name in CELEBA_LISTS)
    return (
        pd.read_csv(attributes, sep=r"\s+", skiprows=1),
        pd.read_csv(splits, sep=r"\s+", header=None, index_col=0)[1],
    )


def _lfw(root: Path, limit: int | None, remedy: str) -> Source:
    """LFW as scikit-learn lays it out, `<person>/<person>_0001.jpg`; its attributes are people.

    LFW's own splits share no person, so that nobody in the test split could be learned.
    """
    from sklearn.datasets import fetch_lfw_people

    one_pixel = {"slice_": (slice(0, 1), slice(0, 1)), "resize": None}
    download = partial(fetch_lfw_people, **one_pixel)
    files = prepare.downloaded("LFW", root, _lfw_files, download, remedy)
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    edge = len(files) // LFW_TEST
    train, test = files[edge:][:limit], files[:edge][:limit]
    people = np.array([Path(path).parent.name for path in [*train, *test]])
    frequent = Counter(people[: len(train)].tolist()).most_common(LFW_PEOPLE)
    known = {person: (people == person).astype(np.uint8) for person, _ in frequent}
    note = (
        f"Funneled pictures, cropped to their central {LFW_SQUARE}×{LFW_SQUARE} pixels; one in "
        f"{LFW_TEST} is for testing. Its attributes are the {len(known)} people with the most "
        "pictures."
    )
    identity = [LFW_SQUARE, *folder.identities([*train, *test], storage.sha256)]
    work = partial(decode.decode_file, side=SIDE, square=LFW_SQUARE)
    return Source("LFW", train, test, work, identity, known, [note])


def _lfw_files(root: str) -> list[str]:
    if files := sorted(map(str, Path(root, LFW).glob("*/*.jpg"))):
        return files
    raise OSError("there are no pictures")
