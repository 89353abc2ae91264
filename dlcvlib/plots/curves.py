"""Curves over training, and intervals of differences."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dlcvlib.plots.style import CYCLE, DARK, GREY, TARGET, WIDTH, with_values

SPARSE = 30
"""Curves with fewer points than this have markers; others are smoothed, with the raw one behind."""
SMOOTHED = 20
"""A smoothed curve's points are means of its part in so many of all points."""
VERDICT_COLORS = {
    "supported": CYCLE[0], "contradicted": TARGET, "inconclusive": GREY, "not judged": "#bbbbbb",
}  # fmt: skip


def line_panels(frame: pd.DataFrame, panels: Sequence[tuple[str, Mapping[str, str]]]) -> Figure:
    """Columns of a history over the steps, one panel for each axis label.

    Args:
        frame: columns step and those of the panels; an empty column is not drawn.
        panels: (axis label, {column: name in the legend}) of each.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.7), squeeze=False)
    for ax, (label, columns) in zip(axes[0], panels, strict=True):
        colors = iter(CYCLE)
        for column, name in columns.items():
            measured = frame[["step", column]].dropna()
            if len(measured):
                steps, values = measured["step"], measured[column]
                color, dense = next(colors), len(measured) >= SPARSE
                if dense:
                    ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.35)
                    window = {"window": len(measured) // SMOOTHED, "center": True}
                    values = values.rolling(**window, min_periods=1).mean()
                style, look = "-" if dense else "o-", {"linewidth": 1.3, "markersize": 3}
                ax.plot(steps, values, style, color=color, label=name, **look)
        ax.set(xlabel="training step", ylabel=label)
    for ax in axes[0]:
        if ax.dataLim.ymin >= 0:
            ax.set_ylim(bottom=0)  # last: it fixes the limits
        # Above the panel, where no curve can run through it.
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2, "borderaxespad": 0.3}
        ax.legend(**above, labelcolor="linecolor", handlelength=1, columnspacing=1)
    drawn = [column for _, columns in panels for column in columns]
    return with_values(figure, frame[["step", *drawn]].dropna(how="all", subset=drawn))


def forest(table: pd.DataFrame) -> Figure:
    """Mean paired differences with their 95% intervals, a panel per measure, coloured by verdict.

    Args:
        table: as from `significance.verdicts`; columns test_low and test_high, if there, are the
            interval from the test set alone, drawn as a pale bar.
    """
    groups = list(table.groupby("measure", sort=False))
    heights = [len(rows) + 1.2 for _, rows in groups]
    size = (WIDTH, 0.24 * sum(heights) + 0.3)
    figure, axes = plt.subplots(len(groups), figsize=size, squeeze=False, height_ratios=heights)
    for ax, (measure, rows) in zip(axes.flat, groups, strict=True):
        places = np.arange(len(rows))
        if "test_low" in rows:
            ax.hlines(places, rows["test_low"], rows["test_high"], color="#dddddd", linewidth=6)
        colors = rows["verdict"].map(VERDICT_COLORS)
        ax.hlines(places, rows["low"], rows["high"], color=colors, linewidth=1.6)
        ax.scatter(rows["difference"], places, s=16, color=colors, zorder=3)
        ax.axvline(0, color=DARK, linewidth=0.8, zorder=1)
        ax.set_yticks(places, rows["claim"])
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"difference in {measure}")
        ax.set_ylim(len(rows) - 0.4, -0.6)  # the first claim on top
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
    drawn = {name: color for name, color in VERDICT_COLORS.items() if name in set(table["verdict"])}
    lines = [plt.Line2D([], [], marker="o", ms=4, color=color) for color in drawn.values()]
    figure.legend(lines, list(drawn), loc="outside upper center", ncols=len(drawn))
    return with_values(figure, table)
