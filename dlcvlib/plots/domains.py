"""The plots of chapters 3 and 4: domains, accuracies, confusions, feature maps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from dlcvlib.data.types import CLASSES, DigitData, LabelledImages
from dlcvlib.plots.figures import CYCLE, WIDTH, image_rows

if TYPE_CHECKING:  # scikit-learn, which they need, takes half a second to load
    from dlcvlib.evaluation.feature_spaces import FeatureMap
    from dlcvlib.evaluation.pixelda_ablation import Redrawn

SOURCE, TARGET = CYCLE[0], "#CC3311"
"""Blue and red, as the original has them; apart in lightness too."""
CLASS_COLORS = (
    "#332288", "#CC6677", "#117733", "#DDAA33", "#88CCEE",
    "#882255", "#44AA99", "#666666", "#AA4499", "#999933",
)  # fmt: skip
"""Paul Tol's muted colours, which colour-blind readers can tell apart, grey made darker."""


EACH = 2
"""Images of each digit side by side in a row."""
HEADS = [str(digit) if n == 0 else "" for digit in range(CLASSES) for n in range(EACH)]


def contact_sheet(digits: DigitData) -> Figure:
    """Training images of each digit for every domain, two rows a domain."""
    rows, labels = [], []
    for name, domain in digits.domains.items():
        title = name + (" (drawn)" if domain.synthetic else "")
        rows += by_class(domain.train, EACH, 2)
        labels += [title, ""]
    return image_rows(rows, labels, over=HEADS)


def redrawn(found: Sequence["Redrawn"], digits: DigitData, versions: int) -> Figure:
    """For each pair source images, some versions of them, and target images of the same digits."""
    rows, labels = [], []
    for one in found:
        source, target = one.pair.split("->")
        rows += [*by_class(one.source, EACH, 1), *_versions(one, versions)]
        rows += by_class(digits.domains[target].test, EACH, 1)
        labels += [source, *(f"noise {n + 1}" for n in range(versions)), target]
    return image_rows(rows, labels, over=HEADS, blocks=len(found))


def redrawn_variants(pictures: Mapping[str, "Redrawn"]) -> Figure:
    """The same source images over each variant's version of them."""
    first = next(iter(pictures.values()))
    rows = by_class(first.source, EACH, 1)
    rows += [row for found in pictures.values() for row in _versions(found, 1)]
    return image_rows(rows, ["source", *pictures], over=HEADS)


def _versions(found: "Redrawn", count: int) -> list[Tensor]:
    labelled = (LabelledImages(images, found.source.labels) for images in found.versions[:count])
    return [row for images in labelled for row in by_class(images, EACH, 1)]


def sizes(digits: DigitData) -> pd.DataFrame:
    """One row a domain, split and digit: domain, split, digit, images."""
    return pd.DataFrame(
        {
            "domain": name,
            "split": split,
            "digit": digit,
            "images": int((getattr(domain, split).labels == digit).sum()),
        }
        for name, domain in digits.domains.items()
        for split in ("train", "validation", "test")
        for digit in range(CLASSES)
    )


def by_class(data: LabelledImages, each: int, rows: int) -> list[Tensor]:
    """Rows with `each` images of each digit side by side; grey where a digit is lacking."""
    grey = torch.full_like(data.images[:1], 128)
    found = []
    for row in range(rows):
        cells = []
        for digit in range(CLASSES):
            chosen = data.images[data.labels == digit][row * each : (row + 1) * each]
            cells += [chosen, grey.expand(each - len(chosen), -1, -1, -1)]
        found.append(torch.cat(cells))
    return found


