"""Widgets of chapters 3 and 4 for JupyterLab.

Headless, a widget shows nothing; the figures before it are its stills.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from dlcvlib.data.types import CLASSES, DigitData
from dlcvlib.evaluation.feature_spaces import FeatureMap
from dlcvlib.methods.pixelda import PixelDA
from dlcvlib.plots.domains import CLASS_COLORS, SOURCE, TARGET
from dlcvlib.plots.figures import to_png
from dlcvlib.training.runs import Run

VERSIONS = 6
"""Redrawn versions shown at once."""


def feature_maps(maps: Sequence[FeatureMap]) -> widgets.Widget:
    """Choose pair, method and colouring; hover over or click a point to see its image.

    Args:
        maps: one for each pair and method.
    """
    found = {(m.pair, m.method): m for m in maps}
    pair = _dropdown("pair", [m.pair for m in maps])
    method = _dropdown("features", [m.method for m in maps])
    color = _dropdown("colour", ["class", "domain", "right or wrong"])
    wrong = widgets.Checkbox(description="mistakes only", indent=False)
    picture = widgets.Image(width=160, height=160)
    text = widgets.HTML()
    layout = {
        "width": 560,
        "height": 460,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "plot_bgcolor": "white",
        "xaxis": {"visible": False},
        "yaxis": {"visible": False},
    }
    plot = go.FigureWidget([go.Scatter(mode="markers", hoverinfo="none")], layout)
    (points,) = plot.data
    # Which of the map's images each point of the plot is.
    shown = np.arange(0)

    def redraw(_: object = None) -> None:
        nonlocal shown
        here = found[pair.value, method.value]
        shown = np.flatnonzero((here.labels != here.predictions) | (not wrong.value))
        with plot.batch_update():
            points.x, points.y = here.points[shown].T
            points.marker = {
                "color": _point_colors(here, color.value)[shown].tolist(),
                "symbol": np.where(here.is_source, "circle", "diamond")[shown].tolist(),
                "size": 6,
                "opacity": 0.75,
            }
        picture.layout.visibility = "hidden"
        text.value = f"{len(shown):,} test images: dots source, diamonds target."

    def tell(_: object, chosen: Any, __: object) -> None:
        if not chosen.point_inds:
            return
        here, index = found[pair.value, method.value], shown[chosen.point_inds[0]]
        picture.value = to_png(here.images[index], scale=5)
        picture.layout.visibility = "visible"
        text.value = point_text(here, int(index))

    points.on_hover(tell)
    points.on_click(tell)
    for control in (pair, method, color, wrong):
        control.observe(redraw, names="value")
    redraw()
    controls = widgets.VBox([pair, method, color, wrong, picture, text])
    return widgets.HBox([plot, controls])


def redrawings(runs: Mapping[str, Run[PixelDA]], digits: DigitData) -> widgets.Widget:
    """Pick a pair and a source image, and draw it in the target's style under other noise.

    Args:
        runs: pair -> a PixelDA.
        digits: where the source images come from.
    """
    pair = _dropdown("pair", list(runs))
    digit = _dropdown("digit", [str(number) for number in range(CLASSES)])
    image = widgets.IntSlider(0, 0, 1, description="image", continuous_update=False)
    again = widgets.Button(
        description="Draw the noise again",
        icon="refresh",
        # As wide as its words; in a narrow window the others give way.
        layout={"width": "auto", "flex": "none"},
    )
    source, redrawn = widgets.Image(width=96), widgets.Image()
    draws = 0

    def chosen() -> Tensor:
        test = digits.pairs[pair.value].source.test
        return test.images[test.labels == int(digit.value)]

    def redraw(_: object = None) -> None:
        if not len(images := chosen()):
            source.value = redrawn.value = b""
            return
        image.max = len(images) - 1
        picked = images[image.value]
        method = runs[pair.value].method
        torch.manual_seed(draws)
        versions = method.redraw(picked.expand(VERSIONS, -1, -1, -1), method.noise(VERSIONS))
        source.value = to_png(picked)
        redrawn.value = to_png(torch.cat(list(versions), 2))

    def advance(_: object) -> None:
        nonlocal draws
        draws += 1
        redraw()

    again.on_click(advance)
    for control in (pair, digit, image):
        control.observe(redraw, names="value")
    redraw()
    return widgets.VBox(
        [widgets.HBox([pair, digit, image, again]), widgets.HBox([source, redrawn])]
    )


def point_text(found: FeatureMap, index: int) -> str:
    """What is known of one image of a map, as HTML."""
    source, target = found.pair.split("->")
    domain = source if found.is_source[index] else target
    label, prediction = found.labels[index], found.predictions[index]
    verdict = "right" if label == prediction else "<b>wrong</b>"
    return f"{escape(domain)}: a {label}, taken for a {prediction} ({verdict})"


def _point_colors(found: FeatureMap, by: str) -> np.ndarray:
    if by == "class":
        return np.array(CLASS_COLORS)[found.labels]
    if by == "domain":
        return np.where(found.is_source, SOURCE, TARGET)
    return np.where(found.labels == found.predictions, "#BBBBBB", TARGET)


def _dropdown(name: str, options: Sequence[str]) -> widgets.Dropdown:
    return widgets.Dropdown(description=name, options=list(dict.fromkeys(options)))
