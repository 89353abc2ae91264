"""Every plot of the report. Functions take data and give a figure; none computes a result."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from PIL import Image
from torch import Tensor

plt.style.use(Path(__file__).with_name("report.mplstyle"))

WIDTH = 7.0
"""Width of a full figure in inches."""
CYCLE: list[str] = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
TRAIN, HELD_OUT = CYCLE[0], CYCLE[1]


def to_pixels(images: Tensor) -> np.ndarray:
    """(N, C, H, W), uint8 or float in 0..1 -> (N, H, W, C) uint8."""
    if images.dtype != torch.uint8:
        images = images.mul(255).round().clamp(0, 255).byte()
    return images.permute(0, 2, 3, 1).numpy()


def to_png(image: Tensor, scale: int = 3) -> bytes:
    """One image (C, H, W) as a PNG, enlarged for a widget."""
    buffer = io.BytesIO()
    picture = Image.fromarray(to_pixels(image[None])[0])
    size = (scale * picture.width, scale * picture.height)
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, format="png")
    return buffer.getvalue()


def tile(images: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """Images as one picture with white gaps: (N, C, H, W) -> (H', W', C) uint8."""
    pixels = to_pixels(images)
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255)
    for index, picture in enumerate(pixels):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet.astype(np.uint8)


def image_rows(
    rows: Sequence[Tensor],
    labels: Sequence[str],
    *,
    under: Sequence[str] | None = None,
    over: Sequence[str] | None = None,
    blocks: int = 1,
) -> Figure:
    """Rows of images of equal length under each other, each with its name at the left.

    Args:
        rows: each (N, 3, H, W), uint8 or float in 0..1.
        labels: name of each row.
        under: a text under each column.
        over: a text over each column.
        blocks: how many groups of equally many rows there are, with a gap between them.
    """
    count = len(rows[0])
    margin = 0.95
    cell = (WIDTH - margin) / count
    each = len(rows) // blocks
    heights = ([1.0] * each + [0.4]) * blocks
    figure, axes = plt.subplots(
        len(heights) - 1,
        1,
        height_ratios=heights[:-1],
        figsize=(WIDTH, cell * sum(heights[:-1]) + 0.1 + 0.25 * bool(under or over)),
        squeeze=False,
    )
    for ax in axes[each :: each + 1, 0]:
        ax.remove()
    for index, (ax, row, label) in enumerate(zip(figure.axes, rows, labels, strict=True)):
        sheet = tile(row, count)
        ax.imshow(sheet)
        ax.set_yticks([sheet.shape[0] / 2], [label], fontsize=8.5)
        centres = (np.arange(count) + 0.5) * sheet.shape[1] / count
        texts = under if under and index == len(rows) - 1 else None
        if over and index == 0:
            texts = over
            ax.xaxis.tick_top()
        ax.set_xticks(centres if texts else [], texts or [], fontsize=8)
        _bare(ax)
    return figure


def image_grid(images: Tensor) -> Figure:
    """Images in reading order, eight in a row, as one picture."""
    sheet = tile(images, 8)
    figure, ax = plt.subplots(figsize=(WIDTH, WIDTH * sheet.shape[0] / sheet.shape[1]))
    ax.imshow(sheet)
    ax.set_xticks([])
    ax.set_yticks([])
    _bare(ax)
    return figure


def _bare(ax: Axes) -> None:
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def learning_curves(
    history: pd.DataFrame,
    terms: Sequence[tuple[str, str]],
    marks: Sequence[float] = (),
) -> Figure:
    """Losses over the steps, train and validation, with the learning rate below.

    Args:
        history: columns step, learning_rate, and for each term its name and validation_<name>.
        terms: (name, axis label) of each panel.
        marks: steps at which the learning rate drops or turns, drawn as vertical lines.
    """
    figure, axes = plt.subplots(
        2, len(terms), figsize=(WIDTH, 3.6), sharex=True, height_ratios=(3, 1), squeeze=False
    )
    for (loss_ax, rate_ax), (name, label) in zip(axes.T, terms, strict=True):
        loss_ax.plot(history["step"], history[name], color=TRAIN, label="train", linewidth=1.1)
        held_out = history.dropna(subset=f"validation_{name}")
        loss_ax.plot(
            held_out["step"],
            held_out[f"validation_{name}"],
            "o-",
            color=HELD_OUT,
            label="validation",
            markersize=3.5,
        )
        loss_ax.set_yscale("log")
        loss_ax.set_ylabel(label)
        loss_ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        loss_ax.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        loss_ax.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        rate_ax.plot(history["step"], history["learning_rate"], color="#666666", linewidth=1.2)
        rate_ax.set_ylabel("learning rate")
        rate_ax.ticklabel_format(axis="y", scilimits=(0, 0), useMathText=True)
        rate_ax.set_ylim(bottom=0)
        rate_ax.set_xlabel("training step")
        for ax in (loss_ax, rate_ax):
            for mark in marks:
                ax.axvline(mark, color="#999999", linewidth=0.8, linestyle=":")
    axes[0, 0].legend()
    return figure


def line_panels(
    frame: pd.DataFrame,
    panels: Sequence[tuple[str, dict[str, str]]],
    *,
    levels: dict[str, float] | None = None,
) -> Figure:
    """Columns of a history over the steps, a panel for each axis label.

    Args:
        frame: a column step, and those of the panels; where one is missing, nothing is drawn.
        panels: (axis label, {column: name in the legend}) of each.
        levels: name -> height of a dotted line through the last panel.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.7), squeeze=False)
    for ax, (label, columns) in zip(axes[0], panels, strict=True):
        for color, (column, name) in zip(CYCLE, columns.items(), strict=False):
            seen = frame.dropna(subset=column)
            if seen.empty:
                continue
            sparse = len(seen) < 30
            ax.plot(
                seen["step"],
                seen[column],
                "o-" if sparse else "-",
                color=color,
                label=name,
                linewidth=1.1,
                markersize=3.5,
            )
        ax.set_ylabel(label)
        ax.set_xlabel("training step")
    for name, height in (levels or {}).items():
        axes[0, -1].axhline(height, color="#777777", linewidth=0.9, linestyle=":", label=name)
    for ax in axes[0]:
        if ax.dataLim.ymin >= 0:
            ax.set_ylim(bottom=0)  # last: it ends the axis's growing with what is drawn
        # Above, where no curve can run through it.
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


