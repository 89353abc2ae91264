"""Rows and grids of images, and images for widgets."""

import io
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
from dlcvlib.plots.style import WIDTH, with_values

GAP = 2
"""White pixels between images."""
DIGITS = [str(digit) for digit in range(CLASSES)]
"""Headings of the columns of `digit_rows`."""


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


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Images as one picture with white gaps: (N, 3, H, W) -> (H', W', 3) uint8."""
    layout = {"grid_shape": (-(-len(images) // columns), columns), "padding_width": GAP}
    sheet = montage(to_pixels(images), fill=[255, 255, 255], channel_axis=3, **layout)
    return sheet[GAP:-GAP, GAP:-GAP]  # without gaps around the whole


def image_grid(images: Tensor) -> Axes:
    """Images in reading order, eight in a row: (N, 3, H, W), uint8 or float in 0..1."""
    sheet = tile(images, 8)
    _, ax = plt.subplots(figsize=(WIDTH, WIDTH * sheet.shape[0] / sheet.shape[1]))
    _show(ax, sheet)
    return with_values(ax, pd.DataFrame({"image": range(1, len(images) + 1)}))


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
    strips = [tile(row, len(row)) for row in rows]
    height, width = strips[0].shape[:2]
    gaps = [height // 2 if n % (len(rows) // blocks) == 0 else GAP for n in range(len(rows))]
    tops = np.cumsum(gaps) - gaps[0] + height * np.arange(len(rows))
    sheet = np.full((tops[-1] + height, *strips[0].shape[1:]), 255, np.uint8)
    for top, strip in zip(tops, strips, strict=True):
        sheet[top : top + height] = strip
    texts, columns = over or under, len(rows[0])
    # No taller than wide: it must share a page with text.
    size = (WIDTH, min(WIDTH, (WIDTH - 0.95) * len(sheet) / width + 0.25 * bool(texts)))
    ax = ax or plt.subplots(figsize=size)[1]
    _show(ax, sheet)
    ax.set_yticks(tops + height / 2, labels, fontsize=8.5)
    if texts:
        ax.set_xticks((np.arange(columns) + 0.5) * (width + GAP) / columns, texts, fontsize=8)
    if over:
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
    frame = pd.DataFrame(product(labels, range(1, columns + 1)), columns=["row", "column"])
    if texts:
        frame["text"] = list(texts) * len(rows)
    return with_values(ax, frame)


def _show(ax: Axes, sheet: np.ndarray) -> None:
    ax.imshow(sheet)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def digit_rows(data: LabelledImages, rows: int = 1) -> list[Tensor]:
    """Rows for `image_rows` with one image of each digit, grey where a digit is lacking.

    Returns:
        `rows` tensors, (10, 3, 32, 32) each; `DIGITS` are their headings.
    """
    grey = torch.full_like(data.images[:1], 128)
    of_digit = [data.images[data.labels == digit][:rows] for digit in range(CLASSES)]
    filled = [torch.cat([cells, grey.expand(rows - len(cells), -1, -1, -1)]) for cells in of_digit]
    return list(torch.stack(filled, 1))
