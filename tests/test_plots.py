"""Each plot draws small data, labels its axes, keeps its values and hides nothing."""

import base64
import io
import itertools
import re
from types import SimpleNamespace
from unittest.mock import MagicMock

import matplotlib as mpl
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path
from PIL import Image
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from dlcvlib.config import profiles
from dlcvlib.config.paths import NOTEBOOKS
from dlcvlib.data.types import LabelledImages
from dlcvlib.evaluation import layers
from dlcvlib.plots import architecture, curves, domains, images, style, widgets
from dlcvlib.report import notebook

FACES = torch.rand(4, 3, 64, 64)
LABELS = torch.arange(30) % 10
DIGITS = LabelledImages(LABELS[:, None, None, None].expand(30, 3, 32, 32).byte() * 20, LABELS)
PAIR = "usps->mnistm"
# Every target image is at the same place.
POINTS = pd.DataFrame({"x": [*range(15), *[20] * 15], "source": np.arange(30) < 15})
POINTS = POINTS.assign(y=POINTS["x"], label=LABELS.numpy(), prediction=np.arange(30) % 7)
MAP = SimpleNamespace(pair=PAIR, method="DANN", images=DIGITS.images, points=POINTS)
SMALL = (1, 3, 32, 32)
CONV = layers.layers(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 16, 16))


def runs(**measures):
    """Two seeds of two variants on one pair, two steps and two digits each."""
    keys = itertools.product(["source only", "DANN"], [0, 1], [1, 2])
    rows = [{"variant": v, "method": v, "pair": PAIR, "seed": s, "step": t} for v, s, t in keys]
    return pd.DataFrame(rows).assign(**measures, digit=lambda frame: frame["step"])


@pytest.fixture(autouse=True)
def styled():
    with mpl.rc_context():
        style.use()
        yield
    plt.close("all")


MUCH = {
    images.image_rows: [[FACES] * 20, ["a"] * 20],
    domains.feature_maps: [[[MAP] * 3] * 2, "domain"],
    architecture.architecture: [{"F": architecture.Node("F", 0, 0, pd.concat([CONV] * 20))}, []],
}


@pytest.mark.parametrize("plot", MUCH)
def test_much_fits_a_page(plot):
    figure = plot(*MUCH[plot]).get_figure()
    figure.draw_without_rendering()
    assert figure.get_size_inches().max() <= 1.1 * style.WIDTH


