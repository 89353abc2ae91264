"""A small classifier of the faces' attributes, whose hidden layer provides image features.

Distances in its feature space (KID, FID) are comparable within one data set and one trained
network, not with published values.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcvlib.config.schema import AttributeSettings
from dlcvlib.data.batches import Batches, random_flips, resized
from dlcvlib.data.types import FaceData
from dlcvlib.training.method import Batch, Method, update


class AttributeNet(nn.Module):
    """Strided convolutions to a feature vector, then a linear layer to the attributes' logits."""

    def __init__(self, attributes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, out_channels in itertools.pairwise((3, 32, 64, 128, 128)):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        # BatchNorm gives features of unit scale, whatever the data: KID's cubic kernel needs it.
        self.hidden = nn.Sequential(
            nn.Linear(4 * 128, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()
        )
        self.head = nn.Linear(128, attributes)

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) in 0..1 -> (N, 128)."""
        return self.hidden(self.convolutions(2 * images - 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) in 0..1 -> logits (N, attributes)."""
        return self.head(self.features(images))


class AttributeClassifier(Method):
    """`AttributeNet`, trained by binary cross-entropy on all attributes at once."""

    name = "features"

    def __init__(self, settings: AttributeSettings) -> None:
        super().__init__(settings)
        self.net = AttributeNet(len(settings.attributes))

    def batches(self, data: FaceData, device: torch.device) -> Callable[[int], Batch]:
        """Training images (N, 3, 64, 64) in 0..1, mirrored at random, attributes (N, A), 0 or 1."""
        settings = self.settings
        columns = [data.train.attributes[name] for name in settings.attributes]
        tensors = [data.train.images, torch.stack(columns, dim=1).float()]
        flips = random_flips(horizontal=True, vertical=False)
        return Batches(tensors, settings.batch_size, settings.seed, device, flips)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of binary cross-entropy."""
        images, attributes = batch
        loss = F.binary_cross_entropy_with_logits(self.net(images), attributes)
        update(loss, self.optimizers.values())
        return {"cross_entropy": loss}

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, S, S), uint8 or float in 0..1 -> (N, 128) float on the CPU; S up to 64."""
        return self.over(lambda chunk: self.net.features(resized(chunk, 64)), as_uint8(images))

    def probabilities(self, images: Tensor) -> dict[str, Tensor]:
        """By attribute, the probability that each image (N, 3, S, S) has it: (N,); S up to 64."""
        logits = self.over(lambda chunk: self.net(resized(chunk, 64)), as_uint8(images))
        return dict(zip(self.settings.attributes, logits.sigmoid().T, strict=True))


def as_uint8(images: Tensor) -> Tensor:
    """Generated images, float in 0..1, rounded to uint8 like real ones."""
    if images.dtype == torch.uint8:
        return images
    return images.mul(255).round().clamp(0, 255).byte()
