"""Pictures from files or from the drawer, in several processes, straight into one array.

Worker processes import this module only, so that they start quickly: no torch here.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import cores, end_with_parent

CHUNK = 250
MAX_PIXELS = 64_000_000
"""A picture that claims more is refused before it is decoded."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
"""Whatever a file is called; others, PostScript above all, would start programs to be read."""

Chunk = tuple[np.ndarray, np.ndarray]


def open_picture(path: Path | str) -> Image.Image:
    """A picture in RGB.

    Raises:
        UserError: if it is no picture, is damaged, or claims absurd dimensions.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {width}×{height} pixels are refused as a decompression bomb; "
                    "make the picture smaller"
                )
            if picture.mode == "I;16":  # convert() would clip 16 bits to white
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise UserError(
            f"{path} is not a readable picture ({error}): replace it, or remove it and, if a list "
            "names it, its line there"
        ) from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is refused as a decompression bomb: {error}") from None


def decode_file(path: Path | str, side: int, square: int = 0) -> tuple[np.ndarray, bool]:
    """A picture as (side, side, 3) uint8 RGB, and whether it had to be resized.

    Another size is cropped to its central square first: of so many pixels, or (0) the largest.

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


def decode_files(paths: Sequence[Path | str], side: int) -> Chunk:
    """Pictures (n, side, side, 3) uint8, and for each (n, 1) whether it was resized."""
    decoded = [decode_file(path, side) for path in paths]
    return np.stack([d[0] for d in decoded]), np.array([[d[1]] for d in decoded], np.uint8)


def decode_pictures(paths: Sequence[Path | str], side: int, square: int = 0) -> Chunk:
    """As `decode_files` for pictures that are all known to be resized: no columns."""
    pictures = [decode_file(path, side, square)[0] for path in paths]
    return np.stack(pictures), np.zeros((len(paths), 0), np.uint8)


def contents(paths: Sequence[Path | str]) -> list[str]:
    """Hex digest of each file, read side by side.

    Raises:
        UserError: naming a file that cannot be read.
    """
    # By chunks: a future a file would be two kilobytes a file, a sixth of a small picture.
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    try:
        with ThreadPoolExecutor() as pool:
            return [digest for some in pool.map(_digests, chunks) for digest in some]
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from None


def also_training(digests: Sequence[str], train: int) -> list[str]:
    """A note if some pictures behind the first `train` are the same files as some of those."""
    training = set(digests[:train])
    if count := sum(digest in training for digest in digests[train:]):
        return [f"{count:,} of the test images are training images too."]
    return []


def _digests(paths: Sequence[Path | str]) -> list[str]:
    return [storage.sha256(Path(path)) for path in paths]


def fill(
    work: Callable[..., Chunk], items: Sequence[Any], out: np.ndarray, *, label: str
) -> np.ndarray:
    """Apply `work` to chunks of items in several processes; pictures go into `out`.

    Args:
        work: chunk of items -> pictures (n, side, side, 3), columns (n, C).
        items: what `work` takes; its results keep their order.
        out: (len(items), 3, side, side) uint8, written in place: no second copy is ever made.
        label: of the progress bar.

    Returns:
        The columns of all items, (len(items), C).
    """
    starts = range(0, len(items), CHUNK)
    chunks = [items[start : start + CHUNK] for start in starts]
    columns = []
    quiet = bool(os.environ.get("DLCV_STATUS"))
    with tqdm(total=len(items), desc=label, leave=False, disable=quiet) as bar:
        for start, (pictures, extra) in zip(starts, _results(work, chunks), strict=True):
            out[start : start + len(pictures)] = pictures.transpose(0, 3, 1, 2)
            columns.append(extra)
            bar.update(len(pictures))
    return np.concatenate(columns)


def _results(work: Callable[..., Chunk], chunks: list[Sequence[Any]]) -> Iterator[Chunk]:
    """Results in order: from a pool if there is enough to do, else from this process."""
    workers = min(cores(), len(chunks))
    if workers < 2:
        yield from map(work, chunks)
        return
    done = 0
    try:
        # Spawned, not forked: torch's threads do not survive a fork.
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
            with _empty_main():  # map() starts all workers before it returns
                results = pool.map(work, chunks)
            for result in results:
                yield result
                done += 1
    except BrokenProcessPool:
        # A worker was killed, most likely for its memory: go on here.
        yield from map(work, chunks[done:])


@contextmanager
def _empty_main() -> Iterator[None]:
    """Keep workers started meanwhile from running the main program again.

    They need this package alone. A script without an `if __name__ == "__main__"` would come here
    again in each worker and wait for itself; a program read from standard input has no file.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