def assert_readable(figure):
    """Texts are within it, apart from each other and from arrows, but for a mark on its own."""
    figure.draw_without_rendering()
    (ax,) = figure.axes
    marks = [text.get_bbox_patch() for text in ax.texts]
    shapes = [mark or text for mark, text in zip(marks, ax.texts, strict=True)]
    boxes, frame = [shape.get_window_extent() for shape in shapes], figure.bbox.padded(1)
    assert all(frame.count_contains(box.corners()) == 4 for box in boxes)
    assert not [a for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    paths = [ax.transData.transform_path(arrow.get_path()) for arrow in arrows]
    ways = [[Path(line) for line in path.to_polygons(closed_only=False)] for path in paths]
    for mark, box in zip(marks, boxes, strict=True):
        crossing = [way for way in ways if any(line.intersects_bbox(box, False) for line in way)]
        assert len(crossing) == (mark is not None)


@pytest.mark.parametrize("problem", ["1-1", "2-1", "3-5", "4-3"])
def test_drawings_of_the_report_are_readable(problem, monkeypatch):
    """Those of profile `quick`, by the notebooks' own cells, of networks that nothing trained."""
    data = MagicMock(pairs={PAIR: MagicMock()})
    data.train.images = FACES
    monkeypatch.setattr("dlcvlib.data.faces.load_faces", lambda _: data)
    monkeypatch.setattr("dlcvlib.data.digits.load_digits", lambda _: data)
    monkeypatch.setattr("dlcvlib.evaluation.features.measured", lambda *_: data)
    untrained = "dlcvlib.training.runs.train_or_load"
    monkeypatch.setattr(untrained, lambda kind, how, *_: SimpleNamespace(method=kind(how)))
    (path,) = NOTEBOOKS.glob(f"{problem}-*.ipynb")
    sources = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    found = {"params": profiles.load("quick", list(profiles.CHAPTERS)[int(problem[0]) - 1])}
    used = re.compile(r"layers\.layers\(|train_or_load|Node\(")
    for source in filter(used.search, sources):
        exec(source, found)
        if "nodes = {" in source:
            assert_readable(found["architecture"](found["nodes"], found["edges"]))
    assert found["nodes"]


@pytest.mark.parametrize("channels", [8, 24])
def test_blocks_come_from_the_modules_and_gradients_from_the_edges(channels):
    module = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.ReLU())
    frame = layers.layers(module, (1, 3, 32, 32))
    nodes = {
        "F": architecture.Node("F", 0, 0, frame, ["b"]),
        "seen": architecture.Node("x", 1, 0),
        **{name: architecture.Node(name, 2, row, loss=True) for row, name in enumerate("abc")},
    }
    ways = [{"passes": ["a"]}, {"reverses": ["b"]}, {"stops": ["c"]}]
    pairs = [("F", "seen"), ("seen", "b"), ("b", "c")]
    edges = [architecture.Edge(*pair, **way) for pair, way in zip(pairs, ways, strict=True)]
    figure = architecture.architecture(nodes, edges)
    (ax,) = figure.axes
    assert_readable(figure)
    texts = {text.get_text(): text.get_color() for text in ax.texts}
    assert {str(channels), "16²", "Conv 3×3/2 ReLU"} < texts.keys()
    colors = dict(zip("abc", style.CYCLE, strict=False))
    assert {name: texts[name] for name in "abc"} == colors
    assert (texts["−λ"], texts["✕"]) == (colors["b"], colors["c"])
    (dot,) = (to_hex(group.get_facecolor()[0]) for group in ax.collections)
    assert dot == colors["b"].lower()
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    data, back = arrows[::2], arrows[1::2]
    assert [to_hex(arrow.get_edgecolor()) for arrow in back] == [c.lower() for c in colors.values()]
    assert [arrow.get_linestyle() for arrow in back] == ["-", "-", "--"]
    assert data[0].get_path().vertices[0, 0] < back[0].get_path().vertices[0, 0]


def test_names_in_other_scripts_are_drawn(recwarn):
    """Chinese, Japanese and Korean are; nothing ends in an error."""
    text = plt.figure().text(0, 0, "性别 眼鏡 めがね 안경 Ω")
    text.figure.draw_without_rendering()
    assert not [str(w.message) for w in recwarn if "Glyph" in str(w.message)]
    text.set_text("نظارة चश्मा 😀 \U0010ffff")
    text.figure.draw_without_rendering()


def test_rows_are_stacked_pairs_separated_and_missing_digits_grey():
    some = DIGITS.labels != 4
    row = images.digit_row(LabelledImages(DIGITS.images[some], DIGITS.labels[some]))
    ax = images.image_rows([row] * 4, list("abcd"), over=images.DIGITS, blocks=2)
    assert [label.get_text() for label in ax.get_yticklabels()] == list("abcd")
    assert [label.get_text() for label in ax.get_xticklabels()] == images.DIGITS
    first, between, last = np.diff(ax.get_yticks()) - 32
    assert between > 4 * first == 4 * last
    sheet = ax.images[0].get_array()[16, :, 0]
    assert sheet[::34].tolist() == [128 if digit == 4 else 20 * digit for digit in range(10)]


@pytest.mark.parametrize(("rows", "labels"), [(2, ["a", "a long name of a row"]), (6, [""] * 6)])
def test_each_pixel_is_a_square_of_whole_dots(rows, labels):
    ax = images.image_rows([FACES] * rows, labels, over=["text"] * 4)
    assert ax.figure.get_size_inches()[0] <= style.WIDTH
    buffer = io.BytesIO(base64.b64decode(notebook._picture(ax.figure, "")["image/png"]))
    pixels = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    for axis in (0, 1):
        line = np.take(pixels, pixels.shape[1 - axis] - 60, 1 - axis)
        edges = np.flatnonzero(np.abs(np.diff(line, axis=0)).sum(1))
        lengths = np.diff(edges)[-64 * 2 :]
        scale = lengths.min()
        assert scale > 1
        assert not (lengths % scale).any()


