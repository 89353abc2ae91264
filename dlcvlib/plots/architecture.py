"""Drawings of networks with their data flow: what feeds what, and where gradients go."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from dlcvlib.evaluation.layers import blocks
from dlcvlib.plots.style import CYCLE, DARK, WIDTH, text_width, with_values

FONT, LINE = 7.6, 0.13
"""Size of the text in points, and height of a line in inches."""
PITCH = 0.34, 0.11
"""Widths of a block with a label and without, in inches."""
ROW, GAPS = 0.85, (0.3, 0.7)
"""Distance of two rows, and least and greatest gap between two columns, in inches."""
CENTRED = {"ha": "center", "va": "center", "fontsize": FONT}
MAP, VECTOR = "#b9c5d1", "#e6d7b1"
"""Colours of feature maps and of vectors."""


@dataclass
class Node:
    """Data, a network or a loss in a drawing; its `width`, `height`, `x` and `y` are in inches.

    Args:
        text: what stands in it, or over a network.
        column: its column, counted from the left; each is as wide as its widest node.
        row: its row, counted from the top; it may lie between two.
        layers: of a network, its `evaluation.layers.layers`.
        trained_by: of a network, the names of the losses that its weights are updated by.
        loss: whether it is a loss.
    """

    text: str
    column: int
    row: float
    layers: pd.DataFrame | None = None
    trained_by: Sequence[str] = ()
    loss: bool = False

    def __post_init__(self) -> None:
        lines = self.text.split("\n")
        self.width, self.height = 0.16 + text_width(lines, FONT), 0.1 + LINE * len(lines)
        if self.layers is None:
            return
        self.frame = frame = blocks(self.layers)
        shapes, beside = frame[["channels", "side"]], frame["beside"]
        self.labelled = shapes.ne(shapes.shift()).any(axis=1)
        # The second of two heads is drawn under the first.
        pitches = np.where(self.labelled, *PITCH) * ~beside
        self.places = pitches.cumsum() - pitches.where(~beside, pitches.shift()) / 2
        self.tall = np.where(frame["side"] == 1, 0.24, 0.12 * np.log2(frame["side"]))
        operations = [f"{n}× {one}" if n > 1 else one for one, n in Counter(frame["name"]).items()]
        self.operations = "\n".join(operations)
        title = 1.22 * self.width + 0.12 * len(self.trained_by)  # in bold type, and dots
        self.width = max(pitches.sum() + 0.1, text_width(operations, FONT) + 0.16, title)
        self.height = self.tall.max() + 0.62 + LINE * len(operations)

    def ends(self, axis: int) -> np.ndarray:
        """Where it begins and ends from left to right (0) or from bottom to top (1)."""
        centre, size = ((self.x, self.width), (self.y, self.height))[axis]
        return centre + np.array([-0.5, 0.5]) * size


@dataclass
class Edge:
    """Data that flow from one node to another, and what happens to gradients on the way back.

    Args:
        source: name of a node.
        target: name of a node.
        passes: names of the losses whose gradients go back from target to source.
        reverses: of those that do so with their sign reversed, and a weight.
        stops: of those that do not.
    """

    source: str
    target: str
    passes: Sequence[str] = ()
    reverses: Sequence[str] = ()
    stops: Sequence[str] = ()


def architecture(nodes: Mapping[str, Node], edges: Sequence[Edge]) -> Figure:
    """Networks, data and losses from left to right; data flow in grey, gradients in colours.

    A network's blocks come from its modules: heights are sides of feature maps, widths grow with
    channels. Over a block is its number of channels, under it its side, where they change. The dots
    beside a network's name have the colours of the losses that train it.

    Args:
        nodes: name -> node.
        edges: between them; gradients run against their direction.
    """
    size = _place(list(nodes.values()))
    figure, ax = plt.subplots(figsize=size)
    ax.set(xlim=(0, size[0]), ylim=(0, size[1]), aspect="equal")
    ax.axis("off")
    colors = dict(zip((n for n, node in nodes.items() if node.loss), CYCLE, strict=False))
    for name, node in nodes.items():
        corner, color = (node.ends(0)[0], node.ends(1)[0]), colors.get(name)
        style = {"boxstyle": "round,pad=0,rounding_size=0.06", "facecolor": "white"}
        style |= {"edgecolor": color or "#aaaaaa", "linewidth": 1.1 if color else 0.8}
        ax.add_patch(FancyBboxPatch(corner, node.width, node.height, **style))
        if node.layers is not None:
            _network(ax, node, [colors[loss] for loss in node.trained_by])
        else:
            ax.text(node.x, node.y - 0.01, node.text, color=color or DARK, **CENTRED)
    for edge in edges:
        _connect(ax, _route(nodes[edge.source], nodes[edge.target]), edge, colors)
    frames = {name: node.frame for name, node in nodes.items() if node.layers is not None}
    return with_values(figure, pd.concat(frames, names=["network"]).reset_index("network"))


def _place(nodes: Sequence[Node]) -> tuple[float, float]:
    """Give every node its centre; returns width and height of all."""
    columns = range(1 + max(node.column for node in nodes))
    widths = np.array([max(n.width for n in nodes if n.column == one) for one in columns])
    gap = np.clip((WIDTH - 0.04 - widths.sum()) / max(1, len(widths) - 1), *GAPS)
    centres = 0.02 + widths.cumsum() - widths / 2 + gap * np.arange(len(widths))
    for node in nodes:
        node.x, node.y = centres[node.column], -ROW * node.row
    bottom, top = min(n.ends(1)[0] for n in nodes), max(n.ends(1)[1] for n in nodes)
    for node in nodes:
        node.y += 0.03 - bottom
    return centres[-1] + widths[-1] / 2 + 0.02, top - bottom + 0.06


def _network(ax: Axes, node: Node, trained_by: Sequence[str]) -> None:
    """A network's name, the dots of its losses, its blocks and what they compute."""
    (left, right), (bottom, top) = node.ends(0), node.ends(1)
    frame, high, low = node.frame, top - 0.36, top - 0.36 - node.tall.max()
    ax.text(left + 0.07, top - 0.12, node.text, va="center", fontsize=FONT + 0.5, weight="bold")
    for number, color in enumerate(trained_by):
        ax.scatter(right - 0.1 - 0.11 * number, top - 0.12, s=20, color=color)
    places = (left + right - node.places.max() - node.places.min()) / 2 + node.places
    shift = 0.14 * frame["beside"].shift(-1, fill_value=False) - 0.14 * frame["beside"]
    look = {"color": np.where(frame["side"] == 1, VECTOR, MAP), "edgecolor": "#55606e"}
    starts, widths = (high + low - node.tall) / 2 + shift, 0.03 + 0.008 * np.log2(frame["channels"])
    ax.bar(places, node.tall, widths, starts, linewidth=0.5, **look)
    text = {"ha": "center", "fontsize": FONT - 0.5, "color": "#444444"}
    for block in frame.assign(place=places)[node.labelled].itertuples():
        ax.text(block.place, high + 0.02, str(block.channels), va="bottom", **text)
        if block.side > 1:
            ax.text(block.place, low - 0.02, f"{block.side}²", va="top", **text)
    ax.text(node.x, bottom + 0.06, node.operations, va="bottom", linespacing=1.3, **text)


