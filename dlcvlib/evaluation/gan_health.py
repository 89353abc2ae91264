"""For how long one player of a GAN overpowers the other."""

import pandas as pd

CERTAIN = 0.99
"""D overpowers G while its accuracy on real and generated images is above this."""


def longest(signs: pd.Series, steps: pd.Series) -> float:
    """Length of the longest unbroken stretch of True, as a share of the run.

    Args:
        signs: one boolean per row of the history.
        steps: the step of each row, at which a stretch of steps ends.
    """
    lengths = steps.diff().fillna(steps.iloc[0])
    stretches = lengths[signs].groupby((~signs).cumsum()[signs]).sum()
    return float(stretches.max() / steps.iloc[-1]) if len(stretches) else 0.0
