"""Decode or draw pictures in several processes, straight into one array.

Worker processes import this module only, so that they start quickly: no torch here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed
from PIL import ExifTags, Image

from dlcvlib.utils.bars import bar
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.parent import end_with_parent

CHUNK = 250
"""Pictures that a process is given at a time; fewer are not worth a process of their own."""
Image.MAX_IMAGE_PIXELS = 32_000_000
"""Pillow refuses a picture that declares more than twice as many, before it is decoded."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
"""Accepted, whatever a file is called. Pillow would start other programs to read some others, above
all PostScript."""
UPRIGHT = dict(enumerate((0, 3, 1, 5, 4, 6, 2), 2))
"""EXIF's orientation -> Pillow's `Transpose` that undoes it. `ImageOps.exif_transpose` would also
write the EXIF data anew, and fails at any other field that is damaged."""
DEPTHS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""Layout of a PNG's pixels -> factor that takes a shade in the file to 8 bits."""
DARK = 64
"""A picture without any value as high as this is noted."""

REMARKS = {
    "resized": "were not {side}×{side}: cropped to the central square and resized",
    "turned": "were turned upright, as their EXIF data say",
    "transparent": "are transparent in part: laid on {background}",
    "dark": f"are almost black, below {DARK} of 255, as values of 8 to 13 bits in 16 bits are",
}
"""What a reader must know of how pictures were decoded: column of `decode_file` -> sentence."""

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
        background: colour that shows where pictures are transparent.
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
    background: str = "white"


def open_picture(path: Path | str, background: str = "white") -> tuple[Image.Image, dict[str, int]]:
    """Open a picture (of several in a file, the first) as RGB, upright.

    Args:
        path: of the picture.
        background: colour that shows where the picture is transparent.

    Returns:
        The picture, and whether it was `turned` and is `transparent` in part, 0 or 1.

    Raises:
        UserError: if it is not a picture, is damaged, or declares implausible dimensions.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            picture.filename = ""  # otherwise mapped into memory, where Pillow turns no TIFF
            return _as_rgb(picture, background)
    except Exception as error:  # whatever a decoder raises on a damaged file
        raise UserError(
            f"{path} is not a readable picture ({error}): replace it, or remove it and its line. "
            f"Formats are {', '.join(FORMATS)}; convert others, such as HEIC"
        ) from None


def _as_rgb(picture: Image.Image, background: str) -> tuple[Image.Image, dict[str, int]]:
    layout = picture.tile[0].args if picture.format == "PNG" else None
    if not (turns_itself := picture.format == "TIFF"):
        picture.load()
    key = picture.info.get("transparency")
    if key is not None and layout in DEPTHS:  # Pillow leaves it at the file's own depth
        scaled = np.multiply(key, DEPTHS[layout]).astype(int).tolist()
        picture.info["transparency"] = scaled if isinstance(key, int) else tuple(scaled)
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF data that are damaged say nothing
        orientation = None
    if (turned := orientation in UPRIGHT) and not turns_itself:
        picture = picture.transpose(Image.Transpose(UPRIGHT[orientation]))
    if picture.mode[0] in "FI":
        values = np.asarray(picture)  # convert() would clip 16 bits to white
        if picture.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its values are not of 8 or 16 bits")
        layers = [values >> 8, np.where(values == key, 0, 255)]
        picture = Image.fromarray(np.stack(layers, axis=2).astype(np.uint8))
    transparent = False
    if picture.has_transparency_data:
        layer, picture = picture.convert("RGBA"), Image.new("RGB", picture.size, background)
        picture.paste(layer, mask=layer)
        transparent = layer.getchannel("A").getextrema()[0] < 255
    return picture.convert("RGB"), {"turned": int(turned), "transparent": int(transparent)}


def decode_file(path: Path | str, side: int, square: int = 0, background: str = "white") -> Example:
    """A picture as (side, side, 3) uint8 RGB, and which of the `REMARKS` hold for it, 0 or 1.

    A picture of another size is first cropped to its central square.

    Args:
        path: of the picture.
        side: height and width of the result, in pixels.
        square: side of the central square, in pixels; 0 for the largest.
        background: as `open_picture`.

    Raises:
        UserError: as `open_picture`.
    """
    picture, remarks = open_picture(path, background)
    if resized := picture.size != (side, side):
        square = min(square or picture.width, *picture.size)
        left, top = (picture.width - square) // 2, (picture.height - square) // 2
        picture = picture.crop((left, top, left + square, top + square))
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    return pixels, remarks | {"resized": int(resized), "dark": int(pixels.max() < DARK)}


def fill(
    work: Work, items: Sequence[Any], out: np.ndarray, label: str, first: int = 0, total: int = 0
) -> dict[str, np.ndarray]:
    """Apply `work` to each item, in several processes; pictures go into `out`.

    Args:
        work: an item, such as a path -> a picture and its columns.
        items: results keep their order.
        out: (len(items), 3, side, side) uint8, written in place: no second copy is ever made.
        label: of the progress bar.
        first: number of pictures before these, for the bar.
        total: number of pictures in all, if these are not all.

    Returns:
        The columns by name, each (len(items),) uint8.
    """
    size = {"total": total or len(items), "initial": first, "unit": " images"}
    examples = bar(_results(work, items), label, **size)
    columns = []
    for place, (picture, values) in zip(out, examples, strict=True):
        place[:] = picture.transpose(2, 0, 1)
        columns.append(values)
    return {name: np.array([values[name] for values in columns], np.uint8) for name in columns[0]}


def _results(work: Work, items: Sequence[Any]) -> Iterator[Example]:
    """The results of `work` for all items, in order."""
    jobs = min(cpu_count(), ceil(len(items) / CHUNK))
    options = {"idle_worker_timeout": 10, "initializer": end_with_parent}
    pool = Parallel(jobs, return_as="generator", batch_size=CHUNK, pre_dispatch="all", **options)
    finished = 0
    try:
        for result in pool(map(delayed(work), items)):
            yield result
            finished += 1
    except BrokenProcessPool:
        # A worker was killed, most likely for lack of memory: continue in this process.
        yield from map(work, items[finished:])
