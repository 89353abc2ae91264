"""A page of HTML with everything that it needs within: one file, which opens without a network."""

import base64
import gzip
import hashlib
import io
import mimetypes
import re
from pathlib import Path

from PIL import Image

WEBP_SIDE = 16_383
"""Pixels of WebP's longest side."""


def policy_hash(text: str) -> str:
    """A script or style as the page's content security policy names it."""
    return f"sha256-{_base64(hashlib.sha256(text.encode()).digest())}"


def files(page: str, folder: Path, name: str) -> str:
    """Put the files that a page names into it: pictures in `src`, values in `data-gzip`.

    Args:
        page: as pandoc writes it, in whose text a quotation mark is "&quot;".
        folder: where its files lie.
        name: of the folder in this one that they are in.
    """
    named = re.compile(rf' (src|data-gzip)="({name}/[\w.-]+)"')
    return named.sub(lambda match: f' {match[1]}="{address(folder / match[2])}"', page)


def address(path: Path) -> str:
    """A picture as data URI, PNG as WebP without loss, a third smaller; values as gzip."""
    content, kind = path.read_bytes(), mimetypes.guess_type(path)[0]
    if path.suffix == ".csv":
        return _base64(gzip.compress(content, mtime=0))
    if path.suffix == ".png":
        with Image.open(path) as picture:
            still = not getattr(picture, "is_animated", False)
            if picture.mode in ("RGB", "RGBA") and still and max(picture.size) <= WEBP_SIDE:
                picture.save(buffer := io.BytesIO(), "webp", lossless=True, quality=50, method=2)
                content, kind = buffer.getvalue(), "image/webp"
    return f"data:{kind};base64,{_base64(content)}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
