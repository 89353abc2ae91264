"""Curves over training, and schedules."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlcvlib.plots.style import CYCLE, GREY, TARGET, WIDTH, pair_name, with_values

SPARSE = 30
"""Curves with fewer points than this have markers."""
VERDICT_COLORS = {
    "supported": CYCLE[0], "contradicted": TARGET, "inconclusive": GREY, "not judged": "#bbbbbb",
}  # fmt: skip
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
    """A row of panels: the mean of each variant over the baseline's, filled from lowest to highest.

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
    share = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(1, len(names), figsize=(WIDTH, 2.25), **share)
    look = {"linewidth": 1.4, "errorbar": ("pi", 100), "err_kws": {"linewidth": 0}}
    for ax, name in zip(axes.flat, names, strict=True):
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
    figure.supxlabel("training step", fontsize=9)
    figure.supylabel(label, fontsize=9)
    legend = [baseline, names[0] if len(names) == 1 else "variant named above the panel"]
    figure.legend(axes[0, 0].lines, legend, loc="outside upper center", ncols=2)
    return with_values(figure, frame[["variant", "seed", "step", y]])


def forest(table: pd.DataFrame) -> Figure:
    """Mean paired differences with their 95 % intervals, a panel per measure, coloured by verdict.

    Args:
        table: as from `significance.verdicts`; columns test_low and test_high, if there, are the
            interval from the test set alone, drawn as a pale bar.
    """
    groups = list(table.groupby("measure", sort=False))
    heights = [len(rows) + 1.2 for _, rows in groups]
    figure, axes = plt.subplots(
        len(groups),
        figsize=(WIDTH, 0.27 * sum(heights) + 0.3),
        squeeze=False,
        height_ratios=heights,
    )
    for ax, (measure, rows) in zip(axes.flat, groups, strict=True):
        heights = np.arange(len(rows))
        if "test_low" in rows:
            ax.hlines(heights, rows["test_low"], rows["test_high"], color="#dddddd", linewidth=7)
        for verdict, color in VERDICT_COLORS.items():
            here = (rows["verdict"] == verdict).to_numpy()
            own, at = rows[here], heights[here]
            ax.hlines(at, own["low"], own["high"], color=color, linewidth=1.6)
            ax.plot(own["difference"], at, "o", color=color, markersize=4)
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set(
            yticks=heights,
            yticklabels=rows["claim"].map(pair_name),
            xlabel=f"difference in {measure}",
        )
        ax.set_ylim(len(rows) - 0.4, -0.6)  # the first claim on top
        ax.grid(axis="y", visible=False)
    drawn = {name: color for name, color in VERDICT_COLORS.items() if name in set(table["verdict"])}
    lines = [plt.Line2D([], [], marker="o", ms=4, color=color) for color in drawn.values()]
    figure.legend(lines, list(drawn), loc="outside upper center", ncols=len(drawn))
    return with_values(figure, table)


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
