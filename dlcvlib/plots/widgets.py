"""The widget of feature maps for JupyterLab; without a browser it shows nothing."""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from dlcvlib.plots.domains import point_texts
from dlcvlib.plots.images import to_png
from dlcvlib.plots.style import CLASS_COLORS, SOURCE, TARGET, pair_name


def feature_maps(maps: Sequence[Any]) -> widgets.Widget:
    """Choose pair, method and colours; hover over or click a point to see its image.

    Args:
        maps: a `FeatureMap` for each pair and method.
    """
    by_name = {(pair_name(one.pair), one.method): one for one in maps}
    picture, text = widgets.Image(width=160, height=160), widgets.HTML()
    layout = {"width": 560, "height": 460, "margin": dict.fromkeys("lrtb", 8)}
    layout |= {"plot_bgcolor": "white", "xaxis_visible": False, "yaxis_visible": False}
    marker = {"size": 6, "opacity": 0.75}
    plot = go.FigureWidget([go.Scatter(mode="markers", hoverinfo="none", marker=marker)], layout)
    (dots,) = plot.data

    def show(pair: str, features: str, colour: str) -> None:
        points = by_name[pair, features].points
        looks = {
            "class": np.array(CLASS_COLORS)[points["label"]],
            "domain": np.where(points["source"], SOURCE, TARGET),
            "errors": np.where(points["label"] != points["prediction"], TARGET, "#BBBBBB"),
        }
        symbols = np.where(points["source"], "circle", "diamond")
        with plot.batch_update():
            dots.x, dots.y = points["x"], points["y"]
            dots.marker.update(color=looks[colour].tolist(), symbol=symbols.tolist())
        picture.layout.visibility = "hidden"
        text.value = f"{len(points):,} test images: dots source, diamonds target."

    def describe(_: go.Scatter, event: Any, __: object) -> None:
        if event.point_inds:
            one = by_name[controls.kwargs["pair"], controls.kwargs["features"]]
            index = event.point_inds[0]
            picture.value = to_png(one.images[index], scale=5)
            picture.layout.visibility = "visible"
            text.value = point_texts(one)[index]

    dots.on_hover(describe)
    dots.on_click(describe)
    pairs, methods = (list(dict.fromkeys(names)) for names in zip(*by_name, strict=True))
    choices = {"pair": pairs, "features": methods, "colour": ["class", "domain", "errors"]}
    controls = widgets.interactive(show, **choices)
    return widgets.HBox([plot, widgets.VBox([controls, picture, text])])
