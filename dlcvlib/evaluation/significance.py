"""What several seeds say about a claim: means with their spread, and tests of paired differences.

Reference: Holm: A Simple Sequentially Rejective Multiple Test Procedure. Scand. J. Statist. 1979
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

LEVEL = 0.05
"""Significance level of a table of claims, and one minus the confidence of its intervals."""


def compare(claim: str, measure: str, gains: pd.Series) -> dict[str, Any]:
    """Student's t on the paired differences that a claim is about.

    Args:
        claim: in words.
        measure: what was compared, with its unit.
        gains: one difference per seed, between two runs that share the seed; positive ones support
            the claim.

    Returns:
        claim, measure, seeds (their number), difference (the mean), low and high (its 95%
        interval) and p (two-sided). The last three are NaN for a single seed, and where all
        differences are the same: nothing then says how far another seed's would lie.
    """
    from scipy import stats  # used by the discussions alone

    row = {"claim": claim, "measure": measure, "seeds": len(gains), "difference": gains.mean()}
    if not gains.std() > 0:
        return row | dict.fromkeys(("low", "high", "p"), np.nan)
    test = stats.ttest_1samp(gains, 0)
    low, high = test.confidence_interval(1 - LEVEL)
    return row | {"low": low, "high": high, "p": test.pvalue}


def verdicts(comparisons: Iterable[Mapping[str, Any]], least: int = 5) -> pd.DataFrame:
    """A table of claims that are judged together.

    Args:
        comparisons: rows as from `compare`.
        least: claims with fewer seeds are shown but not judged.

    Returns:
        The rows with p_holm, p after Holm's correction over those that are judged, and verdict:
        "supported" or "contradicted" if p_holm is below `LEVEL`, else "inconclusive"; "not judged".
    """
    from statsmodels.stats.multitest import multipletests

    frame = pd.DataFrame(comparisons)
    judged = (frame["seeds"] >= least) & frame["p"].notna()
    corrected = multipletests(frame.loc[judged, "p"], LEVEL, "holm")[1] if judged.any() else []
    frame.loc[judged, "p_holm"] = corrected
    sign = np.where(frame["difference"] > 0, "supported", "contradicted")
    verdict = np.where(frame["p_holm"] < LEVEL, sign, "inconclusive")
    return frame.assign(verdict=np.where(frame["seeds"] >= least, verdict, "not judged"))


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
