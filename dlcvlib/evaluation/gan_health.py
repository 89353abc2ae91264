"""Signs that a GAN's training failed: one player overpowers the other, or modes collapse.

Nothing here stops a run: a failure is reported as it went.
"""

import math

import pandas as pd

from dlcvlib.config.schema import GANSettings
from dlcvlib.training.runs import Run

ZERO_LOSS = 0.05
"""D's loss counts as zero below this share of the way from the least possible to a guess's."""
UNINFORMATIVE = 0.02
"""D counts as uninformative while D(x) - D(G(z)) is below this."""
LONG = 0.1
"""Share of the run over which either must last without a break."""
COLLAPSED = 0.5
"""G counts as collapsed if its diversity is below this share of the real images'."""


def least_loss(settings: GANSettings, step: int) -> float:
    """D's lowest possible expected loss at a step: not 0 if labels are soft or flipped."""
    flipped = settings.flip_labels if step <= settings.flip_labels_until else 0.0
    if settings.loss == "hinge":
        return 2 * 2 * min(flipped, 1 - flipped)
    soft = sum(settings.soft_labels) / 2
    return sum(_entropy(target) for target in ((1 - flipped) * soft, flipped * soft))


def _entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def guess_loss(settings: GANSettings) -> float:
    """D's loss if it cannot tell at all: logits of 0."""
    return 2.0 if settings.loss == "hinge" else 2 * math.log(2)


def advantage(history: pd.DataFrame, settings: GANSettings) -> pd.Series:
    """How much of what a guess loses D still loses: 0 is a perfect discriminator, 1 a guess."""
    least = history["step"].map(lambda step: least_loss(settings, step))
    return (history["discriminator"] - least) / (guess_loss(settings) - least)


def longest(signs: pd.Series, steps: pd.Series) -> float:
    """The longest unbroken stretch of True, as a share of the run.

    Args:
        signs: one boolean a row of the history.
        steps: the step of each row, at which a stretch of steps ends.
    """
    lengths = steps.diff().fillna(steps.iloc[0])
    stretches = lengths[signs].groupby((~signs).cumsum()[signs]).sum()
    return float(stretches.max() / steps.iloc[-1]) if len(stretches) else 0.0


def signs(run: Run) -> pd.DataFrame:
    """Each sign of failure in a DCGAN's history, with what it is measured by.

    Returns:
        Rows of sign, measured, limit, seen (whether the sign is there). The first two are shares
        of the run: the longest stretch in which D's loss is near zero, and in which D(x) is no
        higher than D(G(z)); the third is the samples' diversity as a share of real images'.
    """
    history, settings = run.history, run.settings
    won = longest(advantage(history, settings) < ZERO_LOSS, history["step"])
    useless = longest(history["d_real"] - history["d_fake"] < UNINFORMATIVE, history["step"])
    diversity = history["validation_diversity"].dropna().iloc[-1]
    rows = [
        ("discriminator loss near zero", won, LONG, won > LONG),
        ("discriminator at chance", useless, LONG, useless > LONG),
        ("generator collapsed", diversity, COLLAPSED, diversity < COLLAPSED),
    ]
    return pd.DataFrame(rows, columns=["sign", "measured", "limit", "seen"])