def method_bars(frame: pd.DataFrame, references: Mapping[str, Mapping[str, float]]) -> Figure:
    """Accuracy of each method on each pair: bars at the seeds' mean, each seed a dot.

    Args:
        frame: one row a run: pair, method, accuracy.
        references: method -> pair -> the original's accuracy, drawn as a short line.
    """
    import seaborn as sns  # with SciPy's statistics, nearly a second, for three notebooks of ten

    pairs, methods = list(frame["pair"].unique()), list(frame["method"].unique())
    palette = dict(zip(methods, ["#BBBBBB", CYCLE[0], CYCLE[2], CYCLE[3], CYCLE[4]], strict=False))
    # The best that can be had stands last, and quieter.
    palette[methods[-1]] = "#777777"
    figure, ax = plt.subplots(figsize=(WIDTH, 3.0))
    common = {"data": frame, "x": "pair", "y": "accuracy", "hue": "method", "hue_order": methods}
    sns.barplot(**common, palette=palette, errorbar=None, ax=ax, width=0.8)
    sns.stripplot(
        **common, dodge=True, palette=["#222222"] * len(methods), size=3, ax=ax, legend=False
    )
    step = 0.8 / len(methods)
    label = "original"  # once
    for x, pair in enumerate(pairs):
        for number, method in enumerate(methods):
            if (height := references.get(method, {}).get(pair)) is not None:
                left = x - 0.4 + number * step
                place = {"xmin": left, "xmax": left + step, "zorder": 5}
                ax.hlines(height, **place, color="black", linewidth=1.4, label=label)
                label = None
    ax.axhline(1 / CLASSES, color="#777777", linewidth=0.8, linestyle=":")
    ax.set_ylim(0, 1)
    ax.set_xlabel("")
    ax.set_ylabel("accuracy on the target's test images")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=len(methods) + 1)
    return figure


def confusion_panels(matrices: Mapping[str, np.ndarray]) -> Figure:
    """Confusion matrices side by side: rows are true digits, columns what they are taken for."""
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(WIDTH, 0.35 + WIDTH / max(3, len(matrices))), squeeze=False
    )
    for ax, (name, matrix) in zip(axes[0], matrices.items(), strict=True):
        image = ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        ax.set_title(name)
        ax.set_xticks(range(CLASSES))
        ax.set_yticks(range(CLASSES))
        ax.set_xlabel("taken for")
        ax.grid(False)
        for (row, column), share in np.ndenumerate(matrix):
            if share >= 0.1:
                color = "white" if share > 0.55 else "#333333"
                text = f"{100 * share:.0f}"
                ax.text(column, row, text, ha="center", va="center", fontsize=6, color=color)
    axes[0, 0].set_ylabel("true digit")
    figure.colorbar(image, ax=axes, shrink=0.75, label="share of the digit")
    return figure


