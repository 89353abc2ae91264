"""Signs that a GAN's training failed: one player overpowers the other, or samples lack variety.

Nothing here stops a run.
"""

import pandas as pd

from dlcvlib.training.runs import Run

CERTAIN = 0.99
"""D overpowers G while its accuracy, over pairs of a real and a generated image, is above this."""
GUESSING = 0.55
"""D is uninformative while its accuracy is below this; at chance it is 0.5."""
LONG = 0.1
"""Share of the run for which either must hold without interruption."""
UNCOVERED = 0.1
"""G counts as covering too few of the real faces if its samples' recall is below this."""


def longest(signs: pd.Series, steps: pd.Series) -> float:
    """Length of the longest unbroken stretch of True, as a share of the run.

    Args:
        signs: one boolean per row of the history.
        steps: the step of each row, at which a stretch of steps ends.
    """
    lengths = steps.diff().fillna(steps.iloc[0])
    stretches = lengths[signs].groupby((~signs).cumsum()[signs]).sum()
    return float(stretches.max() / steps.iloc[-1]) if len(stretches) else 0.0


def signs(run: Run) -> pd.DataFrame:
    """Each sign of failure in a DCGAN's history, and whether it is there.

    Returns:
        Rows of sign, rule (what is measured), measured, limit, seen (bool). The first two measure
        shares of the run, the third the samples' recall.
    """
    history, steps = run.history, run.history["step"]
    won = longest(history["d_accuracy"] > CERTAIN, steps)
    useless = longest(history["d_accuracy"] < GUESSING, steps)
    recall = history["validation_recall"].iloc[-1]
    rules = [
        f"longest share of the run with an accuracy of D above {CERTAIN:g}",
        f"longest share of the run with an accuracy of D below {GUESSING:g}",
        "share of validation images that lie among samples (recall)",
    ]
    names = ["discriminator overpowers", "discriminator at chance", "few real faces covered"]
    frame = pd.DataFrame({"sign": names, "rule": rules, "measured": [won, useless, recall]})
    seen = [won > LONG, useless > LONG, recall < UNCOVERED]
    return frame.assign(limit=[LONG, LONG, UNCOVERED], seen=seen)
