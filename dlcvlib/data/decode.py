"""Decode or draw pictures in several processes, straight into one array.

Worker processes import this module only, so that they start quickly: no torch here.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from joblib import Parallel, cpu_count, delayed
from PIL import Image
from tqdm.auto import tqdm

from dlcvlib.utils.errors import UserError

CHUNK = 250
"""Pictures that a process is given at a time; fewer are not worth a process of their own."""
Image.MAX_IMAGE_PIXELS = 32_000_000
"""Pillow refuses a picture that declares more than twice as many, before it is decoded."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
"""Accepted, whatever a file is called. Pillow would start other programs to read some others, above
all PostScript."""

Example = tuple[np.ndarray, Mapping[str, int]]
"""A picture (side, side, 3) uint8, and the values of its columns by name, from 0 to 255."""
Work = Callable[[Any], Example]


@dataclass(frozen=True)
class Source:
    """What a data source offers, known before any picture is decoded.

    Attributes:
        description: a few words for the report, such as "images in hw3_data/face".
        train: what `work` takes for each training image, such as a path.
        test: likewise.
        work: an item -> its picture and columns (see `fill`).
        identity: JSON-serialisable, all that determines the pictures besides code and packages.
        known: name -> (train + test,) uint8: columns that are known without decoding.
        notes: what a reader must know about the data.
        packages: installed packages whose versions determine the content.
        code: modules (see `fingerprints.module_hashes`) that draw the images, if synthetic.
    """

    description: str
    train: Sequence[Any]
    test: Sequence[Any]
    work: Work
    identity: Any = None
    known: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Sequence[str] = ()
    packages: Sequence[str] = ()
    code: Sequence[str] = ()


def open_picture(path: Path | str) -> Image.Image:
    """Open a picture as RGB.

    Raises:
        UserError: if it is not a picture, is damaged, or declares implausible dimensions.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode == "I;16":  # convert() would clip 16 bits to white
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} is not a readable picture ({error}): replace it, or remove it and its line"
        ) from None


def decode_file(path: Path | str, side: int, square: int = 0) -> Example:
    """A picture as (side, side, 3) uint8 RGB, and whether it was resized.

    A picture of another size is first cropped to its central square.

    Args:
        path: of the picture.
        side: height and width of the result, in pixels.
        square: side of the central square, in pixels; 0 for the largest.

    Raises:
        UserError: as `open_picture`.
    """
    picture = open_picture(path)
    if picture.size == (side, side):
        return np.asarray(picture), {"resized": 0}
    square = min(square or picture.width, *picture.size)
    left, top = (picture.width - square) // 2, (picture.height - square) // 2
    picture = picture.crop((left, top, left + square, top + square))
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)), {"resized": 1}


def fill(work: Work, items: Sequence[Any], out: np.ndarray, label: str) -> dict[str, np.ndarray]:
    """Apply `work` to each item, in several processes; pictures go into `out`.

    Args:
        work: an item, such as a path -> a picture and its columns.
        items: results keep their order.
        out: (len(items), 3, side, side) uint8, written in place: no second copy is ever made.
        label: of the progress bar.

    Returns:
        The columns by name, each (len(items),) uint8.
    """
    bar = {"leave": False, "disable": bool(os.environ.get("DLCV_STATUS")), "unit": " images"}
    examples = tqdm(_results(work, items), label, len(items), **bar)
    columns = []
    for place, (picture, values) in zip(out, examples, strict=True):
        place[:] = picture.transpose(2, 0, 1)
        columns.append(values)
    return {name: np.array([values[name] for values in columns], np.uint8) for name in columns[0]}


def _results(work: Work, items: Sequence[Any]) -> Iterator[Example]:
    """The results of `work` for all items, in order."""
    jobs = min(cpu_count(), ceil(len(items) / CHUNK))
    options = {"idle_worker_timeout": 10, "initializer": _end_with_parent}
    pool = Parallel(jobs, return_as="generator", batch_size=CHUNK, pre_dispatch="all", **options)
    finished = 0
    try:
        for result in pool(map(delayed(work), items)):
            yield result
            finished += 1
    except BrokenProcessPool:
        # A worker was killed, most likely for lack of memory: continue in this process.
        yield from map(work, items[finished:])


def _end_with_parent() -> None:
    """End this worker soon after its parent: it would wait forever for its results to be read."""

    def wait(parent: int) -> None:
        while os.getppid() == parent and psutil.pid_exists(parent):  # Windows keeps a dead one
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, args=[os.getppid()], daemon=True).start()
