"""`python -m benchmarks`: ratios, measured side by side, as a table, a JSON file and a plot.

Every line is a ratio of two rates that were measured one right after the other in one process, as
often as `--rounds` says; the median and the quartiles of the ratios are reported. Nothing else
should run on the machine meanwhile.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib import pyplot as plt

from benchmarks.contenders import contenders
from dlcvlib import devices, environment, fingerprints, storage

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument(
        "--precision", nargs="+", default=["auto", "fp32"], help="default: auto fp32"
    )
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR", help="default: beside it")
    arguments = parser.parse_args()
    frame = pd.concat(
        [rates(precision, arguments.rounds, arguments.steps) for precision in arguments.precision],
        ignore_index=True,
    )
    table = summary(frame)
    print(table.to_string(index=False, float_format="{:.2f}".format))
    machine = {
        "threads": torch.get_num_threads(),
        "device": str(devices.default()),
        "python": environment.python_version(),
        **fingerprints.versions("torch", "torchvision"),
    }
    result = {
        "machine": machine,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "ratios": table.to_dict("records"),
        "rates": frame.to_dict("records"),
    }
    storage.write_json(storage.make_dir(arguments.out) / "results.json", result)
    plot(frame).savefig(arguments.out / "results.svg", bbox_inches="tight")


def rates(precision: str, rounds: int, steps: int) -> pd.DataFrame:
    """One row a method and round: steps a second of the plain loop, of ours, of the step alone."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        methods = contenders(precision, Path(folder))
        for turn in range(rounds):
            for method in methods:
                row = {
                    "method": method.name,
                    "wanted": precision,
                    "precision": method.precision(),
                    "round": turn,
                    "plain": method.plain_rate(steps),
                    "ours": method.our_rate(steps, Path(folder) / "run"),
                    "step": method.step_rate(steps),
                    "batch_size": method.settings.batch_size,
                }
                rows.append(row)
                print(
                    f"{method.name} {row['precision']} round {turn + 1}: plain {row['plain']:.1f}, "
                    f"ours {row['ours']:.1f}, step alone {row['step']:.1f} steps a second",
                    flush=True,
                )
    frame = pd.DataFrame(rows)
    return frame.assign(
        against_plain=frame["ours"] / frame["plain"], share_of_step=frame["ours"] / frame["step"]
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles of both ratios, and median images a second, a row a method."""
    rows = []
    for (wanted, name), group in frame.groupby(["wanted", "method"], sort=False):
        row = {"wanted": wanted, "method": name, "precision": group["precision"].iloc[0]}
        for rate in ("plain", "ours"):
            row[f"{rate}, images/s"] = (group[rate] * group["batch_size"]).median()
        for ratio in ("against_plain", "share_of_step"):
            low, middle, high = group[ratio].quantile([0.25, 0.5, 0.75])
            row |= {ratio: middle, f"{ratio}, quartiles": f"{low:.2f} to {high:.2f}"}
        rows.append(row)
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame) -> plt.Figure:
    """Each round's ratio a dot, medians as bars."""
    mpl.use("agg")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    labels = {"against_plain": "times the plain loop", "share_of_step": "share of the step alone"}
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        for number, (wanted, rows) in enumerate(frame.groupby("wanted", sort=False)):
            medians = rows.groupby("method", sort=False)[column].median()
            places = [place + 0.4 * number for place in range(len(medians))]
            ax.bar(places, medians, width=0.38, label=wanted)
            for place, name in zip(places, medians.index, strict=True):
                values = rows.loc[rows["method"] == name, column]
                ax.plot([place] * len(values), values, "k.", markersize=3)
        ax.set_xticks([place + 0.2 for place in range(len(medians))], medians.index)
        ax.axhline(1, color="black", linewidth=0.7)
        ax.set_ylabel(label)
    axes[0].legend()
    return figure


if __name__ == "__main__":
    main()
