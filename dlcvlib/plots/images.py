"""Rows and grids of images, and images for widgets."""

import io
import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image
from skimage.util import montage
from torch import Tensor

from dlcvlib.data.types import CLASSES, LabelledImages
from dlcvlib.methods.attributes import as_uint8
from dlcvlib.plots.style import PIXEL_DPI, WIDTH, text_width, with_values

GAP = 2
"""White pixels between images."""
DIGITS = [str(digit) for digit in range(CLASSES)]
"""Headings of the columns of `digit_row`."""


def to_pixels(images: Tensor) -> np.ndarray:
    """(N, C, H, W), uint8 or float in 0..1 -> (N, H, W, C) uint8."""
    return as_uint8(images).permute(0, 2, 3, 1).numpy()


def to_png(image: Tensor, scale: int = 3) -> bytes:
    """One image (C, H, W) as a PNG, enlarged for a widget."""
    buffer = io.BytesIO()
    picture = Image.fromarray(to_pixels(image[None])[0])
    size = (scale * picture.width, scale * picture.height)
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, format="png")
    return buffer.getvalue()


def image_rows(
    rows: Sequence[Tensor],
    labels: Sequence[str],
    *,
    over: Sequence[str] = (),
    under: Sequence[str] = (),
    blocks: int = 1,
    ax: Axes | None = None,
) -> Axes:
    """Rows of images below each other, each with its name on the left.

    Args:
        rows: each (N, 3, H, W), uint8 or float in 0..1, all of one shape.
        labels: name of each row.
        over: a text over each column.
        under: a text under each column, instead of `over`.
        blocks: the rows form this many groups of equal size, with a gap between them.
        ax: where to draw; a new figure by default.
    """
    height, columns, number = rows[0].shape[2], len(rows[0]), np.arange(len(rows))
    layout = {"grid_shape": (len(rows), columns), "padding_width": GAP, "fill": [255, 255, 255]}
    pixels = np.concatenate([to_pixels(row) for row in rows])
    sheet = montage(pixels, channel_axis=3, **layout)[GAP:-GAP, GAP:-GAP]  # no gaps around it
    in_block, gap = len(rows) // blocks, height // 2 - GAP
    tops = number * (height + GAP)
    sheet = np.insert(sheet, np.repeat(tops[in_block::in_block], gap), 255, axis=0)
    tops += number // in_block * gap
    texts = over or under
    ax = ax or _axes(*sheet.shape[:2], left=text_width(labels, 8.5) + 0.15 * any(labels))
    ax.imshow(sheet)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_yticks(tops + height / 2, labels, fontsize=8.5)
    places = (np.arange(columns) + 0.5) * (rows[0].shape[3] + GAP)
    ax.set_xticks(places if texts else [], texts, fontsize=8)
    if over:
        ax.xaxis.tick_top()
    ax.tick_params(length=0)
    frame = pd.DataFrame(product(labels, range(1, columns + 1)), columns=["row", "column"])
    if texts:
        frame["text"] = list(texts) * len(rows)
    return with_values(ax, frame)


def _axes(height: int, width: int, left: float) -> Axes:
    """Axes for so many pixels, each a square of whole dots in print, with so many inches beside."""
    # No taller than wide: it must share a page with text.
    room = min(WIDTH - left, WIDTH * width / height)
    dpi = math.ceil(PIXEL_DPI * room / width) * width / room
    size = (left + room, room * height / width)
    # What stands under or over the axes is added where the picture is cut.
    figure = plt.figure(figsize=size, dpi=dpi, layout="none")
    return figure.add_axes((left / size[0], 0, room / size[0], 1))


def digit_row(data: LabelledImages) -> Tensor:
    """A row for `image_rows` with one image of each digit, grey where a digit is lacking.

    Returns:
        (10, 3, 32, 32); `DIGITS` are its headings.
    """
    grey = torch.full_like(data.images[:1], 128)
    of_digit = (data.images[data.labels == digit] for digit in range(CLASSES))
    return torch.cat([torch.cat([cells, grey])[:1] for cells in of_digit])
