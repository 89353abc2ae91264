"""A chapter's data, whichever they are.

Modules are imported where they are needed: a report's own process does without torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlcvlib.data.images import DigitData, FaceData
    from dlcvlib.params import Parameters


def load(params: "Parameters") -> "FaceData | DigitData":
    """The data of a chapter's parameters, prepared now or by an earlier run."""
    from dlcvlib.params import FaceParams

    if isinstance(params, FaceParams):
        from dlcvlib.data.faces import load_faces

        return load_faces(params)
    from dlcvlib.data.digits import load_digits

    return load_digits(params)


def look(chapters: Mapping[str, "Parameters"]) -> tuple[dict[str, str], bool]:
    """Prepare the data of some chapters; their fingerprints, and whether there is a GPU."""
    fingerprints = {name: load(params).fingerprint for name, params in chapters.items()}
    import torch

    return fingerprints, torch.accelerator.is_available()
