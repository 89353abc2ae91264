"""The original, one solution of the homework, for comparison: reported numbers and settings."""

from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from dlcvlib.config.schema import Parameters, as_text, load


@cache
def report() -> dict[str, Any]:
    """The numbers in the original report (`original_report.yaml`)."""
    path = Path(__file__).with_name("original_report.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def settings_beside(chapter: str, settings: Parameters) -> pd.DataFrame:
    """Settings beside those of profile `original`: parameter, here, original, meaning.

    Args:
        chapter: such as "vae".
        settings: what was run; shown are those that are also parameters of the chapter or of the
            chapters that it uses.
    """
    theirs = load("original", chapter)
    known = dict(chain(*theirs.uses.values(), theirs))  # parameters iterate as (name, value)
    rows = [
        (name, as_text(getattr(settings, name)), as_text(known[name]), field.description)
        for name, field in type(settings).model_fields.items()
        if name in known
    ]
    return pd.DataFrame(rows, columns=["parameter", "here", "original", "meaning"])
