"""Whether comparisons on small tasks predict those at full size: the order of the variants in both.

The notebooks that compare variants run twice under profile `quick`: as they are, and with every
`ablation_…` parameter set to the main runs' value. It takes hours; trained runs are kept, so that
an interrupted measurement goes on. `python -m benchmarks quality vae dann` measures these chapters
only.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from scipy import stats

from dlcvlib.config import profiles

PROBLEMS = {"vae": "1-6", "gan": "2-3", "dann": "3-5,3-6", "pixelda": "4-4"}


def full_size(chapter: str) -> dict[str, Any]:
    """The main runs' values of a chapter's ablation parameters, with a single seed."""
    params = profiles.load("quick", chapter)
    names = params.own("ablation").keys() - {"seeds"}
    return {f"ablation_{name}": getattr(params, name) for name in sorted(names)} | {
        "ablation_seeds": [0]
    }


def measure(chapter: str, runs_dir: Path) -> pd.DataFrame:
    """One row per comparison, variant and measure: its mean on the small task and at full size."""
    means, problems = {}, PROBLEMS[chapter]
    for size, changes in (("small", {}), ("full", full_size(chapter))):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "dlcvlib", "report", "--only", problems]
            for name, value in changes.items():
                command += ["--set", f"{chapter}.{name}={json.dumps(value)}"]
            command += ["--runs-dir", str(runs_dir), "--out", folder]
            subprocess.run(command, check=True)
            results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        for problem in problems.split(","):
            for key, value in flat(results[problem]).items():
                means[problem, *key, size] = value
    names = ["problem", "comparison", "variant", "measure", "size"]
    series = pd.Series(means).rename_axis(names).astype(float)
    return series.unstack("size", sort=False)[["small", "full"]].reset_index()


def together(kept: pd.DataFrame, chapter: str, measured: pd.DataFrame) -> pd.DataFrame:
    """What was measured before, with a chapter's rows replaced, in the chapters' order."""
    order = ",".join(PROBLEMS.values()).split(",")
    if len(kept):
        others = kept[~kept["problem"].isin(PROBLEMS[chapter].split(","))]
        measured = pd.concat([others, measured], ignore_index=True)
    return measured.sort_values("problem", key=lambda p: p.map(order.index), kind="stable")


def flat(results: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """(comparison, variant, measure) -> mean, of what a notebook recorded as `comparison_…`."""
    return {
        (name.removeprefix("comparison_"), variant, measure): value
        for name, variants in results.items()
        if name.startswith("comparison_")
        for variant, measures in variants.items()
        for measure, value in measures.items()
    }


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of the variants' means, per comparison and measure."""
    rows = []
    for key, group in frame.dropna().groupby(["problem", "comparison", "measure"], sort=False):
        if len(group) > 2:
            test = stats.spearmanr(group["small"], group["full"])
            rows.append((*key, len(group), test.statistic, test.pvalue))
    return pd.DataFrame(rows, columns=["problem", "comparison", "measure", "variants", "rho", "p"])


def plot(frame: pd.DataFrame) -> plt.Figure:
    """Rank on the small task against rank at full size, one panel per comparison and measure."""
    groups = list(frame.dropna().groupby(["problem", "comparison", "measure"], sort=False))
    rows = -(-len(groups) // 4)
    size = {"figsize": (12, 2.6 * rows), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(rows, 4, **size)
    for ax, (key, group) in zip(axes.flat, groups, strict=False):
        ax.plot(group["small"].rank(), group["full"].rank(), "k.")
        ax.set_title(" ".join(key), fontsize=8)
    for ax in axes.flat[len(groups) :]:
        ax.axis("off")
    figure.supxlabel("rank on the small task")
    figure.supylabel("rank at full size")
    return figure