def domain_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Losses, and what the domain classifier gets right, over training; a column a pair.

    Args:
        histories: pair -> a DANN's history.
    """
    figure, axes = plt.subplots(
        2, len(histories), figsize=(WIDTH, 4.0), sharex="col", sharey="row", squeeze=False
    )
    for (loss_ax, right_ax), (name, history) in zip(axes.T, histories.items(), strict=True):
        smooth = history.rolling(5, min_periods=1, on="step").mean()
        loss_ax.plot(smooth["step"], smooth["class"], color=CYCLE[0], label="class loss")
        loss_ax.plot(smooth["step"], smooth["domain"], color=CYCLE[1], label="domain loss")
        loss_ax.set_title(name)
        held_out = history.dropna(subset="validation_domain_accuracy")
        right_ax.plot(
            smooth["step"], smooth["domain_accuracy"], color=CYCLE[1], label="domain, training"
        )
        right_ax.plot(
            held_out["step"],
            held_out["validation_domain_accuracy"],
            "o-",
            color=CYCLE[4],
            markersize=3.5,
            label="domain, held out",
        )
        right_ax.plot(
            held_out["step"],
            held_out["validation_accuracy"],
            "o-",
            color=CYCLE[0],
            markersize=3.5,
            label="class, source held out",
        )
        right_ax.axhline(0.5, color="#777777", linewidth=0.9, linestyle=":")
        right_ax.set_ylim(0, 1.03)
        right_ax.set_xlabel("training step")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("loss (nats)")
    axes[1, 0].set_ylabel("accuracy")
    for ax in axes[:, -1]:
        ax.legend(fontsize=7.5)
    return figure


def feature_maps(maps: Sequence[Sequence["FeatureMap"]], by: str) -> Figure:
    """t-SNE plots, a row a method and a column a pair.

    Args:
        maps: rows of maps.
        by: "domain" (blue source, red target) or "class" (ten colours, the digit written at the
            centre of its target images).
    """
    rows, columns = len(maps), len(maps[0])
    side = WIDTH / max(rows, columns)  # more rows of wider maps would not fit a page
    figure, axes = plt.subplots(
        rows, columns, figsize=(side * columns, side * rows + 0.3), squeeze=False
    )
    for row, row_axes in zip(maps, axes, strict=True):
        for found, ax in zip(row, row_axes, strict=True):
            (_by_domain if by == "domain" else _by_class)(found, ax)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
            ax.spines[:].set_visible(True)
            ax.spines[:].set_color("#cccccc")
            ax.margins(0.03)
            ax.set_title(f"{found.pair}\n{found.method}", fontsize=8.5)
    if by == "domain":
        labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(*labels, loc="outside lower center", ncols=2, markerscale=2.5)
    return figure


def _by_domain(found: "FeatureMap", ax: Axes) -> None:
    # Shuffled, so that neither domain hides the other.
    order = np.random.default_rng(0).permutation(len(found.points))
    colors = np.where(found.is_source, SOURCE, TARGET)
    ax.scatter(*found.points[order].T, s=5, c=colors[order], alpha=0.6, linewidths=0)
    for color, name in ((SOURCE, "source"), (TARGET, "target")):
        ax.scatter([], [], s=5, color=color, label=name)


def _by_class(found: "FeatureMap", ax: Axes) -> None:
    ax.scatter(
        *found.points.T,
        s=np.where(found.is_source, 4, 7),
        c=[CLASS_COLORS[label] for label in found.labels],
        alpha=0.65,
        linewidths=0,
    )
    for digit in np.unique(found.labels[~found.is_source]):
        chosen = found.points[(found.labels == digit) & ~found.is_source]
        # The median is no outlier's prey, but may lie between two clusters: take a real point.
        centre = chosen[np.linalg.norm(chosen - np.median(chosen, 0), axis=1).argmin()]
        outline = [patheffects.withStroke(linewidth=2.2, foreground="white")]
        ax.text(
            *centre,
            str(digit),
            fontsize=10,
            fontweight="bold",
            ha="center",
            va="center",
            color=CLASS_COLORS[digit],
            path_effects=outline,
        )


def weight_sweep(frame: pd.DataFrame) -> Figure:
    """Target accuracy and the domain classifier's over the weight of the domain loss.

    Args:
        frame: one row a run: weight, schedule, accuracy, domain_accuracy; a weight of 0 is a
            dotted line.
    """
    import seaborn as sns  # as above

    none, some = frame[frame["weight"] == 0], frame[frame["weight"] > 0]
    levels = {"accuracy": none["accuracy"].mean(), "domain_accuracy": 0.5}
    labels = {"accuracy": "target accuracy", "domain_accuracy": "domain accuracy, held out"}
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.9))
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        common = {"x": "weight", "y": column, "hue": "schedule", "palette": CYCLE[:3], "ax": ax}
        sns.lineplot(
            some, style="schedule", markers=True, dashes=False, errorbar=("sd", 1), **common
        )
        ax.axhline(
            levels[column],
            color="#777777",
            linewidth=1,
            linestyle=":",
            label="no adaptation" if column == "accuracy" else "chance",
        )
        ax.set_xscale("log")
        ticks = sorted(some["weight"].unique())
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel("weight of the domain loss")
        ax.set_ylabel(label)
        ax.legend()
    return figure


def by_digit(frame: pd.DataFrame, column: str, label: str) -> Figure:
    """A share digit by digit: bars at the seeds' mean, red below zero; each seed a dot.

    Args:
        frame: one row a pair, seed and digit: pair, digit, and the column.
        column: which share.
        label: what it is.
    """
    pairs = list(frame["pair"].unique())
    figure, axes = plt.subplots(
        1, len(pairs), figsize=(WIDTH, 2.6), sharey=True, sharex=True, squeeze=False
    )
    for ax, pair in zip(axes[0], pairs, strict=True):
        rows = frame[frame["pair"] == pair]
        means = rows.groupby("digit")[column].mean()
        ax.bar(means.index, means, color=np.where(means < 0, TARGET, SOURCE), width=0.7, alpha=0.8)
        ax.plot(rows["digit"], rows[column], "o", color="#222222", markersize=2.5)
        ax.axhline(0, color="#555555", linewidth=0.8)
        ax.set_title(pair)
        ax.set_xticks(range(CLASSES))
        ax.set_xlabel("digit")
        ax.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(label)
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return figure


def schedules(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str) -> Figure:
    """Pure functions of progress: name -> (progress, value)."""
    figure, ax = plt.subplots(figsize=(WIDTH * 0.55, 2.4))
    for name, (progress, values) in curves.items():
        ax.plot(progress, values, label=name)
    ax.set_xlabel("progress of the run")
    ax.set_ylabel(label)
    ax.set_ylim(bottom=0)
    ax.legend()
    return figure
