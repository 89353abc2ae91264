"""The measures of chapters 3 and 4: accuracies of methods on pairs, and the gaps they close.

Every accuracy is of the last step's weights (of AdaMatch, of their moving average) on the target's
test split, which was not used to choose anything.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from dlcvlib.config.schema import DANNParams, PixelDAParams, TrainingSettings
from dlcvlib.data.types import DigitData, Pair
from dlcvlib.evaluation import original
from dlcvlib.evaluation.significance import mean_text, more_accurate
from dlcvlib.methods.adamatch import AdaMatch
from dlcvlib.methods.classifier import Classifier
from dlcvlib.methods.dann import DANN
from dlcvlib.methods.pixelda import PixelDA
from dlcvlib.training.runs import Data, Run, train_all

SOURCE_ONLY, TARGET_ONLY = "source only", "target only"
ALL = (SOURCE_ONLY, "DANN", "PixelDA", "AdaMatch", TARGET_ONLY)
"""Methods in the order of tables and figures."""

COLUMNS = ["method", "pair", "seed", "accuracy"]
Runs = Mapping[tuple[str, str, int], Run[Classifier]]
"""(method, pair, seed) -> run."""


def train(
    params: DANNParams | PixelDAParams, digits: DigitData, methods: Sequence[str]
) -> dict[tuple[str, str, int], Run[Classifier]]:
    """Train methods on every pair and seed, or load them.

    Args:
        params: of chapter 3, or of chapter 4, whose params of chapter 3 are used for its methods.
        digits: the pairs.
        methods: some of `ALL`.
    """
    # First what the other chapter, which may run at the same time, does not train.
    order = sorted(methods, key=lambda name: name not in ("PixelDA", "AdaMatch"))
    jobs = {
        (method, name, seed): _job(method, params, pair, seed)
        for method in order
        for name, pair in digits.pairs.items()
        for seed in params.seeds
    }
    runs = train_all(jobs, params.runs_dir)
    return {key: runs[key] for method in methods for key in runs if key[0] == method}


def _job(
    method: str, params: DANNParams | PixelDAParams, pair: Pair, seed: int
) -> tuple[type[Classifier], TrainingSettings, Data]:
    """Class, settings and data of a method; only *target only* gets the target's labels."""
    if method == "PixelDA":
        return PixelDA, params.settings(seed), pair.adaptation()
    if method == "AdaMatch":
        return AdaMatch, params.adamatch(seed), pair.adaptation()
    chapter_3 = params.dann if isinstance(params, PixelDAParams) else params
    if method == "DANN":
        return DANN, chapter_3.settings(seed), pair.adaptation()
    domain = {SOURCE_ONLY: pair.source, TARGET_ONLY: pair.target}[method]
    return Classifier, chapter_3.classifier(seed), domain


def predictions(runs: Runs, digits: DigitData) -> dict[tuple[str, str, int], Tensor]:
    """(method, pair, seed) -> predicted labels of the target's test images, (N,) int64."""
    return {
        key: run.method.predict(digits.pairs[key[1]].target.test.images)
        for key, run in runs.items()
    }


def score(runs: Runs, digits: DigitData) -> pd.DataFrame:
    """One row per run: method, pair, seed, accuracy on the target's test images (0 to 1)."""
    rows = []
    for (method, pair, seed), predicted in predictions(runs, digits).items():
        correct = predicted == digits.pairs[pair].target.test.labels
        rows.append((method, pair, seed, correct.double().mean().item()))
    return pd.DataFrame(rows, columns=COLUMNS)


