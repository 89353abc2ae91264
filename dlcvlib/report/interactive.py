"""What a figure of the HTML can do: show images of points, slide over rows of images, hide methods.

A figure's attributes say so: `points` (axes -> its points, (n, 2) in data coordinates; the image
of each point of all axes, (N, H, W, 3) uint8, the same one often; a line of text for each),
`slider` (axes of two rows of images, as `images.image_rows` draws them; images per row), `methods`
(their names, in order). Places are in ten thousandths of the picture's size, from its upper left
corner.
"""

import base64
import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image
from skimage.util import montage

SHEET_COLUMNS = 40
"""Images in a row of the sheet from which the page takes those of the points."""
UNIT = 10_000


def of_figure(figure: Figure) -> dict[str, Any]:
    """What report.js needs for a figure as `print_figure` shows it, tightly cropped.

    Returns:
        `methods`, `points`, `slider` or nothing.
    """
    found: dict[str, Any] = {}
    if hasattr(figure, "methods"):
        found["methods"] = figure.methods
    if hasattr(figure, "points") or hasattr(figure, "slider"):
        figure.draw_without_rendering()  # the layout
    if hasattr(figure, "points"):
        found["points"] = _points(figure)
    if hasattr(figure, "slider"):
        from dlcvlib.plots.images import GAP  # with torch, which other notebooks may not need

        ax, columns = figure.slider
        height, width = ax.images[0].get_array().shape[:2]
        box = _places(figure, ax.get_window_extent().get_points())
        found["slider"] = {"box": box, "columns": columns, "gap": [GAP / width, GAP / height]}
    return found


def _points(figure: Figure) -> dict[str, Any]:
    """A sheet of the images, each once, as WebP; and x, y, image and text of each point."""
    places, images, texts = figure.points
    sheet, image = np.unique(images.reshape(len(images), -1), axis=0, return_inverse=True)
    sheet = sheet.reshape(-1, *images.shape[1:])
    lines, text = np.unique(texts, return_inverse=True)
    columns = min(SHEET_COLUMNS, len(sheet))
    rows = -(-len(sheet) // columns)
    tiled = montage(sheet, grid_shape=(rows, columns), channel_axis=3, fill=(0, 0, 0))
    Image.fromarray(tiled).save(buffer := io.BytesIO(), "webp", quality=75)
    at = [_places(figure, ax.transData.transform(xy)) for ax, xy in places.items()]
    return {
        "sheet": base64.b64encode(buffer.getvalue()).decode(),
        "columns": columns,
        "rows": rows,
        "texts": lines.tolist(),
        "at": np.column_stack([np.concatenate(at), image, text]).tolist(),
    }


def _places(figure: Figure, pixels: np.ndarray) -> list[list[int]]:
    """Places in the picture of points (N, 2), which are in pixels from the figure's lower left."""
    box: Bbox = figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])
    share = (pixels / figure.dpi - box.p0) / box.size
    share[:, 1] = 1 - share[:, 1]
    return np.rint(UNIT * share).astype(int).tolist()
