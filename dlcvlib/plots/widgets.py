"""The widget of feature maps for JupyterLab; without a browser it shows nothing."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from dlcvlib.plots.images import to_png
from dlcvlib.plots.style import CLASS_COLORS, SOURCE, TARGET, domain_name, pair_name


def feature_maps(maps: Sequence[Any]) -> widgets.Widget:
    """Choose pair, method and colours; hover over or click a point to see its image.

    Args:
        maps: a `FeatureMap` for each pair and method.
    """
    chosen = {(m.pair, m.method): m for m in maps}
    pair = _dropdown("pair", [m.pair for m in maps])
    method = _dropdown("features", [m.method for m in maps])
    color = _dropdown("colour", ["class", "domain", "errors"])
    wrong = widgets.Checkbox(description="misclassified only", indent=False)
    picture = widgets.Image(width=160, height=160)
    text = widgets.HTML()
    hidden = {"visible": False}
    margin = {"l": 8, "r": 8, "t": 8, "b": 8}
    layout = {"width": 560, "height": 460, "margin": margin, "xaxis": hidden, "yaxis": hidden}
    layout["plot_bgcolor"] = "white"
    plot = go.FigureWidget([go.Scatter(mode="markers", hoverinfo="none")], layout)
    (points,) = plot.data
    # The index in the map of each point that is drawn.
    drawn = np.arange(0)

    def show(_: object = None) -> None:
        nonlocal drawn
        one = chosen[pair.value, method.value]
        drawn = np.flatnonzero((one.labels != one.predictions) | (not wrong.value))
        with plot.batch_update():
            points.x, points.y = one.points[drawn].T
            points.marker = {
                "color": _point_colors(one, color.value)[drawn].tolist(),
                "symbol": np.where(one.is_source, "circle", "diamond")[drawn].tolist(),
                "size": 6,
                "opacity": 0.75,
            }
        picture.layout.visibility = "hidden"
        text.value = f"{len(drawn):,} test images: dots source, diamonds target."

    def describe(_: object, event: Any, __: object) -> None:
        if event.point_inds:
            one, index = chosen[pair.value, method.value], int(drawn[event.point_inds[0]])
            picture.value = to_png(one.images[index], scale=5)
            picture.layout.visibility = "visible"
            text.value = point_text(one, index)

    points.on_hover(describe)
    points.on_click(describe)
    controls = [pair, method, color, wrong]
    for control in controls:
        control.observe(show, names="value")
    show()
    return widgets.HBox([plot, widgets.VBox([*controls, picture, text])])


def point_text(one: Any, index: int) -> str:
    """Domain, label and prediction of one image of a `FeatureMap`, as HTML."""
    source, target = one.pair.split("->")
    domain = escape(domain_name(source if one.is_source[index] else target))
    label, prediction = one.labels[index], one.predictions[index]
    verdict = "correct" if label == prediction else "<b>misclassified</b>"
    return f"{domain}: {label} classified as {prediction} ({verdict})"


def _point_colors(one: Any, by: str) -> np.ndarray:
    return {
        "class": np.array(CLASS_COLORS)[one.labels],
        "domain": np.where(one.is_source, SOURCE, TARGET),
        "errors": np.where(one.labels == one.predictions, "#BBBBBB", TARGET),
    }[by]


def _dropdown(name: str, values: Iterable[str]) -> widgets.Dropdown:
    options = {pair_name(value): value for value in values}
    return widgets.Dropdown(description=name, options=list(options.items()))