def source_accuracy(runs: Runs, digits: DigitData) -> pd.DataFrame:
    """One row per run: method, pair, seed, accuracy on the source's validation images."""
    rows = [
        (method, pair, seed, run.method.accuracy(digits.pairs[pair].source.validation))
        for (method, pair, seed), run in runs.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def by_pair(scores: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Pair -> {"accuracy": [one per seed]} of one method's scores, for results.json."""
    groups = scores.groupby("pair", sort=False)["accuracy"]
    return {pair: {"accuracy": values.tolist()} for pair, values in groups}


def first_seed(runs: Runs, method: str) -> dict[str, Run[Classifier]]:
    """Pair -> a method's run with the first seed."""
    seed = next(iter(runs))[2]
    return {pair: run for (name, pair, s), run in runs.items() if (name, s) == (method, seed)}


def beside_original(scores: pd.DataFrame) -> pd.DataFrame:
    """One method's accuracies beside those that the original and other solutions report.

    Returns:
        One row per pair: pair, accuracy (mean ± standard deviation), seeds, original (NaN if it
        has no such pair), others (lowest to highest).
    """
    report = original.report()
    (method,) = scores["method"].unique()
    theirs, others = report["digits"]["accuracy"][method], report["others"].get(method, {})
    ranges = {pair: "{:g} to {:g}".format(*ends) for pair, ends in others.items()}
    return pd.DataFrame(
        {
            "pair": pair,
            "accuracy": mean_text(values, 3),
            "seeds": len(values),
            "original": theirs.get(pair, np.nan),
            "others": ranges.get(pair, "–"),
        }
        for pair, values in scores.groupby("pair", sort=False)["accuracy"]
    )


def gap_closed(scores: pd.DataFrame, method: str) -> pd.DataFrame:
    """How much of the gap between source only and target only a method closes.

    Returns:
        One row per pair and seed: pair, seed, low, method, high (accuracies), closed: 0 is no
        better than source only, 1 as good as target only; NaN where there is no gap.
    """
    table = scores.set_index(["method", "pair", "seed"])["accuracy"]
    low, mine, high = (table[name] for name in (SOURCE_ONLY, method, TARGET_ONLY))
    frame = pd.DataFrame({"low": low, "method": mine, "high": high}).loc[low.index]
    return frame.assign(closed=share(low, mine, high)).reset_index()


def share(low: pd.Series, method: pd.Series, high: pd.Series) -> pd.Series:
    """Share of the gap from low to high that a method closes; NaN where there is no gap."""
    return (method - low) / (high - low).where(high > low)


def verdicts(scores: pd.DataFrame, claims: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """For each (worse, better) and pair the claim that a method is more accurate than another.

    Returns:
        One row per claim and pair, as from `significance.compare`.
    """
    pairs = scores.rename(columns={"method": "variant"}).groupby("pair", sort=False)
    return pd.DataFrame(
        more_accurate(frame, f"{better} is better than {worse} on {pair}", worse, better)
        for worse, better in claims
        for pair, frame in pairs
    )


def plateaus(runs: Runs) -> pd.DataFrame:
    """How long source-only training stays at chance, slowest pair first.

    Returns:
        One row per run of source only: pair, seed, steps: the first logged step with a class loss
        below 90 % of chance; NaN if there is none.
    """
    rows = []
    for (method, pair, seed), run in runs.items():
        if method == SOURCE_ONLY:
            past = run.history.loc[run.history["class"] < 0.9 * np.log(10), "step"]
            rows.append({"pair": pair, "seed": seed, "steps": past.min()})
    frame = pd.DataFrame(rows)
    slowness = -frame["steps"].fillna(np.inf).groupby(frame["pair"]).transform("mean")
    return frame.iloc[slowness.argsort(kind="stable")]


def dann_measures(run: Run[DANN], pair: Pair) -> dict[str, float]:
    """The measures of a run on a pair in comparisons of DANNs.

    Returns:
        accuracy on the target's test images; source, and domain_accuracy (D's, 0.5 is chance), on
        validation images after the last step.
    """
    last = run.history.dropna(subset="validation_accuracy").iloc[-1]
    return {
        "accuracy": run.method.accuracy(pair.target.test),
        "source": last["validation_accuracy"],
        "domain_accuracy": last["validation_domain_accuracy"],
    }