WIDE = 50
"""Times the lowest value from which on curves are drawn on a logarithmic scale."""


def against_baseline(
    curves: pd.DataFrame, baseline: str, y: tuple[str, str], columns: int
) -> Figure:
    """Small multiples: each variant's mean over the baseline's, filled from lowest to highest seed.

    The scale is logarithmic where one curve would else flatten all others: where values, all above
    0, span more than `WIDE`.

    Args:
        curves: columns variant, seed, step and that of `y`.
        baseline: the variant that every panel shows in grey.
        y: (column, axis label).
        columns: panels in a row.
    """
    names = [name for name in dict.fromkeys(curves["variant"]) if name != baseline]
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 1.65 * rows + 0.3), sharex=True, sharey=True, squeeze=False
    )
    for ax, name in zip(axes.flat, names, strict=False):
        for variant, color in ((baseline, "#888888"), (name, CYCLE[0])):
            table = curves[curves["variant"] == variant].pivot(
                index="step", columns="seed", values=y[0]
            )
            ax.fill_between(
                table.index, table.min(axis=1), table.max(axis=1), color=color, alpha=0.25, lw=0
            )
            ax.plot(table.index, table.mean(axis=1), color=color, linewidth=1.4)
        ax.set_title(name, fontsize=8.5)
    lowest, highest = curves[y[0]].min(), curves[y[0]].max()
    if lowest > 0 and highest > WIDE * lowest:
        axes[0, 0].set_yscale("log")
        axes[0, 0].yaxis.set_major_formatter("{x:g}")
    elif lowest >= 0:
        axes[0, 0].set_ylim(bottom=0)  # of all; last: it ends the axis's growing with what is drawn
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for ax in axes[:, 0]:
        ax.set_ylabel(y[1])
    for ax in axes.flat[max(0, len(names) - columns) : len(names)]:
        ax.set_xlabel("training step")
        ax.xaxis.set_tick_params(labelbottom=True)
    return figure


