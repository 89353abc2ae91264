"""The data of any chapter, faces or digits.

Modules are imported where they are needed: the report's own process does not load torch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dlcvlib.utils import fingerprints
from dlcvlib.utils.errors import UserError

LEAST_FACES = {"train": 32, "validation": 32, "test": 32}
LEAST_DIGITS = {"train": 32, "validation": 2, "test": 12}
"""Minimum number of images per split, for the notebooks' grids, batches and neighbourhoods."""

if TYPE_CHECKING:
    from dlcvlib.config.schema import Parameters
    from dlcvlib.data.types import DigitData, Domain, FaceData


def load(params: "Parameters") -> "FaceData | DigitData":
    """The data of a chapter's parameters, prepared now or by an earlier run."""
    from dlcvlib.config.schema import FaceParams

    if isinstance(params, FaceParams):
        from dlcvlib.data.faces import load_faces

        return load_faces(params)
    from dlcvlib.data.digits import load_digits

    return load_digits(params)


def inspect_data(chapters: Mapping[str, "Parameters"]) -> tuple[dict[str, str], bool]:
    """Prepare the data of some chapters, and check that there are enough.

    Returns:
        Fingerprint of each chapter's data, and whether there is a GPU. These fingerprints cover
        what the report says about the data too, such as files that were left out, and the weights
        of Inception, which measures faces if they are there.

    Raises:
        UserError: if data cannot be read, are too few, or no attribute varies.
    """
    import torch

    from dlcvlib.config.schema import DigitParams, FaceParams

    inspected, result = {}, {}
    for name, params in chapters.items():
        fields = FaceParams if isinstance(params, FaceParams) else DigitParams
        part = fingerprints.json_hash({f: getattr(params, f) for f in fields.model_fields})
        # Two chapters usually share their images, and a set of faces can take gigabytes.
        inspected[part] = inspected.get(part) or _inspect(params)
        result[name] = inspected[part]
    return result, torch.accelerator.is_available()


def _inspect(params: "Parameters") -> str:
    from dlcvlib.data.types import FaceData
    from dlcvlib.data.weights import inception_file

    data = load(params)
    identity = {"data": data.fingerprint, "summary": data.summary()}
    if isinstance(data, FaceData):
        _check_sizes("the faces", data, LEAST_FACES)
        data.attribute(params.attribute)  # an error before anything trains
        if file := inception_file():
            identity["Inception"] = [file.stat().st_size, file.stat().st_mtime_ns]
    else:
        for name, domain in data.domains.items():
            _check_sizes(name, domain, LEAST_DIGITS)
    return fingerprints.json_hash(identity)


def _check_sizes(name: str, data: "FaceData | Domain", least: Mapping[str, int]) -> None:
    for split, needed in least.items():
        if (count := len(getattr(data, split))) < needed:
            held_out = f" besides the {len(data.validation):,} of validation_size"
            raise UserError(
                f"data: {name} have {count} images for {split}, but the report needs {needed}"
                + (held_out if split == "train" else "")
            )
