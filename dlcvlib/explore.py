"""Widgets for JupyterLab: what is better explored than read.

Headless, a widget shows nothing; the figures before it are its stills.
"""

from collections.abc import Mapping

import ipywidgets as widgets
import torch
from torch import Tensor

from dlcvlib.figures import to_png
from dlcvlib.vae import VAE


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
