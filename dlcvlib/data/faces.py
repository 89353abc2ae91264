"""Faces: drawn here, from a folder in the homework's layout, or CelebA, or LFW."""

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dlcvlib.config.schema import FaceParams
from dlcvlib.data import decode, folder, prepare
from dlcvlib.data.decode import Source
from dlcvlib.data.types import FaceData
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

SIDE = 64
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
        code=["data/synthetic/faces", "data/synthetic/people", "data/synthetic/brushes"],
    )


def _folder(params: FaceParams, root: Path) -> Source:
    return folder.source(root, "face", SIDE, params, values=range(2), zero=-1)


def _photographs(params: FaceParams, root: Path) -> Source:
    """CelebA or else LFW, whichever is under `root`; if neither, whichever can be downloaded."""
    lfw = root / "lfw_home" / "lfw_funneled"
    provided = (root / "celeba" / "img_align_celeba").is_dir()  # a refused download leaves none
    if provided or not lfw.is_dir():
        try:
            return _celeba(root, params.image_limit or None)
        except UserError as error:
            if provided:
                raise
            print(f"{error}. Downloading LFW (200 MB) instead.")
            _download_lfw(lfw, error)
    return _lfw(lfw, params.image_limit or None)


def _celeba(root: Path, limit: int | None) -> Source:
    """CelebA as torchvision lays it out under `root`, downloaded if it is not there."""
    from torchvision.datasets import CelebA

    place = root / CelebA.base_folder
    remedy = f"its host often refuses; put img_align_celeba/ and the list_*.txt files into {place}"
    datasets = [partial(CelebA, str(root), split) for split in ("train", "test")]
    splits = [prepare.downloaded("CelebA", root, dataset, remedy) for dataset in datasets]
    # As strings: two hundred thousand Path objects would take a hundred MB.
    paths = [[f"{place}/img_align_celeba/{name}" for name in s.filename[:limit]] for s in splits]

    def identify(path: Path) -> list[Any]:
        return [path.name, path.stat().st_size, path.stat().st_mtime_ns]

    identity = folder.identities([*paths[0], *paths[1]], identify)
    attributes = np.concatenate([split.attr[:limit].numpy() for split in splits])
    known = dict(zip(filter(None, splits[0].attr_names), attributes.T, strict=True))
    return Source("CelebA", *paths, partial(decode.decode_file, side=SIDE), identity, known)


def _lfw(place: Path, limit: int | None) -> Source:
    """LFW as scikit-learn lays it out, `<person>/<person>_0001.jpg`; its attributes are people.

    LFW's own splits share no person, so that nobody in the test split could be learned.
    """
    files = sorted(map(str, place.glob("*/*.jpg")))
    if not files:
        raise UserError(f"{place} holds no pictures: remove it, and LFW is downloaded again")
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


def _download_lfw(place: Path, refused: UserError) -> None:
    """Let scikit-learn download LFW to `place`.

    Into a temporary folder first: scikit-learn treats a partly unpacked archive as complete, and
    unpickles what it finds.
    """
    from sklearn.datasets import fetch_lfw_people

    home = storage.make_dir(place.parent)
    with storage.exclusive_lock(place, "downloaded"):
        if place.is_dir():
            return
        storage.sweep(home)
        try:
            with tempfile.TemporaryDirectory(dir=home, prefix=storage.TEMPORARY) as temporary:
                one_pixel = (slice(0, 1), slice(0, 1))
                fetch_lfw_people(data_home=temporary, slice_=one_pixel, resize=None)
                (Path(temporary) / home.name / place.name).replace(place)
        except Exception as error:
            raise UserError(f"{refused}. Nor could LFW be downloaded ({error})") from error
