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
from dlcvlib.plots import images, style
from dlcvlib.plots.style import pair_name, with_values


def method_bars(frame: pd.DataFrame, references: Mapping[str, Mapping[str, float]]) -> Axes:
    """Accuracy of each method on each pair: bars at the mean of the seeds, each seed a dot.

    At a bar's foot is its mean in per cent; a line spans its seeds. All that is drawn of a
    method has its number in its id, by which the HTML hides it.

    Args:
        frame: one row per run: method, pair, seed, accuracy.
        references: method -> pair -> the original's accuracy, drawn as a short line.
    """
    pairs, methods = list(frame["pair"].unique()), list(frame["method"].unique())
    _, ax = plt.subplots(figsize=(style.WIDTH, 3.0))
    width = 0.8 / len(methods)
    reported = pd.DataFrame(references).reindex(index=pairs, columns=methods)
    badge = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
    text = {"ha": "center", "fontsize": 7.5, "color": style.DARK, "bbox": badge}
    for number, method in enumerate(methods):
        before = ax.get_children()
        runs = frame[frame["method"] == method]
        places = runs["pair"].map(pairs.index) - 0.4 + width * (number + 0.5)
        spread = runs["accuracy"].groupby(places).agg(["mean", "min", "max"])
        bars = {"color": style.METHOD_COLORS[method], "label": method}
        ax.bar(spread.index, spread["mean"], width, **bars)
        ax.vlines(spread.index, spread["min"], spread["max"], color=style.DARK, linewidth=0.9)
        ax.scatter(places, runs["accuracy"], s=9, color=style.DARK, zorder=3)
        for x, mean in spread["mean"].items():
            ax.text(x, 0.025, f"{100 * mean:.0f}", **text)
        original = {"color": "black", "lw": 1.4, "zorder": 5, "label": "" if number else "original"}
        left = np.arange(len(pairs)) - 0.4 + width * number
        ax.hlines(reported[method], left, left + width, **original)
        for n, drawn in enumerate(part for part in ax.get_children() if part not in before):
            drawn.set_gid(f"method-{number}-{n}")
    ax.figure.methods = methods
    ax.axhline(1 / CLASSES, color=style.GREY, linewidth=0.8, linestyle=":", label="chance")
    ax.set(xlabel="", ylabel="accuracy on the target test set", ylim=(0, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xticks(range(len(pairs)), map(pair_name, pairs))
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "columnspacing": 0.9}
    ax.legend(**above, handlelength=1, handletextpad=0.5, ncols=len(methods) + 2)
    return with_values(ax, frame[["method", "pair", "seed", "accuracy"]])


def by_digit(frame: pd.DataFrame, column: str, label: str) -> Figure:
    """A share for each digit in per cent: bars at the seeds' mean, red below zero; seeds as dots.

    Args:
        frame: one row per pair, seed and digit: pair, seed, digit, and the column.
        column: the share, -1 to 1.
        label: its axis label.
    """
    pairs = list(frame["pair"].unique())
    size = (style.WIDTH, 2.0)
    figure, axes = plt.subplots(1, len(pairs), figsize=size, sharey=True, squeeze=False)
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
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, symbol=None))
    return with_values(figure, frame[["pair", "seed", "digit", column]])


def feature_maps(maps: Sequence[Sequence[Any]], by: str) -> Figure:
    """t-SNE plots, a row per method and a column per pair, each named once.

    Args:
        maps: rows of `FeatureMap`.
        by: "domain" (blue source, red target) or "class" (ten colours, each digit written near the
            centre of its target images).
    """
    rows, columns = len(maps), len(maps[0])
    side = style.WIDTH / max(rows, columns)  # more rows of wider maps would not fit a page
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, side * rows), squeeze=False)
    flat = [one for row in maps for one in row]
    for ax, one in zip(axes.flat, flat, strict=True):
        (_by_domain if by == "domain" else _by_class)(one.points, ax)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set(visible=True, color="#cccccc")
        ax.margins(0.03)
    for ax, one in zip(axes[0], maps[0], strict=True):
        ax.set_title(pair_name(one.pair))
    for ax, row in zip(axes[:, 0], maps, strict=True):
        ax.set_ylabel(row[0].method)
    if by == "domain":
        colors = (style.SOURCE, style.TARGET)
        dots = [plt.Line2D([], [], ls="", marker="o", ms=5, color=color) for color in colors]
        figure.legend(dots, ["source", "target"], loc="outside lower center", ncols=2)
    frames = [one.points.assign(pair=one.pair, method=one.method) for one in flat]
    frame = pd.concat(frames, ignore_index=True).round({"x": 2, "y": 2})
    places = [one.points[["x", "y"]].to_numpy() for one in flat]
    texts = [text for one in flat for text in point_texts(one)]
    pictures = np.concatenate([images.to_pixels(one.images) for one in flat])
    figure.points = dict(zip(axes.flat, places, strict=True)), pictures, texts
    return with_values(figure, frame)


def point_texts(one: Any) -> list[str]:
    """Domain, label and prediction of each image of a `FeatureMap`."""
    target, source = map(style.domain_name, reversed(one.pair.split("->")))
    columns = (one.points[name] for name in ("source", "label", "prediction"))
    return [
        f"{source if is_source else target}: {label} classified as {prediction}"
        for is_source, label, prediction in zip(*columns, strict=True)
    ]


def _by_domain(points: pd.DataFrame, ax: Axes) -> None:
    # Shuffled, so that neither domain hides the other.
    points = points.iloc[np.random.default_rng(0).permutation(len(points))]
    colors = np.where(points["source"], style.SOURCE, style.TARGET)
    ax.scatter(points["x"], points["y"], s=5, c=colors, alpha=0.6, linewidths=0, rasterized=True)


def _by_class(points: pd.DataFrame, ax: Axes) -> None:
    colors = np.array(style.CLASS_COLORS)
    dots = {"s": np.where(points["source"], 4, 7), "alpha": np.where(points["source"], 0.35, 0.9)}
    dots["c"] = colors[points["label"]]
    ax.scatter(points["x"], points["y"], linewidths=0, rasterized=True, **dots)
    centres = points[~points["source"]].groupby("label")[["x", "y"]].median()
    size = np.ptp(points[["x", "y"]].to_numpy())
    text = {"fontsize": 9, "fontweight": "bold", "ha": "center", "va": "center"}
    text["path_effects"] = [patheffects.withStroke(linewidth=2.2, foreground="white")]
    for digit, place in zip(centres.index, _spread(centres.to_numpy(), 0.06 * size), strict=True):
        ax.text(*place, str(digit), color=colors[digit], **text)


def _spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Places moved apart until each is at least about `gap` from all others: (N, 2)."""
    places = places + 1e-3 * gap * np.random.default_rng(0).normal(size=places.shape)
    for _ in range(100):
        offsets = places[:, None] - places
        distance = np.linalg.norm(offsets, axis=2, keepdims=True)
        push = np.clip(gap - distance, 0, None) / np.maximum(distance, 1e-9)
        places = places + 0.5 * (push * offsets).sum(1)
    return places
