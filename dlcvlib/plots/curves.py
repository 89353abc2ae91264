"""Curves over training, and schedules."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlcvlib.plots.style import CYCLE, GREY, WIDTH, with_values

SPARSE = 30
"""Curves with fewer points than this have markers."""
SPAN = 10
"""Ratio of highest to lowest value above which curves have a logarithmic scale."""


def line_panels(
    frame: pd.DataFrame,
    panels: Sequence[tuple[str, Mapping[str, str]]],
    *,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Columns of a history over the steps, one panel for each axis label.

    Args:
        frame: columns step and those of the panels; an empty column is not drawn.
        panels: (axis label, {column: name in the legend}) of each.
        levels: name -> height of a dotted line through the last panel.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.7), squeeze=False)
    for ax, (label, columns) in zip(axes[0], panels, strict=True):
        for color, (column, name) in zip(CYCLE, columns.items(), strict=False):
            measured = frame[["step", column]].dropna()
            if len(measured):
                style = "o-" if len(measured) < SPARSE else "-"
                line = {"color": color, "label": name, "linewidth": 1.1, "markersize": 3.5}
                ax.plot(measured["step"], measured[column], style, **line)
        ax.set(xlabel="training step", ylabel=label)
    for name, height in (levels or {}).items():
        axes[0, -1].axhline(height, color=GREY, linewidth=0.9, linestyle=":", label=name)
    for ax in axes[0]:
        if ax.dataLim.ymin >= 0:
            ax.set_ylim(bottom=0)  # last: it fixes the limits
        # Above the panel, where no curve can run through it.
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    drawn = [column for _, columns in panels for column in columns]
    return with_values(figure, frame[["step", *drawn]].dropna(how="all", subset=drawn))


def against_baseline(frame: pd.DataFrame, baseline: str, y: str, label: str) -> Figure:
    """Small multiples: the mean of each variant over the baseline's, filled from lowest to highest.

    The scale is logarithmic where one curve would flatten all others: where values, all above 0,
    span more than `SPAN`.

    Args:
        frame: columns variant, seed, step and `y`.
        baseline: the variant that every panel shows in grey.
        y: the column to draw.
        label: of its axis.
    """
    import seaborn as sns  # loads slowly, and few notebooks need it

    names = [name for name in frame["variant"].unique() if name != baseline]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    share = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 1.65 * rows + 0.6), **share)
    look = {"linewidth": 1.4, "errorbar": ("pi", 100), "err_kws": {"linewidth": 0}}
    for ax, name in zip(axes.flat, names, strict=False):
        for variant, color in ((baseline, GREY), (name, CYCLE[0])):
            runs = frame[frame["variant"] == variant]
            sns.lineplot(runs, x="step", y=y, color=color, ax=ax, **look)
        ax.set(xlabel="", ylabel="")
        ax.set_title(name, fontsize=8.5)
    values = frame[y].dropna()
    if 0 < SPAN * values.min() < values.max():
        axes[0, 0].set_yscale("log")
        axes[0, 0].yaxis.set_major_formatter("{x:g}")
    elif values.min() >= 0:
        axes[0, 0].set_ylim(bottom=0)  # of all panels; last: it fixes the limits
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for ax in axes.flat[len(names) - columns : len(names)]:
        ax.tick_params(labelbottom=True)
    figure.supxlabel("training step", fontsize=9)
    figure.supylabel(label, fontsize=9)
    legend = [baseline, names[0] if len(names) == 1 else "variant named above the panel"]
    figure.legend(axes[0, 0].lines, legend, loc="outside upper center", ncols=2)
    return with_values(figure, frame[["variant", "seed", "step", y]])


def schedules(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str) -> Axes:
    """Pure functions of the progress of a run.

    Args:
        curves: name -> (progress from 0 to 1, values).
        label: of the values' axis.
    """
    _, ax = plt.subplots(figsize=(WIDTH * 0.55, 2.4))
    for name, (progress, values) in curves.items():
        ax.plot(progress, values, label=name)
    ax.set(xlabel="progress of the run", ylabel=label, ylim=(0, None))
    ax.legend()
    frames = {name: pd.DataFrame({"progress": x, "value": y}) for name, (x, y) in curves.items()}
    return with_values(ax, pd.concat(frames, names=["schedule"]).reset_index("schedule"))
