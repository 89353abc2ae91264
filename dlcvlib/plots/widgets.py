"""Widgets for JupyterLab; without a browser they show nothing: figures before them are stills."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from dlcvlib.data.types import CLASSES, LabelledImages
from dlcvlib.evaluation.latent import slerp
from dlcvlib.plots.images import tile, to_png
from dlcvlib.plots.style import CLASS_COLORS, SOURCE, TARGET, domain_name, pair_name

Model = Callable[[Tensor], Tensor]
"""From N latents or images to N images, (N, 3, H, W), floats in 0..1 or uint8."""
SAMPLES = 16
"""Samples of a generator shown at a time."""
VERSIONS = 6
"""Translations of an image shown at a time."""


def latent_space(
    decode: Model, images: Tensor, latents: Tensor, directions: Mapping[str, Tensor]
) -> widgets.Widget:
    """Choose a face, move it along attributes, morph it into another.

    Args:
        decode: (N, D) latents -> images.
        images: faces to choose from, (N, 3, 64, 64) uint8.
        latents: their latent means, (N, D).
        directions: attribute -> direction, (D,).
    """
    face = _slider("face", 1, len(images), 1, 1)
    other = _slider("morph into", 1, len(images), 1, min(2, len(images)))
    share = _slider("how far", 0.0, 1.0, 0.05, 0.0)
    shifts = {name: _slider(name, -3.0, 3.0, 0.25, 0.0) for name in directions}
    before, after = widgets.Image(width=192, height=192), widgets.Image(width=192, height=192)

    def show() -> None:
        z = torch.lerp(latents[face.value - 1], latents[other.value - 1], share.value)
        z = z + sum(slider.value * directions[name] for name, slider in shifts.items())
        before.value = to_png(images[face.value - 1])
        after.value = to_png(decode(z[None])[0])

    def clear() -> None:
        for slider in (share, *shifts.values()):
            slider.value = 0.0

    controls = [face, other, share, *shifts.values()]
    _watch(controls, show)
    titled = {"test image": before, "decoded": after}
    pictures = [widgets.VBox([widgets.Label(name), image]) for name, image in titled.items()]
    reset = _button("Reset", "undo", clear)
    return widgets.HBox([widgets.VBox([*controls, reset]), widgets.HBox(pictures)])


def generators(samplers: Mapping[int, Model], latent_dim: int) -> widgets.Widget:
    """Draw new samples, walk from each to the next draw, and look at earlier checkpoints.

    Args:
        samplers: step -> the generator as it was then, (N, latent_dim) noise -> images.
        latent_dim: length of the noise vector.
    """
    steps = list(samplers)
    after = widgets.SelectionSlider(
        description="after step", options=steps, value=steps[-1], style={"description_width": "9em"}
    )
    draw = _slider("draw", 1, 100, 1, 1)
    share = _slider("walk to the next", 0.0, 1.0, 0.05, 0.0)
    picture = widgets.Image(width=1056, height=264)

    def noise(seed: int) -> Tensor:
        return torch.randn(SAMPLES, latent_dim, generator=torch.Generator().manual_seed(seed))

    def show() -> None:
        z = slerp(noise(draw.value), noise(draw.value + 1), share.value)
        sheet = tile(samplers[after.value](z), SAMPLES // 2)
        picture.value = to_png(torch.from_numpy(sheet).permute(2, 0, 1), scale=2)

    def advance() -> None:
        draw.value = draw.value % draw.max + 1

    controls = [after, draw, share]
    _watch(controls, show)
    new = _button("New samples", "random", advance)
    return widgets.VBox([widgets.HBox([widgets.VBox(controls), new]), picture])


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

    def show() -> None:
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
    _watch(controls, show)
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


def translations(pairs: Mapping[str, tuple[LabelledImages, Model]]) -> widgets.Widget:
    """Choose a pair and a source image, and translate it under other noise.

    Args:
        pairs: pair -> source images, and what translates such images under new noise from PyTorch's
            default generator.
    """
    pair = _dropdown("pair", list(pairs))
    digit = _dropdown("digit", [str(number) for number in range(CLASSES)])
    number = widgets.IntSlider(0, 0, 1, description="image", continuous_update=False)
    original, translated = widgets.Image(width=96), widgets.Image()
    draws = 0

    def show() -> None:
        data, translate = pairs[pair.value]
        images = data.images[data.labels == int(digit.value)]
        if not len(images):
            original.value = translated.value = b""
            return
        number.max = len(images) - 1
        torch.manual_seed(draws)
        versions = translate(images[number.value].expand(VERSIONS, -1, -1, -1))
        original.value = to_png(images[number.value])
        translated.value = to_png(torch.cat(list(versions), 2))

    def advance() -> None:
        nonlocal draws
        draws += 1
        show()

    controls = [pair, digit, number]
    _watch(controls, show)
    again = _button("New noise", "refresh", advance)
    return widgets.VBox([widgets.HBox([*controls, again]), widgets.HBox([original, translated])])


def _watch(controls: Iterable[widgets.Widget], show: Callable[[], None]) -> None:
    """Show, now and whenever a control changes."""
    for control in controls:
        control.observe(lambda _: show(), names="value")
    show()


def _button(name: str, icon: str, act: Callable[[], None]) -> widgets.Button:
    # As wide as its text; in a narrow window the others give way.
    layout = {"width": "auto", "flex": "none"}
    button = widgets.Button(description=name, icon=icon, layout=layout)
    button.on_click(lambda _: act())
    return button


def _slider(name: str, low: float, high: float, step: float, value: float) -> widgets.Widget:
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    style = {"description_width": "9em"}
    return kind(description=name, min=low, max=high, step=step, value=value, style=style)


def _dropdown(name: str, values: Iterable[str]) -> widgets.Dropdown:
    options = {pair_name(value): value for value in values}
    return widgets.Dropdown(description=name, options=list(options.items()))
