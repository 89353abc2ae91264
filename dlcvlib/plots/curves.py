"""Curves over training, and intervals of differences."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dlcvlib.plots.style import CYCLE, GREY, TARGET, WIDTH, pair_name, with_values

SPARSE = 30
"""Curves with fewer points than this have markers."""
VERDICT_COLORS = {
    "supported": CYCLE[0], "contradicted": TARGET, "inconclusive": GREY, "not judged": "#bbbbbb",
}  # fmt: skip


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
        for column, name in columns.items():
            measured = frame[["step", column]].dropna()
            if len(measured):
                style = "o-" if len(measured) < SPARSE else "-"
                look = {"label": name, "linewidth": 1.1, "markersize": 3.5}
                ax.plot(measured["step"], measured[column], style, **look)
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


def forest(table: pd.DataFrame) -> Figure:
    """Mean paired differences with their 95 % intervals, a panel per measure, coloured by verdict.

    Args:
        table: as from `significance.verdicts`; columns test_low and test_high, if there, are the
            interval from the test set alone, drawn as a pale bar.
    """
    groups = list(table.groupby("measure", sort=False))
    heights = [len(rows) + 1.2 for _, rows in groups]
    size = (WIDTH, 0.27 * sum(heights) + 0.3)
    figure, axes = plt.subplots(len(groups), figsize=size, squeeze=False, height_ratios=heights)
    for ax, (measure, rows) in zip(axes.flat, groups, strict=True):
        heights = np.arange(len(rows))
        if "test_low" in rows:
            ax.hlines(heights, rows["test_low"], rows["test_high"], color="#dddddd", linewidth=7)
        colors = rows["verdict"].map(VERDICT_COLORS)
        ax.hlines(heights, rows["low"], rows["high"], color=colors, linewidth=1.6)
        ax.scatter(rows["difference"], heights, s=16, color=colors, zorder=3)
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_yticks(heights, rows["claim"].map(pair_name))
        ax.set_xlabel(f"difference in {measure}")
        ax.set_ylim(len(rows) - 0.4, -0.6)  # the first claim on top
        ax.grid(axis="y", visible=False)
    drawn = {name: color for name, color in VERDICT_COLORS.items() if name in set(table["verdict"])}
    lines = [plt.Line2D([], [], marker="o", ms=4, color=color) for color in drawn.values()]
    figure.legend(lines, list(drawn), loc="outside upper center", ncols=len(drawn))
    return with_values(figure, table)
