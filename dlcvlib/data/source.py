"""A chapter's data, whichever they are.

Modules are imported where they are needed: a report's own process does without torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dlcvlib.utils import fingerprints

LEAST_FACES = {"train": 32, "validation": 32, "test": 32}
LEAST_DIGITS = {"train": 32, "validation": 2, "test": 12}
"""Images of a split that the notebooks' grids, batches and neighbourhoods need."""

if TYPE_CHECKING:
    from dlcvlib.config.schema import Parameters
    from dlcvlib.data.types import DigitData, FaceData


def load(params: "Parameters") -> "FaceData | DigitData":
    """The data of a chapter's parameters, prepared now or by an earlier run."""
    from dlcvlib.config.schema import FaceParams

    if isinstance(params, FaceParams):
        from dlcvlib.data.faces import load_faces

        return load_faces(params)
    from dlcvlib.data.digits import load_digits

    return load_digits(params)


def look(chapters: Mapping[str, "Parameters"]) -> tuple[dict[str, str], bool]:
    """Prepare the data of some chapters; their fingerprints, and whether there is a GPU.

    These fingerprints cover what is said of the data too, such as files that were left out, and
    Inception's weights, by which faces are measured where they are there.
    """
    import torch

    from dlcvlib.config.schema import DigitParams, FaceParams

    found, looked = {}, {}
    for name, params in chapters.items():
        fields = FaceParams if isinstance(params, FaceParams) else DigitParams
        part = fingerprints.json_hash({f: getattr(params, f) for f in fields.model_fields})
        # Two chapters mostly have the same images, and a set of faces can be gigabytes.
        looked[part] = looked.get(part) or _look(params)
        found[name] = looked[part]
    return found, torch.accelerator.is_available()


def _look(params: "Parameters") -> str:
    from dlcvlib.config.schema import FaceParams
    from dlcvlib.evaluation import features

    data = load(params)
    _enough(data)
    identity = {"data": data.fingerprint, "said": data.summary()}
    if isinstance(params, FaceParams):
        data.attribute(params.attribute)  # an error before anything trains
        if file := features.inception_file():
            identity["Inception"] = [file.stat().st_size, file.stat().st_mtime_ns]
    return fingerprints.json_hash(identity)


def _enough(data: "FaceData | DigitData") -> None:
    """Raise a UserError where a set is too small for what the notebooks show of it."""
    from dlcvlib.data.types import DigitData
    from dlcvlib.utils.errors import UserError

    if isinstance(data, DigitData):
        sets, needed = data.domains, LEAST_DIGITS
    else:
        sets, needed = {"the faces": data}, LEAST_FACES
    for name, found in sets.items():
        for split, least in needed.items():
            if (count := len(getattr(found, split))) < least:
                held_out = f" besides the {len(found.validation):,} of validation_size"
                raise UserError(
                    f"data: {name} have {count} images for {split}, and the report needs {least}"
                    + (held_out if split == "train" else "")
                )
