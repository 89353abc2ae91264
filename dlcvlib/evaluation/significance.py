"""What several runs of each variant say: means with their spread, and verdicts by one rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

HOLDS, FAILS, UNTOLD = "holds", "does not hold", "cannot be told here"
RULE = (
    "A claim *holds* or *does not hold* if the means differ, in either direction, by more than "
    "twice the standard error of their difference over the seeds; otherwise it *cannot be told "
    "here*."
)


def rule(seeds: int, claims: int = 1) -> str:
    """`RULE`, and how often chance alone passes it with so many seeds of each variant.

    Args:
        seeds: how many.
        claims: how many are judged in one table.
    """
    if seeds < 2:
        return f"{RULE} With one seed nothing can be told."
    from scipy.special import stdtr  # for the discussions alone

    chance = 2 * stdtr(2 * seeds - 2, -2.0)  # Student's t: normal errors of the same size
    text = (
        f"{RULE} Between variants that differ in nothing, {seeds} seeds of each pass it by chance "
        f"{chance:.0%} of the time."
    )
    if claims > 1:
        text += f" Of {claims} such claims that is about {chance * claims:.1f}."
    return text


def tally(verdicts: pd.DataFrame) -> str:
    """How many claims were judged how: such as "3 hold, 1 does not and 2 cannot be told"."""
    counts = verdicts["verdict"].value_counts()
    held, failed, rest = (int(counts.get(verdict, 0)) for verdict in (HOLDS, FAILS, UNTOLD))
    return (
        f"{held} hold{'s' * (held == 1)}, {failed} do{'es' * (failed == 1)} not and {rest} cannot "
        "be told"
    )


def over(seeds: Sequence[int]) -> str:
    """Such as "over 2 seeds"."""
    return f"over {len(seeds)} seed{'s' * (len(seeds) != 1)}"


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
    # Without a spread, of a single seed or of equal ones, there is nothing to judge by.
    if not error > 0 or abs(difference) <= 2 * error:
        verdict = UNTOLD
    else:
        verdict = HOLDS if difference > 0 else FAILS
    return {
        "claim": claim,
        "measure": measure,
        "difference": difference,
        "standard_error": error,
        "verdict": verdict,
    }
