"""The original, one solution of the homework, for comparison: reported numbers and settings."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dlcvlib.config.schema import Parameters, as_text, load

if TYPE_CHECKING:
    import pandas as pd


@cache
def report() -> dict[str, Any]:
    """The numbers in the original report (`original_report.yaml`)."""
    path = Path(__file__).with_name("original_report.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def settings_beside(
    chapter: str, settings: Parameters, names: Sequence[str] = ()
) -> "pd.DataFrame":
    """Settings beside those of profile `original`: parameter, here, original, meaning.

    Args:
        chapter: such as "vae".
        settings: what was run.
        names: which to show; by default all that are also parameters of the chapter or of the
            chapters that it uses.
    """
    # Here, because a report's own process reads these numbers too, and does without 40 MB of it.
    import pandas as pd

    theirs = load("original", chapter)
    known: dict[str, Any] = {}
    for source in (*theirs.uses.values(), theirs):
        known |= dict(source)
    fields = type(settings).model_fields
    rows = []
    for name in names or [name for name in fields if name in known]:
        here, original = as_text(getattr(settings, name)), as_text(known[name])
        rows.append((name, here, original, fields[name].description))
    return pd.DataFrame(rows, columns=["parameter", "here", "original", "meaning"])
