"""The measures of chapters 3 and 4: accuracies of methods on pairs, and what is claimed of them.

Every accuracy is of the last step's weights (of AdaMatch, of their moving average) on the target's
test split, which was not used to choose anything. *Source only* and AdaBN are the controls: the
first shows what the source's labels alone give, the second what the target's BatchNorm statistics
add to it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from dlcvlib.config.schema import DANNParams, PixelDAParams
from dlcvlib.data.types import DigitData, Pair
from dlcvlib.evaluation import original, significance
from dlcvlib.evaluation.significance import LEVEL, compare, mean_text
from dlcvlib.methods import adapting
from dlcvlib.methods.adabn import AdaBN
from dlcvlib.methods.classifier import Classifier, TwoDomains
from dlcvlib.methods.dann import DANN
from dlcvlib.training.runs import Run, train_or_load

SOURCE_ONLY, ADABN, TARGET_ONLY = "source only", "AdaBN", "target only"
ADAPTING: dict[str, type[TwoDomains]] = {
    kind.title: kind for kind in vars(adapting).values() if isinstance(kind, type)
}
"""The methods that are trained on both domains."""
ALL = (SOURCE_ONLY, ADABN, *ADAPTING, TARGET_ONLY)
"""Methods in the order of tables and figures."""
CHAPTER_3 = (SOURCE_ONLY, "DANN", TARGET_ONLY)
"""What chapter 3 trains."""

KEY = ["method", "pair", "seed"]
Runs = dict[tuple[str, str, int], Run[Classifier]]
"""(method, pair, seed), such as ("DANN", "usps->mnistm", 0) -> run."""


def train(params: DANNParams | PixelDAParams, digits: DigitData, methods: Sequence[str]) -> Runs:
    """Train methods on every pair and seed, or load them.

    Args:
        params: of chapter 3, or of chapter 4, whose params of chapter 3 are used for its methods.
        digits: the pairs.
        methods: some of `ALL`.
    """
    chapter_3 = params.dann if isinstance(params, PixelDAParams) else params

    def job(method: str, pair: Pair, seed: int) -> tuple[type[Classifier], Any, Any]:
        """Class, settings and data; only *target only* gets the target's labels."""
        if kind := ADAPTING.get(method):
            return kind, kind.settings_of(params, seed), pair.adaptation()
        of_one_domain = pair.target if method == TARGET_ONLY else pair.source
        return Classifier, chapter_3.classifier(seed), of_one_domain

    trained = dict.fromkeys(SOURCE_ONLY if name == ADABN else name for name in methods)
    jobs = {
        (method, name, seed): job(method, pair, seed)
        for method in trained
        for name, pair in digits.pairs.items()
        for seed in params.seeds
    }
    runs = {key: train_or_load(*job, params.runs_dir) for key, job in jobs.items()}
    if ADABN in methods:
        targets = {name: pair.target.train.images for name, pair in digits.pairs.items()}
        runs |= {
            (ADABN, name, seed): replace(run, method=AdaBN(run.method, targets[name]))
            for (method, name, seed), run in runs.items()
            if method == SOURCE_ONLY
        }
    return {key: runs[key] for method in methods for key in runs if key[0] == method}


def predictions(runs: Runs, digits: DigitData) -> dict[tuple[str, str, int], Tensor]:
    """(method, pair, seed) -> predicted labels of the target's test images, (N,) int64."""
    return {
        key: run.method.predict(digits.pairs[key[1]].target.test.images)
        for key, run in runs.items()
    }


def correct(runs: Runs, digits: DigitData) -> dict[tuple[str, str, int], np.ndarray]:
    """(method, pair, seed) -> of each test image of the target 1.0 if it is correct, else 0.0."""
    return {
        key: (predicted == digits.pairs[key[1]].target.test.labels).double().numpy()
        for key, predicted in predictions(runs, digits).items()
    }


def score(runs: Runs, digits: DigitData) -> pd.DataFrame:
    """One row per run: method, pair, seed, accuracy on the target's test images (0 to 1)."""
    found = {key: one.mean() for key, one in correct(runs, digits).items()}
    return pd.Series(found).rename_axis(KEY).reset_index(name="accuracy")


def source_accuracy(runs: Runs, digits: DigitData) -> pd.DataFrame:
    """One row per run: method, pair, seed, accuracy on the source's validation images."""
    found = {
        key: run.method.accuracy(digits.pairs[key[1]].source.validation, source=True)
        for key, run in runs.items()
    }
    return pd.Series(found).rename_axis(KEY).reset_index(name="accuracy")


