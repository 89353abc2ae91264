"""Steps per second against plain loops, and against the method's step alone.

`bound` is the ratio of our speed to the plain loop's if everything but our convolutions and matrix
products took no time.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from benchmarks.contenders import contenders, plain_rate
from dlcvlib.utils.parent import end_with_parent

PRECISIONS = ("auto", "fp32")
RATIOS = {"against_plain": "times the plain loop", "share_of_step": "share of the step alone"}


def measure(rounds: int, steps: int) -> pd.DataFrame:
    """One row per precision, method and round: steps per second of the three, their ratios."""
    rows = []
    for wanted in PRECISIONS:
        if rows and all(row["precision"] == wanted for row in rows):
            break  # auto has chosen it for all of them
        with (
            tempfile.TemporaryDirectory() as name,
            ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as others,
        ):
            folder = Path(name)
            methods = contenders(wanted, folder)
            for turn in range(rounds):
                for method in methods:
                    row = {
                        "wanted": wanted,
                        "method": method.name,
                        "precision": method.precision(),
                        "round": turn,
                        "plain": others.submit(
                            plain_rate, method.name, wanted, folder, steps
                        ).result(),
                        "ours": method.our_rate(steps, folder / "run"),
                        "step": method.step_rate(steps),
                        "kernel_share": method.kernel_share(steps),
                        "batch_size": method.settings.batch_size,
                    }
                    rows.append(row)
                    print(
                        f"{wanted} {method.name} round {turn + 1}: plain {row['plain']:.1f}, "
                        f"ours {row['ours']:.1f}, step alone {row['step']:.1f} steps/s",
                        flush=True,
                    )
    frame = pd.DataFrame(rows)
    return frame.assign(
        against_plain=frame["ours"] / frame["plain"],
        share_of_step=frame["ours"] / frame["step"],
        bound=frame["step"] / frame["kernel_share"] / frame["plain"],
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per method: medians of both ratios with quartiles, of images/s, and of the bound."""
    rows = []
    for (wanted, name), group in frame.groupby(["wanted", "method"], sort=False):
        row = {"wanted": wanted, "method": name, "precision": group["precision"].iloc[0]}
        for rate in ("plain", "ours"):
            row[f"{rate}, images/s"] = (group[rate] * group["batch_size"]).median()
        for ratio in RATIOS:
            low, middle, high = group[ratio].quantile([0.25, 0.5, 0.75])
            row |= {ratio: middle, f"{ratio}, quartiles": f"{low:.2f} to {high:.2f}"}
        row["bound"] = group["bound"].median()
        rows.append(row)
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame) -> plt.Figure:
    """Each round's ratio as a dot, medians as bars."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for ax, (column, label) in zip(axes, RATIOS.items(), strict=True):
        for number, (wanted, rows) in enumerate(frame.groupby("wanted", sort=False)):
            medians = rows.groupby("method", sort=False)[column].median()
            places = [place + 0.4 * number for place in range(len(medians))]
            ax.bar(places, medians, width=0.38, label=wanted)
            for place, name in zip(places, medians.index, strict=True):
                values = rows.loc[rows["method"] == name, column]
                ax.plot([place] * len(values), values, "k.", markersize=3)
        names = medians.index.str.replace(", ", ",\n")
        ax.set_xticks([place + 0.2 for place in range(len(names))], names)
        ax.axhline(1, color="black", linewidth=0.7)
        ax.set_ylabel(label)
    axes[0].legend(title="precision")
    return figure