def _connect(ax: Axes, path: np.ndarray, edge: Edge, colors: Mapping[str, str]) -> None:
    """The arrow of the data, and beside it one for each gradient, in the other direction."""
    look = {"mutation_scale": 7, "linewidth": 1.0, "capstyle": "butt"}
    ax.add_patch(FancyArrowPatch(path=Path(path), color="#666666", arrowstyle="-|>", **look))
    for number, loss in enumerate([*edge.passes, *edge.reverses, *edge.stops], 1):
        marked, stopped = loss not in edge.passes, loss in edge.stops
        back, color = _beside(path, 0.09 * number + 0.06 * marked)[::-1], colors[loss]
        line, tip = ("--", "-") if stopped else ("-", "-|>")
        ax.add_patch(FancyArrowPatch(path=Path(back), color=color, ls=line, arrowstyle=tip, **look))
        if marked:
            longest = np.linalg.norm(np.diff(back, axis=0), axis=1).argmax()
            circle = {"boxstyle": "circle,pad=0.05", "facecolor": "white", "edgecolor": color}
            middle = back[longest : longest + 2].mean(0)
            ax.text(*middle, "✕" if stopped else "−λ", bbox=circle, color=color, **CENTRED)


def _route(source: Node, target: Node) -> np.ndarray:
    """Corners of the way from one node to another: (2 to 4, 2)."""
    (_, start), (end, _) = source.ends(0), target.ends(0)
    (low, high), (bottom, top) = source.ends(1), target.ends(1)
    below = source.y > target.y
    if source.column == target.column:  # straight up or down
        return np.array([(source.x, low if below else high), (source.x, top if below else bottom)])
    if min(high, top) - max(low, bottom) > 0.2:  # straight, where both are
        y = (min(high, top) + max(low, bottom)) / 2
        return np.array([(start, y), (end, y)])
    if target.column - source.column > 1:  # below or above what lies between them
        leaves = low if below else high
        return np.array([(source.x, leaves), (source.x, target.y), (end, target.y)])
    margin = min(0.3, 0.3 * target.height)
    turn, y = (start + end) / 2, np.clip(source.y, bottom + margin, top - margin)
    return np.array([(start, source.y), (turn, source.y), (turn, y), (end, y)])


def _beside(path: np.ndarray, distance: float) -> np.ndarray:
    """A path moved down, or to the right if it is vertical; its bends keep their distance."""
    if path[0, 0] == path[1, 0]:
        return path + np.array([distance, 0])
    moved = path - np.array([0, distance])
    moved[1:-1, 0] += distance * np.sign(path[-1, 1] - path[0, 1])
    return moved
