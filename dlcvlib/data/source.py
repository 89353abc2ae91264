"""The data of any chapter, faces or digits."""

from collections.abc import Mapping

import torch

from dlcvlib.config.schema import FaceParams, Parameters
from dlcvlib.data.digits import load_digits
from dlcvlib.data.faces import load_faces
from dlcvlib.data.types import DigitData, FaceData
from dlcvlib.data.weights import inception_file
from dlcvlib.utils import fingerprints
from dlcvlib.utils.errors import UserError

LEAST_FACES = {"train": 32, "validation": 32, "test": 32}
LEAST_DIGITS = {"train": 32, "validation": 2, "test": 12}
"""Minimum number of images per split, for the notebooks' grids, batches and neighbourhoods."""


def load(params: Parameters) -> FaceData | DigitData:
    """The data of a chapter's parameters, prepared now or by an earlier run."""
    return load_faces(params) if isinstance(params, FaceParams) else load_digits(params)


def inspect_data(
    chapters: Mapping[str, Parameters], attributes: bool = True
) -> tuple[dict[str, str], int]:
    """Prepare the data of some chapters, and check that there are enough.

    Args:
        chapters: their parameters by name.
        attributes: whether the faces need any.

    Returns:
        Fingerprint of each chapter's data, and the number of GPUs. These fingerprints cover
        what the report says about the data too, such as files that were left out, and the weights
        of Inception, which measures faces if they are there.

    Raises:
        UserError: if data cannot be read, are too few, or no attribute that is needed varies.
    """
    found = {name: _inspect(params, attributes) for name, params in chapters.items()}
    return found, torch.accelerator.device_count()


def _inspect(params: Parameters, attributes: bool) -> str:
    data = load(params)
    identity = {"data": data.fingerprint, "summary": data.summary()}
    faces = isinstance(data, FaceData)
    sets, least = ({"the faces": data}, LEAST_FACES) if faces else (data.domains, LEAST_DIGITS)
    for name, images in sets.items():
        for split, needed in least.items():
            if (count := len(getattr(images, split))) < needed:
                raise UserError(
                    f"data: {name} have {count} images for {split}, but the report needs {needed}: "
                    "see drawn_train, drawn_test, image_limit, validation_size (taken from train)"
                )
    if faces and attributes:
        data.attribute(params.attribute)  # an error before anything trains
    if faces and (file := inception_file()):
        identity["Inception"] = [file.stat().st_size, file.stat().st_mtime_ns]
    return fingerprints.json_hash(identity)