def scatter_classes(points: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> Figure:
    """A 2-D embedding coloured by class; markers differ as well, for readers without colour.

    Args:
        points: (N, 2).
        classes: (N,) integers.
        names: name of each class, with 0 first.
    """
    figure, ax = plt.subplots(figsize=(WIDTH * 0.62, WIDTH * 0.52))
    markers = "os^Dv<>P*X"
    for index, name in enumerate(names):
        chosen = points[classes == index]
        ax.scatter(
            *chosen.T,
            s=13,
            alpha=0.75,
            linewidths=0.3,
            edgecolors="white",
            color=CYCLE[index % len(CYCLE)],
            marker=markers[index % len(markers)],
            label=f"{name} ({len(chosen)})",
        )
    ax.set_xlabel("t-SNE 1")
    ax.set_ylabel("t-SNE 2")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.legend(markerscale=1.6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def histogram(values: np.ndarray, label: str, marks: dict[str, float]) -> Figure:
    """Distribution of a measure, with named values marked."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.6))
    ax.hist(values, bins=40, color=TRAIN, alpha=0.55, edgecolor="white", linewidth=0.5)
    for (name, value), color in zip(marks.items(), CYCLE[1:], strict=False):
        ax.axvline(value, color=color, linewidth=1.8, label=name)
    ax.set_xlabel(label)
    ax.set_ylabel("test images")
    ax.legend()
    return figure


def tradeoff(frame: pd.DataFrame, x: tuple[str, str], y: tuple[str, str], label: str) -> Figure:
    """Two measures against each other along a sweep: mean of the seeds, each seed as a dot.

    Args:
        frame: one row a run: the columns of `x`, `y` and `label`.
        x: (column, axis label).
        y: (column, axis label).
        label: the swept column, in the order of the sweep; its value is written at each point.
    """
    figure, ax = plt.subplots(figsize=(WIDTH * 0.75, 3.4))
    means = frame.groupby(label, sort=False)[[x[0], y[0]]].mean()
    ax.plot(means[x[0]], means[y[0]], "-", color="#aaaaaa", zorder=1)
    for color, (value, row) in zip(itertools.cycle(CYCLE), means.iterrows(), strict=False):
        seeds = frame[frame[label] == value]
        ax.scatter(seeds[x[0]], seeds[y[0]], s=18, color=color, alpha=0.55, linewidths=0)
        ax.scatter(row[x[0]], row[y[0]], s=60, color=color, edgecolors="white", zorder=3)
        ax.annotate(
            str(value),
            (row[x[0]], row[y[0]]),
            xytext=(7, 6),
            textcoords="offset points",
            fontsize=9,
            color=color,
            fontweight="bold",
        )
    ax.set_xlabel(x[1])
    ax.set_ylabel(y[1])
    ax.margins(0.12)
    return figure


def paired_bars(frame: pd.DataFrame, measures: Sequence[tuple[str, str]], group: str) -> Figure:
    """Each measure in a panel: a bar a variant at the seeds' mean, each seed as a dot.

    Args:
        frame: one row a run: `group` and the measures' columns.
        measures: (column, axis label) of each panel.
        group: the column that names the variant; its order of appearance is kept.
    """
    names = list(dict.fromkeys(frame[group]))
    figure, axes = plt.subplots(
        1, len(measures), figsize=(WIDTH, 0.36 * len(names) + 0.9), sharey=True, squeeze=False
    )
    for ax, (column, label) in zip(axes[0], measures, strict=True):
        for index, name in enumerate(names):
            values = frame.loc[frame[group] == name, column].to_numpy()
            ax.barh(index, values.mean(), color=CYCLE[0] if index == 0 else CYCLE[5], height=0.62)
            ax.plot(values, np.full(len(values), index), "o", color="#222222", markersize=3.2)
        ax.set_xlabel(label)
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="y", visible=False)
    axes[0, 0].invert_yaxis()
    return figure


class Block(NamedTuple):
    """A weight layer and what follows it.

    Attributes:
        name: what is written above.
        shape: of what leaves it, as text.
        channels: of that.
        side: of that; 1 is a vector.
        beside: whether it is fed by what feeds the block before it, not by that block.
    """

    name: str
    shape: str
    channels: int
    side: int
    beside: bool


def architecture(rows: Sequence[Sequence[Block]], names: Sequence[str]) -> Figure:
    """Networks as blocks from left to right, heights by spatial size, widths by channels.

    Args:
        rows: the blocks of each network.
        names: of the networks.
    """
    figure, axes = plt.subplots(len(rows), 1, figsize=(WIDTH, 2.15 * len(rows)), squeeze=False)
    for ax, blocks, name in zip(axes[:, 0], rows, names, strict=True):
        _draw_blocks(ax, blocks)
        ax.set_title(name)
    return figure


def _draw_blocks(ax: Axes, blocks: Sequence[Block]) -> None:
    """Boxes in a row on a 100-wide canvas, each drawn as a slab in shallow perspective."""
    step = 100 / len(blocks)
    ax.set_xlim(0, 100)
    ax.set_ylim(-17, 17)
    ax.set_aspect("equal")
    ax.axis("off")
    for index, block in enumerate(blocks):
        x = (index + 0.5) * step
        height = 2.5 + 15.5 * np.log2(block.side + 1) / np.log2(65)
        width = min(0.55 * step, 0.8 + 0.55 * np.log2(block.channels + 1))
        color = CYCLE[4] if block.side == 1 else CYCLE[0]
        _slab(ax, x, width, height, color)
        ax.text(x, -11.2, block.shape, ha="center", va="top", fontsize=7.5, color="#333333")
        ax.text(x, 12.2, block.name, ha="center", va="bottom", fontsize=7.5, color="#333333")
        if index and not block.beside:
            ax.add_patch(
                FancyArrowPatch(
                    (x - step + 0.32 * step, 0),
                    (x - 0.32 * step, 0),
                    arrowstyle="-|>",
                    mutation_scale=8,
                    color="#777777",
                    linewidth=0.9,
                )
            )


def _slab(ax: Axes, x: float, width: float, height: float, color: str) -> None:
    depth = 0.1 * height
    left, right, low, high = x - width / 2, x + width / 2, -height / 2, height / 2
    dark, light = mpl.colors.to_rgba(color, 0.75), mpl.colors.to_rgba(color, 0.35)
    ax.add_patch(
        FancyBboxPatch(
            (left, low),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.25",
            facecolor=dark,
            edgecolor="white",
            linewidth=0.6,
        )
    )
    top = [(left, high), (left + depth, high + depth), (right + depth, high + depth), (right, high)]
    edge = [
        (right, low),
        (right + depth, low + depth),
        (right + depth, high + depth),
        (right, high),
    ]
    for corners in (top, edge):
        ax.add_patch(Polygon(corners, facecolor=light, edgecolor="white", linewidth=0.6))
