"""Networks as rows of blocks."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlcvlib.evaluation.layers import blocks
from dlcvlib.plots.style import CYCLE, WIDTH, with_values

PER_ROW = 8
"""Blocks in a row, so that their texts fit."""


def architecture(networks: Mapping[str, pd.DataFrame]) -> Figure:
    """Networks as blocks from left to right: heights by spatial size, widths by channels.

    Args:
        networks: title -> its `evaluation.layers.layers`.
    """
    frames = {name: blocks(layers) for name, layers in networks.items()}
    rows = [
        (f"{name}, continued" if start else name, frame[start : start + PER_ROW])
        for name, frame in frames.items()
        for start in range(0, len(frame), PER_ROW)
    ]
    heights = [5.5 + np.log2(part["side"].max() + 1) for _, part in rows]
    size, longest = (WIDTH, 0.15 * sum(heights)), max(len(part) for _, part in rows)
    figure, axes = plt.subplots(len(rows), height_ratios=heights, figsize=size, squeeze=False)
    for ax, (name, part), height in zip(axes.flat, rows, heights, strict=True):
        ax.set(xlim=(-0.5, longest - 0.5), ylim=(1 - height / 2, 1 + height / 2))
        ax.axis("off")
        ax.text(-0.5, 1 + height / 2, name, va="top", fontsize=9.5, fontweight="bold")
        _draw(ax, part)
    return with_values(figure, pd.concat(frames, names=["network"]).reset_index("network"))


def _draw(ax: Axes, frame: pd.DataFrame) -> None:
    """Blocks in a row, with arrows between those that feed each other."""
    heights, widths = (np.log2(frame[name] + 1) for name in ("side", "channels"))
    colors = np.where(frame["side"] == 1, CYCLE[4], CYCLE[0])
    places = np.arange(len(frame))
    ax.bar(places, heights, 0.05 + 0.05 * widths, -heights / 2, color=colors, alpha=0.75)
    text = {"ha": "center", "fontsize": 7.5, "color": "#333333"}
    top = heights.max() / 2 + 0.3
    for x, block in enumerate(frame.itertuples()):
        ax.text(x, top, block.name, va="bottom", **text)
        ax.text(x, -top, block.shape, va="top", **text)
        if x and not block.beside:
            arrow = {"arrowstyle": "-|>", "color": "#777777", "linewidth": 0.9}
            ax.annotate("", (x - 0.32, 0), (x - 0.68, 0), arrowprops=arrow)
