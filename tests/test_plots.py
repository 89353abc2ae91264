"""Each plot draws small data, labels its axes, keeps its values and hides nothing."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import built
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from torch import nn

from dlcvlib.data.types import LabelledImages
from dlcvlib.evaluation import layers
from dlcvlib.plots import architecture, curves, domains, images, style, widgets

FACES = torch.rand(4, 3, 64, 64)
LABELS = torch.arange(30) % 10
DIGITS = LabelledImages(LABELS[:, None, None, None].expand(30, 3, 32, 32).byte() * 20, LABELS)
PAIR = "usps->mnistm"
MAP = SimpleNamespace(
    pair=PAIR,
    method="DANN",
    images=DIGITS.images,
    points=np.random.default_rng(0).normal(size=(30, 2)),
    is_source=np.arange(30) < 15,
    labels=LABELS.numpy(),
    predictions=np.arange(30) % 7,
)
BLOCKS = [layers.Block("Conv", "8×16×16", 8, 16, False), layers.Block("Linear", "10", 10, 1, False)]
HISTORY = pd.DataFrame({"step": [1, 2, 3], "loss": [0.1, 0.2, 0.3], "kid": [None] * 3})


def runs(**measures):
    """Two seeds of two variants on one pair, two steps and two digits each."""
    keys = itertools.product(["plain", "a"], [0, 1], [1, 2])
    rows = [{"variant": v, "method": v, "pair": PAIR, "seed": s, "step": t} for v, s, t in keys]
    return pd.DataFrame(rows).assign(**measures, digit=lambda frame: frame["step"])


PLOTS = {
    "image_grid": lambda: images.image_grid(FACES),
    "image_rows": lambda: images.image_rows([FACES, FACES], ["a", "b"], under=list("1234")),
    "line_panels": lambda: curves.line_panels(HISTORY, [("loss", {"loss": "train"})]),
    "against_baseline": lambda: curves.against_baseline(runs(kid=1.0), "plain", "kid", "KID"),
    "schedules": lambda: curves.schedules({"rising": (np.arange(3) / 2, np.arange(3))}, "weight"),
    "method_bars": lambda: domains.method_bars(runs(accuracy=0.4), {"plain": {PAIR: 0.5}}),
    "by_digit": lambda: domains.by_digit(runs(change=-0.1), "change", "change of accuracy"),
    "maps_by_domain": lambda: domains.feature_maps([[MAP]], "domain"),
    "maps_by_class": lambda: domains.feature_maps([[MAP]], "class"),
    "architecture": lambda: architecture.architecture({"F": BLOCKS, "L": BLOCKS[1:]}),
}
PICTURES = {"image_grid", "image_rows", "maps_by_domain", "maps_by_class"}
UNLABELLED = PICTURES | {"architecture"}


@pytest.fixture(autouse=True)
def styled():
    with mpl.rc_context():
        style.use()
        yield
    plt.close("all")


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_fits_a_page_and_keeps_its_values(name):
    drawn = PLOTS[name]()
    assert isinstance(drawn, Figure | Axes)
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    figure.draw_without_rendering()
    assert isinstance(figure.values, pd.DataFrame)
    assert len(figure.values)
    assert figure.get_size_inches().max() <= 1.1 * style.WIDTH
    if name not in UNLABELLED:
        assert figure.get_supylabel() or figure.axes[0].get_xlabel() or figure.axes[0].get_ylabel()


def test_the_users_matplotlibrc_is_ignored(tmp_path):
    (tmp_path / "matplotlibrc").write_text("image.origin: lower\nfont.size: 30\nbackend: svg\n")
    script = (
        "import matplotlib as mpl\n"
        "from dlcvlib.plots import curves, domains, images, style, widgets\n"
        "assert mpl.rcParams['image.origin'] == 'lower', 'importing changed the style'\n"
        "style.use()\n"
        "print(mpl.rcParams['image.origin'], mpl.rcParams['font.size'], mpl.get_backend())"
    )
    environment = {"MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["upper", "9.0", "svg"]


def test_values_follow_figures_and_axes():
    figure, ax = plt.subplots()
    frame = pd.DataFrame({"x": [1]})
    assert style.with_values(ax, frame) is ax
    assert style.with_values(figure, frame) is figure
    assert figure.values is frame


def test_names_of_domains_are_those_of_the_papers():
    assert style.pair_name(PAIR) == "USPS → MNIST-M"
    assert style.domain_name("other") == "other"


def test_rows_are_stacked_and_pairs_separated():
    rows = images.digit_rows(DIGITS, 2)
    ax = images.image_rows(rows * 2, list("abcd"), over=images.DIGITS, blocks=2)
    assert [label.get_text() for label in ax.get_yticklabels()] == list("abcd")
    assert [label.get_text() for label in ax.get_xticklabels()] == images.DIGITS
    gaps = np.diff(ax.get_yticks()) - 32
    assert gaps[1] > 4 * gaps[0] == 4 * images.GAP
    sheet = ax.images[0].get_array()
    assert (sheet[16, 3 * 34 : 3 * 34 + 32] == 60).all()


def test_a_missing_digit_leaves_a_grey_cell():
    some = DIGITS.labels != 4
    (row,) = images.digit_rows(LabelledImages(DIGITS.images[some], DIGITS.labels[some]))
    assert row.shape == (10, 3, 32, 32)
    assert (row[4] == 128).all()
    assert (row[5] == 100).all()


def test_a_level_above_the_curves_is_visible():
    panels = [("loss", {"loss": "train"})]
    figure = curves.line_panels(HISTORY, panels, levels={"real images": 1.0})
    low, high = figure.axes[0].get_ylim()
    assert low == 0 < 1.0 < high


def test_unmeasured_columns_are_not_in_the_legend():
    figure = curves.line_panels(HISTORY, [("loss", {"loss": "train", "kid": "KID"})])
    assert figure.axes[0].get_legend_handles_labels()[1] == ["train"]


def test_losses_below_zero_are_visible():
    figure = curves.line_panels(HISTORY.assign(loss=[0.5, 0, -0.4]), [("loss", {"loss": "train"})])
    assert figure.axes[0].get_ylim()[0] < -0.4


@pytest.mark.parametrize(
    ("low", "high", "scale"), [(0.3, 40.0, "log"), (0.3, 2.0, "linear"), (-0.1, 40.0, "linear")]
)
def test_no_variants_curve_is_cut_off_or_flattened(low, high, scale):
    frame = runs(kid=[low] * 4 + [high] * 4)
    figure = curves.against_baseline(frame, "plain", "kid", "KID")
    (ax,) = figure.axes
    assert ax.get_yscale() == scale
    bottom, top = ax.get_ylim()
    assert bottom < low < high < top
    assert [text.get_text() for text in figure.legends[0].texts] == ["plain", "a"]


def test_a_method_has_one_colour_wherever_it_is_drawn():
    frame = runs(accuracy=0.4).replace({"plain": "source only", "a": "DANN"})
    bars = domains.method_bars(frame, {}).patches
    assert mpl.colors.to_hex(bars[1].get_facecolor()) == style.METHOD_COLORS["DANN"].lower()
    alone = domains.method_bars(frame.query("method == 'DANN'"), {}).patches
    assert alone[0].get_facecolor() == bars[1].get_facecolor()


def test_bars_are_means_and_dots_are_runs():
    ax = domains.method_bars(runs(accuracy=np.arange(8.0)), {})
    assert [bar.get_height() for bar in ax.patches[:2]] == [1.5, 5.5]
    dots = np.concatenate([np.asarray(c.get_offsets())[:, 1] for c in ax.collections])
    assert sorted(dots) == list(range(8))


@pytest.mark.parametrize(("pairs", "methods"), list(itertools.product([1, 2, 3], [2, 3])))
def test_maps_of_any_number_of_pairs_fit_a_page(pairs, methods):
    for by in ("domain", "class"):
        figure = domains.feature_maps([[MAP] * pairs] * methods, by)
        width, height = figure.get_size_inches()
        assert width <= style.WIDTH
        assert height <= 1.1 * style.WIDTH
        assert len(figure.axes) == pairs * methods


def test_digits_on_a_map_do_not_cover_each_other():
    places = domains._spread(np.zeros((10, 2)), 1.0)
    distances = np.linalg.norm(places[:, None] - places, axis=2)[~np.eye(10, dtype=bool)]
    assert distances.min() > 0.8


def test_multiply_adds_of_a_transposed_convolution_count_input_pixels():
    layer = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
    (count,) = layers.layers(nn.Sequential(layer), (1, 8, 5, 5))["mult_adds"]
    # Each of 25 pixels in meets each weight; each of 100 out, in 4 channels, adds its bias.
    assert count == 25 * 8 * 4 * 16 + 4 * 100


def test_arrows_join_only_connected_blocks():
    """The encoder's two heads are side by side; PixelDA's image is joined with the mapped noise."""
    encoder = layers.blocks(layers.layers(built("vae", channels=[4, 8]).encoder, (1, 3, 64, 64)))
    assert [block.beside for block in encoder] == [False, False, False, True]
    generator = built("pixelda", latent_dim=8, residual_blocks=1).generator
    table = layers.layers(generator, [(1, 3, 32, 32), (1, 8)])
    assert not any(block.beside for block in layers.blocks(table))
    (ax,) = architecture.architecture({"E": encoder}).axes
    assert sum(isinstance(patch, FancyArrowPatch) for patch in ax.patches) == 2


def test_small_networks_share_a_row_and_long_ones_continue_in_the_next():
    figure = architecture.architecture({"F": BLOCKS * 6, "L": BLOCKS, "D": BLOCKS[1:]})
    first, second = ([text.get_text() for text in ax.texts] for ax in figure.axes)
    assert first.count("8×16×16") == 4
    assert {"F, continued", "L", "D"} <= set(second)
    assert len(figure.values) == 15


def inside(widget):
    """The widget and everything that it contains."""
    return [widget, *(w for child in getattr(widget, "children", ()) for w in inside(child))]


def control(widget, name):
    (found,) = [w for w in inside(widget) if getattr(w, "description", None) == name]
    return found


def test_a_map_can_show_misclassified_images_only():
    explorer = widgets.feature_maps([MAP])
    (plot,) = [w for w in inside(explorer) if hasattr(w, "data")]
    assert len(plot.data[0].x) == 30
    control(explorer, "misclassified only").value = True
    assert len(plot.data[0].x) == (MAP.labels != MAP.predictions).sum()
    assert widgets.point_text(MAP, 1) == "USPS: 1 classified as 1 (correct)"
    assert widgets.point_text(MAP, 28) == "MNIST-M: 8 classified as 0 (<b>misclassified</b>)"
