"""The digit classifier that chapters 3 and 4 share: a feature extractor F and a label classifier L.

Trained on the labels of one domain alone it is what adaptation is measured against: on the source's
it is *source only*, on the target's *target only*.

Where we depart from the original homework: F has the four blocks that its report describes, not the
five of its code; images may be normalised one by one (`instance_norm`), which takes away light and
contrast that the domains do not share (Shu et al.: A DIRT-T Approach. ICLR 2018, section 6).
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcvlib.config.schema import ClassifierSettings
from dlcvlib.data.augment import AUGMENTATIONS
from dlcvlib.data.batches import Batches, float_chunks
from dlcvlib.data.types import CLASSES, Domain, LabelledImages
from dlcvlib.training import runs
from dlcvlib.training.loop import adam, evaluating, move
from dlcvlib.training.runs import Run, device_of

IMAGE_SIZE = 32
CODE = ("methods/classifier", "data/augment")
"""Modules that decide every method built on this classifier."""


class FeatureExtractor(nn.Module):
    """F: Conv + BatchNorm + ReLU + MaxPool blocks.

    Args:
        channels: output channels of the blocks; each halves the image.
        instance_norm: normalise each channel of each image by its own mean and deviation first.
    """

    def __init__(
        self, channels: Sequence[int] = (64, 128, 256, 512), instance_norm: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.InstanceNorm2d(3)] * instance_norm
        for in_channels, out_channels in zip((3, *channels), channels, strict=False):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.MaxPool2d(2),  # before ReLU: the same result, on a quarter of the values
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.size = channels[-1] * (IMAGE_SIZE >> len(channels)) ** 2

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) in 0..1 -> features (N, size)."""
        return self.layers(2 * images - 1)


class LabelClassifier(nn.Module):
    """L: three fully connected layers, ReLU after the first two."""

    def __init__(self, features: int, width: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, CLASSES),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, features) -> logits (N, 10)."""
        return self.layers(features)


class Classifier:
    """F and L and Adam, for `training.fit`; the methods of adaptation build on it."""

    def __init__(self, settings: ClassifierSettings) -> None:
        self.settings = settings
        self.done = 0
        self.extractor = FeatureExtractor(settings.channels, settings.instance_norm)
        self.classifier = LabelClassifier(self.extractor.size, settings.classifier_width)
        self.modules = {"extractor": self.extractor, "classifier": self.classifier}

    @cached_property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """F's and L's."""
        return {"classifier": adam([self.extractor, self.classifier], self.settings)}

    def step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """One step of cross-entropy on images (N, 3, 32, 32) in 0..1 and labels (N,)."""
        images, labels = batch
        loss = F.cross_entropy(self.logits(images), labels)
        move(loss, self.optimizers.values())
        return {"class": loss}

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) in 0..1 -> (N, 10)."""
        return self.classifier(self.extractor(images))

    def predict(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) uint8 -> labels (N,) int64 on the CPU."""
        return self._over(lambda chunk: self.logits(chunk).argmax(1), images)

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) uint8 -> F's output (N, size) float on the CPU."""
        return self._over(self.extractor, images)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """What `features` gave, (N, size) -> labels (N,) int64 on the CPU, as `predict`'s."""
        return self.classifier(features.to(device_of(self.classifier))).argmax(1).cpu()

    def accuracy(self, data: LabelledImages) -> float:
        """Share of images whose label is predicted, 0 to 1."""
        return (self.predict(data.images) == data.labels).float().mean().item()

    @torch.no_grad()
    def _over(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with evaluating(self.modules):
            chunks = float_chunks(images, device_of(self.extractor))
            found = torch.cat([function(chunk).cpu() for chunk in chunks])
        return found.float() if found.is_floating_point() else found


def learned(class_loss: Tensor) -> Tensor:
    """How far a class loss lies below that of guessing: from 0 (it guesses, or worse) to 1."""
    return (1 - class_loss.detach() / math.log(CLASSES)).clamp_min(0)


def train_or_load(
    settings: ClassifierSettings, domain: Domain, runs_dir: Path | str
) -> Run[Classifier]:
    """The classifier of a domain's training labels, trained now or by an earlier run."""
    return runs.train_or_load(
        "classifier",
        lambda: Classifier(settings),
        lambda device: Batches(
            [domain.train.images, domain.train.labels],
            settings.batch_size,
            settings.seed,
            device,
            AUGMENTATIONS[settings.augmentation],
        ),
        settings,
        data=domain.fingerprint,
        runs_dir=runs_dir,
        code=CODE,
        evaluate=lambda method: {"accuracy": method.accuracy(domain.validation)},
    )
