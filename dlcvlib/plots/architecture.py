"""Networks as rows of blocks."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from dlcvlib.evaluation.layers import blocks
from dlcvlib.plots.style import CYCLE, WIDTH, with_values

PER_ROW = 8
"""Blocks in a row, so that their texts fit."""


def architecture(networks: Mapping[str, pd.DataFrame]) -> Figure:
    """Networks as blocks from left to right: heights by spatial size, widths by channels.

    Small networks share a row, long ones continue in the next.

    Args:
        networks: title -> its `evaluation.layers.layers`.
    """
    frames = {name: blocks(layers) for name, layers in networks.items()}
    rows: list[list[tuple[str, pd.DataFrame]]] = [[]]
    for name, frame in frames.items():
        for start in range(0, len(frame), PER_ROW):
            part = frame[start : start + PER_ROW]
            if sum(len(others) for _, others in rows[-1]) + len(part) > PER_ROW:
                rows.append([])
            rows[-1].append((f"{name}, continued" if start else name, part))
    heights = [max(_height(part["side"]).max() for _, part in row) + 13 for row in rows]
    step = 100 / max(sum(len(part) for _, part in row) for row in rows)
    size = (WIDTH, WIDTH * sum(heights) / 100)
    figure, axes = plt.subplots(len(rows), 1, height_ratios=heights, figsize=size, squeeze=False)
    for ax, row, height in zip(axes[:, 0], rows, heights, strict=True):
        ax.set(xlim=(0, 100), ylim=(0, height), aspect="equal")
        ax.axis("off")
        x = 0.0
        for name, part in row:
            ax.text(x, height, name, va="top", fontsize=9.5, fontweight="bold")
            _draw(ax, part, x, step, (height - 3) / 2)
            x += step * len(part)
    return with_values(figure, pd.concat(frames, names=["network"]).reset_index("network"))


def _height(side: pd.Series | int) -> pd.Series | float:
    return 2.5 + 15.5 * np.log2(side + 1) / np.log2(65)


def _draw(ax: Axes, frame: pd.DataFrame, left: float, step: float, middle: float) -> None:
    """Blocks in a row, `step` wide each, with arrows between those that feed each other."""
    top = _height(frame["side"]).max() / 2 + 1.8
    text = {"ha": "center", "fontsize": 7.5, "color": "#333333"}
    for index, block in enumerate(frame.itertuples()):
        x = left + (index + 0.5) * step
        width = min(0.55 * step, 0.8 + 0.55 * np.log2(block.channels + 1))
        color = CYCLE[4] if block.side == 1 else CYCLE[0]
        _slab(ax, x, middle, width, _height(block.side), color)
        ax.text(x, middle + top, block.name, va="bottom", **text)
        ax.text(x, middle - top + 0.8, block.shape, va="top", **text)
        if index and not block.beside:
            ends = (x - 0.68 * step, middle), (x - 0.32 * step, middle)
            line = {"mutation_scale": 8, "color": "#777777", "linewidth": 0.9}
            ax.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", **line))


def _slab(ax: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    """A box in shallow perspective, its front centred on x and y."""
    depth = 0.1 * height
    left, right, low, high = x - width / 2, x + width / 2, y - height / 2, y + height / 2
    edge = {"edgecolor": "white", "linewidth": 0.6}
    dark, light = mpl.colors.to_rgba(color, 0.75), mpl.colors.to_rgba(color, 0.35)
    box = {"boxstyle": "round,pad=0,rounding_size=0.25", "facecolor": dark, **edge}
    ax.add_patch(FancyBboxPatch((left, low), width, height, **box))
    corner = (right + depth, high + depth)
    top = [(left, high), (left + depth, high + depth), corner, (right, high)]
    side = [(right, low), (right + depth, low + depth), corner, (right, high)]
    for face in (top, side):
        ax.add_patch(Polygon(face, facecolor=light, **edge))
