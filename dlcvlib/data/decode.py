"""Decode or draw pictures in several processes, straight into one array.

Worker processes import this module only, so that they start quickly: no torch here.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed
from PIL import Image
from tqdm.auto import tqdm

from dlcvlib.utils.errors import UserError

CHUNK = 250
MAX_PIXELS = 64_000_000
"""A picture that declares more is refused before it is decoded."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
"""Accepted, whatever a file is called. Pillow would start other programs to read some others, above
all PostScript."""

Chunk = tuple[np.ndarray, np.ndarray]
"""Pictures and their columns, one per row."""
Work = Callable[[list[Any]], Chunk]
Item = Callable[[int], Any]


def open_picture(path: Path | str) -> Image.Image:
    """Open a picture as RGB.

    Raises:
        UserError: if it is not a picture, is damaged, or declares implausible dimensions.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {width}×{height} pixels are refused as a decompression bomb; "
                    "reduce the picture's size"
                )
            if picture.mode == "I;16":  # convert() would clip 16 bits to white
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{path} is not a readable picture ({error}): replace it, or remove it and any "
            "line of a list that names it"
        ) from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is refused as a decompression bomb: {error}") from None


def decode_file(path: Path | str, side: int, square: int = 0) -> tuple[np.ndarray, bool]:
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
        return np.asarray(picture), False
    square = min(square or picture.width, *picture.size)
    left, top = (picture.width - square) // 2, (picture.height - square) // 2
    picture = picture.crop((left, top, left + square, top + square))
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)), True


def decode_files(paths: Sequence[Path | str], side: int, square: int = 0) -> Chunk:
    """Pictures (n, side, side, 3) uint8, and for each (n, 1) uint8 whether it was resized."""
    decoded = [decode_file(path, side, square) for path in paths]
    return np.stack([d[0] for d in decoded]), np.array([[d[1]] for d in decoded], np.uint8)


def contents(paths: Sequence[Path | str]) -> list[str]:
    """Hex digest of the content of each file, read in several threads.

    Raises:
        UserError: naming a file that cannot be read.
    """
    try:
        return Parallel(cpu_count(), prefer="threads", batch_size=CHUNK)(
            delayed(_digest)(path) for path in paths
        )
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from None


def _digest(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fill(work: Work, item: Item, order: list[int], out: np.ndarray, *, label: str) -> np.ndarray:
    """Apply `work` to chunks of items in several processes; pictures go into `out`.

    Args:
        work: n items -> pictures (n, side, side, 3) uint8, columns (n, C).
        item: number in `order` -> what `work` takes, such as a path.
        order: numbers of the items; results keep this order.
        out: (len(order), 3, side, side) uint8, written in place: no second copy is ever made.
        label: of the progress bar.

    Returns:
        The columns of all items, (len(order), C).
    """
    starts, columns = range(0, len(order), CHUNK), []
    results = _results(work, item, [order[start : start + CHUNK] for start in starts])
    quiet = bool(os.environ.get("DLCV_STATUS"))
    bar = tqdm(starts, label, leave=False, disable=quiet, unit=" images", unit_scale=CHUNK)
    for start, (pictures, extra) in zip(bar, results, strict=True):
        out[start : start + CHUNK] = pictures.transpose(0, 3, 1, 2)
        columns.append(extra)
    return np.concatenate(columns)


def _results(work: Work, item: Item, chunks: list[list[int]]) -> Iterator[Chunk]:
    """The results of `work` for the items of each chunk, in order."""
    items = ([item(number) for number in chunk] for chunk in chunks)  # created when they are needed
    options = {"idle_worker_timeout": 10, "initializer": _end_with_parent}
    pool = Parallel(min(cpu_count(), len(chunks)), return_as="generator", batch_size=1, **options)
    finished = 0
    try:
        for result in pool(map(delayed(work), items)):
            yield result
            finished += 1
    except BrokenProcessPool:
        # A worker was killed, most likely for lack of memory: continue in this process.
        for chunk in chunks[finished:]:
            yield work([item(number) for number in chunk])


def _end_with_parent() -> None:
    """End this worker soon after the process that started it has ended, for whatever reason."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
