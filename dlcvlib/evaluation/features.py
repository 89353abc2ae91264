"""Image features for KID, FID, precision and recall, without any download.

The project's own features come from a classifier of the data's attributes that is trained here
(`methods.attributes`). Where Inception's weights are in torch's cache as safetensors, they are used
as well.
"""

import functools
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dlcvlib.config.schema import AttributeSettings, GANParams, VAEParams, part
from dlcvlib.data.batches import CHUNK, resized
from dlcvlib.data.types import FaceData, MeasuredFaces
from dlcvlib.data.weights import INCEPTION, inception_file
from dlcvlib.evaluation import metrics
from dlcvlib.methods.attributes import AttributeClassifier, as_uint8
from dlcvlib.training import device
from dlcvlib.training.runs import Run, train_or_load
from dlcvlib.utils.errors import UserError

Features = Callable[[Tensor], Tensor]
"""Images (N, 3, 64, 64), uint8 or float in 0..1 -> (N, D) float on the CPU."""
OWN = "a network trained here on the data's attributes"
"""The project's own features, which every comparison uses, in captions and tables."""


def attribute_classifier(
    params: VAEParams | GANParams, faces: FaceData
) -> Run[AttributeClassifier]:
    """The classifier of the faces' attributes, shared by both chapters on faces.

    If these differ in `extractor_steps` or in how they compute, so do their distances.
    """
    faces.attribute(params.attribute)  # an error if there is none to learn
    task = {"steps": params.extractor_steps, "batch_size": 128, "seed": 0, "weight_decay": 0.0}
    task |= {"adam_betas": [0.9, 0.999], "learning_rate": 2e-3, "learning_rate_schedule": "cosine"}
    task["attributes"] = sorted(faces.train.attributes)
    settings = part(AttributeSettings, params, task)
    return train_or_load(AttributeClassifier, settings, faces, params.runs_dir)


def extractors(params: VAEParams | GANParams, faces: FaceData) -> dict[str, Features]:
    """All features that faces are measured with: `OWN`, and Inception's if available."""
    own = attribute_classifier(params, faces)
    found: dict[str, Features] = {OWN: lambda images: own.method.features(images)}
    if extract := inception():
        found["Inception-v3 (ImageNet)"] = extract
    return found


def measured(params: GANParams, faces: FaceData) -> MeasuredFaces:
    """Faces for a GAN, whose samples are compared with validation images during training.

    The measures are the KID over all images at once, precision and recall; images of another size
    are compared with the real ones at that size.
    """
    own = attribute_classifier(params, faces).name
    images = faces.validation.images[: metrics.COMPARED]

    @functools.cache
    def network() -> AttributeClassifier:  # at the first measurement: never for a loaded run
        return attribute_classifier(params, faces).method

    @functools.cache
    def real(side: int) -> Tensor:
        return network().features(resized(images, side))

    def quality(generated: Tensor) -> dict[str, float]:
        compared = real(generated.shape[-1]), network().features(generated)
        precision, recall = metrics.precision_recall(*compared)
        kid = metrics.squared_mmd(*(features.double() for features in compared)).item()
        return {"kid": kid, "precision": precision, "recall": recall}

    return MeasuredFaces(faces, len(images), quality, f"{faces.fingerprint} {own}")


def marginals(classifier: AttributeClassifier, sets: Mapping[str, Tensor]) -> pd.DataFrame:
    """Share of images (N, 3, S, S) of each set with each attribute, as the classifier finds them.

    Returns:
        One row per attribute, one column per set.
    """

    def shares(images: Tensor) -> dict[str, float]:
        found = classifier.probabilities(images)
        return {n.replace("_", " "): (p > 0.5).float().mean().item() for n, p in found.items()}

    return pd.DataFrame({name: shares(images) for name, images in sets.items()})


def inception() -> Features | None:
    """Inception-v3's pooled features, if its weights are in torch's cache as safetensors.

    torchvision's own file there is a pickle and is not read.

    Raises:
        UserError: if the file does not hold Inception's weights.
    """
    if (file := inception_file()) is None:
        return None
    # Imported only when needed: it takes a second and 150 MB.
    from torchvision.models import Inception_V3_Weights, inception_v3

    weights = Inception_V3_Weights.IMAGENET1K_V1
    net = inception_v3(init_weights=False, transform_input=True)
    try:
        net.load_state_dict(load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(
            f"{file} does not hold the weights of {INCEPTION} ({error}): replace or remove it"
        ) from None
    where = device.default()
    net.eval().requires_grad_(False).to(where)
    net.fc = nn.Identity()
    # The whole picture; the weights' own preprocessing would crop its margin.
    prepare = weights.transforms(antialias=True, resize_size=299, crop_size=299)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        chunks = as_uint8(images).split(CHUNK)
        return torch.cat([net(prepare(chunk.to(where))).cpu() for chunk in chunks])

    return features
