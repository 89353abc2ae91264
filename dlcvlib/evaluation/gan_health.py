"""Signs that a GAN's training failed: one player overpowers the other, or modes collapse.

Nothing here stops a run.
"""

import math

import pandas as pd
from scipy.special import entr

from dlcvlib.config.schema import GANSettings
from dlcvlib.training.runs import Run

ZERO_LOSS = 0.05
"""D's loss counts as near zero below this share of the range from its minimum to chance."""
UNINFORMATIVE = 0.02
"""D counts as uninformative while D(x) - D(G(z)) is below this."""
LEAST_SPAN = 0.01
"""D's loss says nothing where its minimum is nearer to chance than this share of it."""
LONG = 0.1
"""Share of the run for which either must hold without interruption."""
COLLAPSED = 0.1
"""G counts as collapsed if its samples' recall is below this."""


def least_loss(settings: GANSettings, step: int) -> float:
    """D's lowest possible expected loss at a step: not 0 if labels are soft or flipped."""
    flipped = settings.flip_labels if step <= settings.flip_labels_until else 0.0
    if settings.loss == "hinge":
        return 2 * 2 * min(flipped, 1 - flipped)
    soft = sum(settings.soft_labels) / 2
    targets = (1 - flipped) * soft, flipped * soft
    return float(sum(entr(target) + entr(1 - target) for target in targets))


def advantage(history: pd.DataFrame, settings: GANSettings) -> pd.Series:
    """D's loss on the scale from its minimum (0: a perfect discriminator) to chance (1).

    NaN where the labels say so little that the two are nearly the same.
    """
    least = history["step"].map(lambda step: least_loss(settings, step))
    chance = 2.0 if settings.loss == "hinge" else 2 * math.log(2)  # with logits of 0
    span = chance - least
    return (history["discriminator"] - least) / span.where(span > LEAST_SPAN * chance)


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
    history, settings = run.history, run.settings
    won = longest(advantage(history, settings) < ZERO_LOSS, history["step"])
    useless = longest(history["d_real"] - history["d_fake"] < UNINFORMATIVE, history["step"])
    recall = history["validation_recall"].iloc[-1]
    rules = [
        f"longest share of the run with a loss of D below {ZERO_LOSS:.0%} of the range from its "
        "minimum to chance",
        f"longest share of the run with D(x) − D(G(z)) below {UNINFORMATIVE:g}",
        "recall of samples compared with validation images",
    ]
    names = ["discriminator loss near zero", "discriminator at chance", "generator collapsed"]
    frame = pd.DataFrame({"sign": names, "rule": rules, "measured": [won, useless, recall]})
    seen = [won > LONG, useless > LONG, recall < COLLAPSED]
    return frame.assign(limit=[LONG, LONG, COLLAPSED], seen=seen)
