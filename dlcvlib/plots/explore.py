"""Widgets for JupyterLab: what is better explored than read.

Headless, a widget shows nothing; the figures before it are its stills.
"""

from collections.abc import Mapping

import ipywidgets as widgets
import torch
from torch import Tensor

from dlcvlib.evaluation.latent import slerp
from dlcvlib.methods.dcgan import DCGAN
from dlcvlib.methods.vae import VAE, prior_samples
from dlcvlib.plots.figures import tile, to_png

DRAWN = 16
"""Samples of a generator shown at a time."""


def latent_space(
    model: VAE, images: Tensor, latents: Tensor, directions: Mapping[str, Tensor]
) -> widgets.Widget:
    """Choose a face, push it along attributes, morph it into another.

    Args:
        model: the trained VAE.
        images: faces to choose from, (N, 3, 64, 64) uint8.
        latents: their latent means, (N, D).
        directions: attribute -> direction, (D,).
    """
    face = _slider("face", 1, len(images), 1, 1)
    other = _slider("morph into", 1, len(images), 1, min(2, len(images)))
    share = _slider("how far", 0.0, 1.0, 0.05, 0.0)
    pushes = {name: _slider(name, -3.0, 3.0, 0.25, 0.0) for name in directions}
    before, after = widgets.Image(width=192, height=192), widgets.Image(width=192, height=192)
    reset = widgets.Button(description="Reset", icon="undo")

    def redraw(_: object = None) -> None:
        start, end = latents[face.value - 1], latents[other.value - 1]
        z = torch.lerp(start, end, share.value)
        z = z + sum(slider.value * directions[name] for name, slider in pushes.items())
        before.value = to_png(images[face.value - 1])
        after.value = to_png(model.decode(z[None])[0])

    def clear(_: object) -> None:
        for slider in (share, *pushes.values()):
            slider.value = 0.0

    for control in (face, other, share, *pushes.values()):
        control.observe(redraw, names="value")
    reset.on_click(clear)
    redraw()
    pictures = widgets.HBox([_titled("a test face", before), _titled("decoded", after)])
    sliders = widgets.VBox([face, other, share, *pushes.values(), reset])
    return widgets.HBox([sliders, pictures])


def generators(models: Mapping[int, DCGAN], latent_dim: int) -> widgets.Widget:
    """Draw new samples, walk from each to the next draw, and look at earlier checkpoints.

    Args:
        models: step -> the DCGAN as it was then.
        latent_dim: length of z.
    """
    steps = list(models)
    after = widgets.SelectionSlider(
        description="after step", options=steps, value=steps[-1], style={"description_width": "9em"}
    )
    draw = _slider("draw", 1, 100, 1, 1)
    share = _slider("walk to the next", 0.0, 1.0, 0.05, 0.0)
    new = widgets.Button(description="New samples", icon="random")
    picture = widgets.Image(width=1056, height=264)

    def redraw(_: object = None) -> None:
        here, there = (prior_samples(DRAWN, latent_dim, draw.value + k) for k in (0, 1))
        images = models[after.value].sample(slerp(here, there, share.value))
        sheet = torch.from_numpy(tile(images, DRAWN // 2)).permute(2, 0, 1)
        picture.value = to_png(sheet, scale=2)

    def advance(_: object) -> None:
        draw.value = draw.value % draw.max + 1

    for control in (after, draw, share):
        control.observe(redraw, names="value")
    new.on_click(advance)
    redraw()
    return widgets.VBox([widgets.HBox([widgets.VBox([after, draw, share]), new]), picture])


def _slider(name: str, low: float, high: float, step: float, value: float) -> widgets.Widget:
    kind = widgets.IntSlider if isinstance(step, int) else widgets.FloatSlider
    return kind(
        description=name,
        min=low,
        max=high,
        step=step,
        value=value,
        style={"description_width": "9em"},
    )


def _titled(title: str, picture: widgets.Image) -> widgets.Widget:
    return widgets.VBox([widgets.Label(title), picture])
