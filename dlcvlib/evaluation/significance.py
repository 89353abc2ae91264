"""What several seeds say about a claim: means with their spread, and verdicts by one rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

FACTOR = 2.0
"""Standard errors by which two means must differ for a verdict."""


def compare(claim: str, measure: str, worse: pd.Series, better: pd.Series) -> dict[str, Any]:
    """Test the claim that `worse` has the higher values of a measure.

    It is supported, or contradicted, if the means differ by more than `FACTOR` times the standard
    error of their difference over the seeds; otherwise the comparison is inconclusive.

    Args:
        claim: in words.
        measure: what is compared, lower being better.
        worse: one value per seed.
        better: one value per seed.

    Returns:
        claim, measure, difference (of the means), standard_error, verdict.
    """
    difference = worse.mean() - better.mean()
    error = np.sqrt(worse.var(ddof=1) / len(worse) + better.var(ddof=1) / len(better))
    # Without a spread, with a single seed or equal values, there is no basis for a verdict.
    if not error > 0 or abs(difference) <= FACTOR * error:
        verdict = "inconclusive"
    else:
        verdict = "supported" if difference > 0 else "contradicted"
    return {
        "claim": claim,
        "measure": measure,
        "difference": difference,
        "standard_error": error,
        "verdict": verdict,
    }


def more_accurate(frame: pd.DataFrame, claim: str, worse: str, better: str) -> dict[str, Any]:
    """Test, by `compare`, the claim that one variant is more accurate than another.

    Args:
        frame: one row per run: variant, accuracy (0 to 1).
        claim: in words.
        worse: a variant.
        better: another.
    """
    errors = 1 - frame.set_index("variant")["accuracy"]
    return compare(claim, "target error rate", errors.loc[[worse]], errors.loc[[better]])


def chance(seeds: int) -> float:
    """How often the rule of `compare` yields a verdict by chance, under the null hypothesis.

    For normal errors of equal variance and this many seeds per side; NaN for fewer than two.
    """
    from scipy.special import stdtr  # used by the discussions alone

    return float(2 * stdtr(2 * seeds - 2, -FACTOR)) if seeds > 1 else float("nan")


def summary(frame: pd.DataFrame, places: Mapping[str, int], by: str = "variant") -> pd.DataFrame:
    """Mean ± standard deviation over the seeds, as text, one row per variant in order.

    Args:
        frame: one row per run: the column `by`, and those of `places`.
        places: column -> decimals shown.
        by: what the rows are grouped by.
    """
    return pd.DataFrame(
        {by: name} | {column: mean_text(group[column], n) for column, n in places.items()}
        for name, group in frame.groupby(by, sort=False)
    )


def mean_text(values: Sequence[float], places: int, percent: bool = False) -> str:
    """Mean ± sample standard deviation as text.

    A single value stands alone; no value at all, or NaN, is a dash.
    """
    scale, unit = (100, "%") if percent else (1, "")
    mean = scale * float(np.mean(values)) if len(values) else float("nan")
    if np.isnan(mean):
        return "–"
    spread = scale * float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    deviation = "" if np.isnan(spread) else f" ± {spread:.{places}f}"
    return f"{mean:.{places}f}{deviation}{unit}"
