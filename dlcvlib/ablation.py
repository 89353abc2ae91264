"""What several runs of each variant say: means with their spread, and verdicts by one rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

RULE = (
    "A claim *holds* or *does not hold* if the means differ, in either direction, by more than "
    "twice the standard error of their difference over the seeds; otherwise it *cannot be told "
    "here*."
)


def summary(frame: pd.DataFrame, digits: Mapping[str, int]) -> pd.DataFrame:
    """Mean ± standard deviation over the seeds, as text, one row a variant in order.

    Args:
        frame: one row a run: variant, and the columns of `digits`.
        digits: column -> decimals shown.
    """
    rows = []
    for name, group in frame.groupby("variant", sort=False):
        row = {"variant": name}
        for column, places in digits.items():
            row[column] = mean_text(group[column], places)
        rows.append(row)
    return pd.DataFrame(rows)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the spread of a single value is NaN."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), spread


def mean_text(values: Sequence[float], places: int) -> str:
    """Mean ± standard deviation as text; a single value stands alone."""
    mean, spread = mean_and_spread(values)
    return f"{mean:.{places}f}" + ("" if np.isnan(spread) else f" ± {spread:.{places}f}")


def not_chosen(frame: pd.DataFrame, over: str, main: str) -> str:
    """How far variants lie apart on the target, and that the main one was not chosen by that.

    Args:
        frame: one row a run: variant, accuracy (0 to 1).
        over: what is varied, in words.
        main: what the main runs use.
    """
    means = frame.groupby("variant", sort=False)["accuracy"].mean()
    return (
        f"Over {over} the mean target accuracy lies between {means.min():.1%} ({means.idxmin()}) "
        f"and {means.max():.1%} ({means.idxmax()}). The main runs use {main}: a choice by target "
        "accuracy would need labels that the method must not have."
    )


def better(frame: pd.DataFrame, claim: str, worse: str, better: str) -> dict[str, Any]:
    """Judge, by `compare`, the claim that one variant reads more of the target than another.

    Args:
        frame: one row a run: variant, accuracy (0 to 1).
        claim: in words.
        worse: a variant.
        better: another.
    """
    wrong = 1 - frame.set_index("variant")["accuracy"]
    return compare(claim, "target error rate", wrong.loc[[worse]], wrong.loc[[better]])


def compare(claim: str, measure: str, worse: pd.Series, better: pd.Series) -> dict[str, Any]:
    """Judge, by `RULE`, the claim that `worse` has the higher values of a measure.

    Args:
        claim: in words.
        measure: what is compared, lower being better.
        worse: a value a seed.
        better: a value a seed.
    """
    difference = worse.mean() - better.mean()
    error = np.sqrt(worse.var(ddof=1) / len(worse) + better.var(ddof=1) / len(better))
    if np.isnan(error) or abs(difference) <= 2 * error:
        verdict = "cannot be told here"
    else:
        verdict = "holds" if difference > 0 else "does not hold"
    return {
        "claim": claim,
        "measure": measure,
        "difference": difference,
        "standard_error": error,
        "verdict": verdict,
    }