@pytest.mark.parametrize("losses", [[0.1, 0.2, 0.3], [0.5, 0, -0.4]])
def test_losses_below_zero_are_visible_and_what_was_not_measured_is_not(losses):
    history = pd.DataFrame({"step": [1, 2, 3], "loss": losses, "kid": [None] * 3})
    panels = [("loss", {"loss": "train", "kid": "KID"})]
    (ax,) = curves.line_panels(history, panels).axes
    low, _ = ax.get_ylim()
    assert low == 0 <= min(losses) or low < min(losses) < 0
    assert ax.get_legend_handles_labels()[1] == ["train"]


def test_long_curves_are_smoothed_with_the_measured_ones_behind():
    history = pd.DataFrame({"step": range(400), "loss": np.arange(400) % 2})
    raw, smooth = curves.line_panels(history, [("loss", {"loss": "train"})]).axes[0].lines
    assert raw.get_ydata().tolist() == history["loss"].tolist()
    assert raw.get_color() == smooth.get_color()
    assert raw.get_alpha() < 1
    assert np.abs(smooth.get_ydata() - 0.5).max() < 0.1


def test_a_forest_has_a_row_for_each_claim():
    rows = {"low": -1.0, "high": 1.0, "difference": 0.0, "verdict": "inconclusive", "measure": "m"}
    ax = curves.forest(pd.DataFrame({"claim": ["flips help", "b"]}).assign(**rows)).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["flips help", "b"]


def test_bars_are_means_dots_are_runs_and_a_method_has_one_colour():
    frame = runs(accuracy=np.arange(8.0))
    both = domains.method_bars(frame, {"DANN": {PAIR: 0.5, "other": 0.9}})
    assert [bar.get_height() for bar in both.patches[:2]] == [1.5, 5.5]
    spreads, dots, reported = (both.collections[n::3] for n in range(3))
    heights = np.concatenate([group.get_offsets()[:, 1] for group in dots])
    assert sorted(heights) == list(range(8))
    ends = [line.get_segments()[0][:, 1].tolist() for line in spreads]
    assert ends == [[0, 3], [4, 7]]
    assert [text.get_text() for text in both.texts] == ["150", "550"]
    assert reported[0].get_segments()[0].size == 0
    assert reported[1].get_segments()[0] == pytest.approx(np.array([[0, 0.5], [0.4, 0.5]]))
    for n in range(2):
        drawn = both.patches[n], *(group[n] for group in (spreads, dots, reported)), both.texts[n]
        assert all(part.get_gid().startswith(f"method-{n}-") for part in drawn)
    alone = domains.method_bars(frame.query("method == 'DANN'"), {})
    colors = {mpl.colors.to_hex(bar.get_facecolor()) for bar in (both.patches[1], alone.patches[0])}
    assert colors == {style.METHOD_COLORS["DANN"].lower()}


def test_multiply_adds_are_those_of_weights_biases_and_norms():
    """Looking at a network, of which one weight is parametrised here, leaves it as it is."""
    down = spectral_norm(nn.Conv2d(3, 8, 3, stride=2, bias=False))
    up = nn.ConvTranspose2d(8, 4, 4, stride=2)
    rest = nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 5)
    network = nn.Sequential(down, up, *rest).eval()
    table = layers.layers(network, (1, 3, 16, 16))
    network(torch.rand(1, 3, 16, 16))
    names = ["Conv 3×3, stride 2", "ConvT 4×4, stride 2", "BN", "ReLU", "Linear"]
    assert table["layer"].tolist() == names
    # A transposed convolution's weights meet each of 7 × 7 pixels in, its bias each of 16 × 16 out.
    convolutions = [8 * 27 * 49, 8 * 4 * 16 * 49 + 4 * 256]
    assert table["mult_adds"].tolist() == [*convolutions, 4 * 256, 0, 5 * (4 * 256 + 1)]
    assert table["parameters"].sum() == sum(p.numel() for p in network.parameters())
    shown = layers.together(net=table)
    assert shown["layer"].tolist() == [names[0], f"{names[1]} + BN + ReLU", "Linear"]
    assert shown["mult_adds"].sum() == table["mult_adds"].sum()


def test_a_map_can_show_what_is_misclassified():
    plot, panel = widgets.feature_maps([MAP]).children
    panel.children[0].children[2].value = "errors"
    wrong = POINTS["label"] != POINTS["prediction"]
    assert (np.array(plot.data[0].marker.color) == style.TARGET).tolist() == wrong.tolist()
    assert domains.point_texts(MAP)[28] == "MNIST-M: 8 classified as 0"
