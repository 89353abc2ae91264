"""What a reader would miss in a picture: curves in full, lines in their order."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch
from torch import nn

from dlcvlib.evaluation import layers
from dlcvlib.methods import pixelda, vae
from dlcvlib.plots import figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_level_above_the_curves_is_seen():
    history = pd.DataFrame({"step": [1, 2, 3], "loss": [0.1, 0.2, 0.3]})
    figure = figures.line_panels(history, [("loss", {"loss": "loss"})], levels={"real images": 1.0})
    low, high = figure.axes[0].get_ylim()
    assert low == 0 < 1.0 < high


def test_what_was_not_measured_has_no_place_in_the_legend():
    history = pd.DataFrame({"step": [1, 2], "kid": [0.5, 0.2], "kid_averaged": [None, None]})
    figure = figures.line_panels(history, [("KID", {"kid": "now", "kid_averaged": "averaged"})])
    assert figure.axes[0].get_legend_handles_labels()[1] == ["now"]


def test_losses_below_zero_are_seen():
    history = pd.DataFrame({"step": [1, 2], "loss": [0.5, -0.4]})
    figure = figures.line_panels(history, [("loss", {"loss": "generator"})])
    assert figure.axes[0].get_ylim()[0] < -0.4


def test_no_variants_curve_is_cut_off():
    heights = {"plain": 1.0, "a": 2.0, "b": 8.0}
    curves = pd.DataFrame(
        {"variant": name, "seed": seed, "step": step, "kid": height}
        for name, height in heights.items()
        for seed in (0, 1)
        for step in (1, 2)
    )
    figure = figures.against_baseline(curves, "plain", ("kid", "KID"), columns=2)
    assert all(ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 8.0 for ax in figure.axes)


def test_a_sweeps_line_keeps_its_order():
    weights = ["1e-05", "0.01", "0.1", "1"]
    runs = pd.DataFrame({"weight": weights, "error": [1, 2, 3, 4], "kid": [4, 3, 2, 1]})
    figure = figures.tradeoff(runs, ("error", "error"), ("kid", "KID"), "weight")
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 3, 4]
    assert [text.get_text() for text in figure.axes[0].texts] == weights


def test_multiply_adds_of_a_transposed_convolution_count_what_goes_in():
    layer = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
    (count,) = layers.layers(nn.Sequential(layer), (1, 8, 5, 5))["mult_adds"]
    # Each of 25 pixels in meets each weight; each of 100 out, in 4 channels, adds its bias.
    assert count == 25 * 8 * 4 * 16 + 4 * 100


def beside(network, *shapes):
    return [block.beside for block in layers.blocks(layers.layers(network, shapes))]


def test_only_what_feeds_a_block_has_an_arrow_to_it():
    """The encoder's two heads stand side by side; PixelDA's image joins the spread noise."""
    encoder = vae.Encoder((4, 8), latent_dim=16)
    assert beside(encoder, (1, 3, 64, 64)) == [False, False, False, True]
    generator = pixelda.Generator(latent_dim=8, channels=4, blocks=1)
    assert not any(beside(generator, (1, 3, 32, 32), (1, 8)))
    figure = figures.architecture([layers.blocks(layers.layers(encoder, (1, 3, 64, 64)))], ["E"])
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == 2


@pytest.mark.parametrize(
    ("values", "scale"), [([0.3, 40.0], "log"), ([0.3, 3.0], "linear"), ([-0.1, 40.0], "linear")]
)
def test_a_curve_that_runs_away_does_not_flatten_the_others(values, scale):
    curves = pd.DataFrame({"variant": ["plain", "a"], "seed": 0, "step": 1, "kid": values})
    figure = figures.against_baseline(curves, "plain", ("kid", "KID"), columns=1)
    assert figure.axes[0].get_yscale() == scale
