"""Accuracies and feature maps of domain adaptation (chapters 3 and 4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dlcvlib.data.types import CLASSES
from dlcvlib.plots import style
from dlcvlib.plots.style import pair_name, with_values


def method_bars(
    frame: pd.DataFrame,
    references: Mapping[str, Mapping[str, float]],
    ax: Axes | None = None,
) -> Axes:
    """Accuracy of each method on each pair: bars at the mean of the seeds, each seed a dot.

    Args:
        frame: one row per run: method, pair, seed, accuracy.
        references: method -> pair -> the original's accuracy, drawn as a short line.
        ax: where to draw; a new figure by default.
    """
    import seaborn as sns  # loads slowly, and few notebooks need it

    pairs, methods = list(frame["pair"].unique()), list(frame["method"].unique())
    colors = {method: style.METHOD_COLORS.get(method, style.CYCLE[5]) for method in methods}
    ax = ax or plt.subplots(figsize=(style.WIDTH, 3.0))[1]
    common = {"data": frame, "x": "pair", "y": "accuracy", "hue": "method", "ax": ax}
    sns.barplot(**common, palette=colors, errorbar=None, width=0.8, saturation=1)
    dots = {"palette": dict.fromkeys(colors, style.DARK), "size": 3.2, "jitter": False}
    sns.stripplot(**common, dodge=True, legend=False, **dots)
    width = 0.8 / len(methods)
    places = [
        (x - 0.4 + number * width, references[method][pair])
        for x, pair in enumerate(pairs)
        for number, method in enumerate(methods)
        if pair in references.get(method, {})
    ]
    if places:
        left, heights = np.array(places).T
        ax.hlines(heights, left, left + width, color="black", lw=1.4, zorder=5, label="original")
    ax.axhline(1 / CLASSES, color=style.GREY, linewidth=0.8, linestyle=":", label="chance")
    ax.set(xlabel="", ylabel="accuracy on the target test set", ylim=(0, 1))
    ax.set_xticks(range(len(pairs)), map(pair_name, pairs))
    ax.grid(axis="x", visible=False)
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "columnspacing": 1.2}
    ax.legend(**above, handlelength=1.4, ncols=len(methods) + 2)
    return with_values(ax, frame[["method", "pair", "seed", "accuracy"]])


def by_digit(frame: pd.DataFrame, column: str, label: str) -> Figure:
    """A share for each digit: bars at the mean of the seeds, red below zero; each seed a dot.

    Args:
        frame: one row per pair, seed and digit: pair, seed, digit, and the column.
        column: the share, -1 to 1.
        label: its axis label.
    """
    pairs = list(frame["pair"].unique())
    layout = {"figsize": (style.WIDTH, 2.6), "sharex": True, "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(1, len(pairs), **layout)
    for ax, pair in zip(axes[0], pairs, strict=True):
        rows = frame[frame["pair"] == pair]
        means = rows.groupby("digit")[column].mean()
        colors = np.where(means < 0, style.TARGET, style.SOURCE)
        ax.bar(means.index, means, color=colors, width=0.7, alpha=0.8)
        ax.plot(rows["digit"], rows[column], "o", color=style.DARK, markersize=2.5)
        ax.axhline(0, color=style.GREY, linewidth=0.8)
        ax.set(title=pair_name(pair), xlabel="digit", xticks=range(CLASSES))
        ax.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(label)
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    return with_values(figure, frame[["pair", "seed", "digit", column]])


def feature_maps(maps: Sequence[Sequence[Any]], by: str) -> Figure:
    """t-SNE plots, a row per method and a column per pair.

    Args:
        maps: rows of `FeatureMap`.
        by: "domain" (blue source, red target) or "class" (ten colours, each digit written near the
            centre of its target images).
    """
    rows, columns = len(maps), len(maps[0])
    side = style.WIDTH / max(rows, columns)  # more rows of wider maps would not fit a page
    size = (side * columns, side * rows + 0.3)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    flat = [one for row in maps for one in row]
    for ax, one in zip(axes.flat, flat, strict=True):
        (_by_domain if by == "domain" else _by_class)(one, ax)
        ax.set(xticks=[], yticks=[], title=f"{pair_name(one.pair)}\n{one.method}")
        ax.title.set_fontsize(8.5)
        ax.grid(False)
        ax.spines[:].set(visible=True, color="#cccccc")
        ax.margins(0.03)
    names = {"source": style.SOURCE, "target": style.TARGET}
    if by == "class":
        names = {str(digit): color for digit, color in enumerate(style.CLASS_COLORS)}
    dots = [plt.Line2D([], [], ls="", marker="o", ms=5, color=color) for color in names.values()]
    spacing = {"handletextpad": 0.1, "columnspacing": 1.0}
    figure.legend(dots, list(names), loc="outside lower center", ncols=len(names), **spacing)
    frames = [
        pd.DataFrame(one.points, columns=["x", "y"]).assign(
            pair=one.pair, method=one.method, source=one.is_source, label=one.labels
        )
        for one in flat
    ]
    return with_values(figure, pd.concat(frames, ignore_index=True))


def _by_domain(one: Any, ax: Axes) -> None:
    # Shuffled, so that neither domain hides the other.
    order = np.random.default_rng(0).permutation(len(one.points))
    colors = np.where(one.is_source, style.SOURCE, style.TARGET)
    ax.scatter(*one.points[order].T, s=5, c=colors[order], alpha=0.6, linewidths=0)


def _by_class(one: Any, ax: Axes) -> None:
    colors = np.array(style.CLASS_COLORS)[one.labels]
    ax.scatter(*one.points.T, s=np.where(one.is_source, 4, 7), c=colors, alpha=0.65, linewidths=0)
    digits = np.unique(one.labels[~one.is_source])
    of_digit = [one.points[(one.labels == digit) & ~one.is_source] for digit in digits]
    text = {"fontsize": 9, "fontweight": "bold", "ha": "center", "va": "center"}
    text["path_effects"] = [patheffects.withStroke(linewidth=2.2, foreground="white")]
    centres = np.array([_centre(points) for points in of_digit])
    for digit, place in zip(digits, _spread(centres, 0.06 * np.ptp(one.points)), strict=True):
        ax.text(*place, str(digit), color=style.CLASS_COLORS[digit], **text)


def _centre(points: np.ndarray) -> np.ndarray:
    """The point nearest to the median, which itself may lie between two clusters."""
    return points[np.linalg.norm(points - np.median(points, 0), axis=1).argmin()]


def _spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Places moved apart until each is at least about `gap` from all others: (N, 2)."""
    places = places + 1e-3 * gap * np.random.default_rng(0).normal(size=places.shape)
    for _ in range(100):
        offsets = places[:, None] - places
        distance = np.linalg.norm(offsets, axis=2, keepdims=True)
        push = np.clip(gap - distance, 0, None) / np.maximum(distance, 1e-9)
        places = places + 0.5 * (push * offsets).sum(1)
    return places