def by_pair(scores: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Pair -> {"accuracy": [one per seed]} of one method's scores, for results.json."""
    return scores.groupby("pair", sort=False)[["accuracy"]].agg(list).to_dict("index")


def first_seed(runs: Runs, method: str) -> dict[str, Run[Classifier]]:
    """Pair -> a method's run with the first seed."""
    seed = next(iter(runs))[2]
    return {pair: run for (name, pair, s), run in runs.items() if (name, s) == (method, seed)}


def beside_original(scores: pd.DataFrame) -> pd.DataFrame:
    """One method's accuracies beside those that the original and other solutions report.

    Returns:
        One row per pair: pair, accuracy (mean ± standard deviation), original (NaN if it
        has no such pair), others (lowest to highest).
    """
    report = original.report()
    (method,) = scores["method"].unique()
    theirs = report["digits"]["accuracy"][method]
    others = report["others"]["accuracy"].get(method, {})
    ranges = {pair: "{:g} to {:g}".format(*ends) for pair, ends in others.items()}
    return pd.DataFrame(
        {
            "pair": pair,
            "accuracy": mean_text(values, 3),
            "original": theirs.get(pair, np.nan),
            "others": ranges.get(pair, "–"),
        }
        for pair, values in scores.groupby("pair", sort=False)["accuracy"]
    )


def headline(scores: pd.DataFrame, digits: DigitData) -> pd.DataFrame:
    """Rows of the report's main table, one per method and pair.

    Returns:
        quantity (the method), pair, ours (mean ± standard deviation), original and others (the
        best of them) as text, data (what the pair's target is here).
    """

    def best(key: str, method: str, pair: str) -> str:
        found = original.report()[key]["accuracy"].get(method, {}).get(pair)
        return "–" if found is None else f"{np.max(found):.3f}"

    return pd.DataFrame(
        {
            "quantity": method,
            "pair": pair,
            "ours": mean_text(values, 3),
            "original": best("digits", method, pair),
            "others": best("others", method, pair),
            "data": digits.pairs[pair].target.source,
        }
        for (method, pair), values in scores.groupby(["method", "pair"], sort=False)["accuracy"]
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
    return frame.assign(closed=(mine - low) / (high - low).where(high > low)).reset_index()


def verdicts(
    runs: Runs, digits: DigitData, claims: Sequence[tuple[str, str]], least: int = 3
) -> pd.DataFrame:
    """For each (worse, better) and pair the claim that a method is more accurate than another.

    Args:
        runs: of all methods in the claims, paired by seed.
        digits: their pairs.
        claims: judged together.
        least: claims with fewer seeds are shown but not judged.

    Returns:
        One row per claim and pair, as from `significance.verdicts`, with test_low and test_high,
        the 95% interval from the sampling of the test images, which all seeds share.
    """
    right, rows = correct(runs, digits), []
    for worse, better in claims:
        for pair in digits.pairs:
            seeds = [seed for method, name, seed in runs if (method, name) == (better, pair)]
            gains = np.stack([right[better, pair, s] - right[worse, pair, s] for s in seeds])
            claim = f"{better} is more accurate than {worse} on {pair}"
            row = compare(claim, "target accuracy", pd.Series(gains.mean(1), seeds))
            test_low, test_high = sampling_noise(gains.mean(0))
            rows.append(row | {"test_low": test_low, "test_high": test_high})
    return significance.verdicts(rows, least)


def sampling_noise(gains: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over test images (N,)."""
    from scipy.stats import bootstrap  # loads slowly, and few notebooks need it

    how = {"confidence_level": 1 - LEVEL, "n_resamples": 1999, "method": "percentile", "rng": 0}
    return bootstrap((gains,), np.mean, **how).confidence_interval


def gains(frame: pd.DataFrame, worse: str, better: str, measure: str = "accuracy") -> pd.Series:
    """Differences of a measure between two variants of `sweep.train_variants`, by seed."""
    values = frame.set_index(["variant", "seed"])[measure]
    return values[better] - values[worse]


def dann_measures(run: Run[DANN], pair: Pair) -> dict[str, float]:
    """The measures of a run on a pair in comparisons of DANNs.

    Returns:
        accuracy on the target's test images; source, domain_accuracy and domain_loss (D's; at
        chance 0.5 and ln 2), on validation images after the last step.
    """
    last = run.history.iloc[-1]
    return {
        "accuracy": run.method.accuracy(pair.target.test),
        "source": last["validation_accuracy"],
        "domain_accuracy": last["validation_domain_accuracy"],
        "domain_loss": last["validation_domain"],
    }
