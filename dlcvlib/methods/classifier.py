"""The digit classifier that chapters 3 and 4 share: a feature extractor F and a label classifier L.

Trained on the labels of a single domain, it is the baseline for adaptation: *source only* on the
source's labels, *target only* on the target's.

Departure from the original homework: F has the four blocks that its report describes, not the five
of its code.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcvlib.config.schema import ClassifierSettings, DANNParams, PixelDAParams, part
from dlcvlib.data.augment import AUGMENTATIONS
from dlcvlib.data.batches import Batches
from dlcvlib.data.types import CLASSES, Adaptation, Domain, LabelledImages
from dlcvlib.methods.blocks import halving
from dlcvlib.training.method import Batch, Method, update
from dlcvlib.training.processes import batch_mean

IMAGE_SIZE = 32


class FeatureExtractor(nn.Module):
    """F: Conv + BatchNorm + ReLU + MaxPool blocks.

    Args:
        channels: output channels of the blocks; each halves the image.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*halving(channels), nn.Flatten())
        self.size = channels[-1] * (IMAGE_SIZE >> len(channels)) ** 2

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) in 0..1 -> features (N, size)."""
        return self.layers(2 * images - 1)


class LabelClassifier(nn.Module):
    """L: three fully connected layers, ReLU after the first two.

    Args:
        features: length of F's output.
        width: of the two hidden layers.
        normalise: BatchNorm after the first layer.
    """

    def __init__(self, features: int, width: int, normalise: bool) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(features, width, bias=not normalise),
            *[nn.BatchNorm1d(width)] * normalise,
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.output = nn.Linear(width, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        """(N, features) -> logits (N, 10)."""
        return self.output(self.hidden(features))


class Classifier(Method):
    """F and L, trained by one Adam on one domain's labels; adaptation methods build on it."""

    name = "classifier"

    def __init__(self, settings: ClassifierSettings) -> None:
        super().__init__(settings)
        self.trains = {"classifier": ["extractor", "classifier"]}
        self.extractor, self.classifier = networks(settings)

    def batches(self, data: Domain, device: torch.device) -> Callable[[int], Batch]:
        """Training images (N, 3, 32, 32) in 0..1, augmented, and labels (N,)."""
        settings, tensors = self.settings, [data.train.images, data.train.labels]
        augment = AUGMENTATIONS[settings.augmentation]
        return Batches(tensors, settings.batch_size, settings.seed, device, augment)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of cross-entropy."""
        images, labels = batch
        loss = F.cross_entropy(self.logits(images), labels)
        update(loss, self.optimizers.values())
        return {"class": loss}

    def evaluate(self, data: Domain | Adaptation) -> dict[str, float]:
        """Accuracy on labelled validation images."""
        return {"accuracy": self.accuracy(data.validation, source=True)}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, 32, 32) in 0..1 -> F's output, L's last hidden layer, logits (N, 10)."""
        features = self.extractor(images)
        hidden = self.classifier.hidden(features)
        return features, hidden, self.classifier.output(hidden)

    def represent(self, images: Tensor, source: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, for images of one domain.

        Here and below, `source` is for methods that treat the source's images in their own way.
        """
        return self(images)

    def logits(self, images: Tensor, source: bool = False) -> Tensor:
        """(N, 3, 32, 32) in 0..1 -> (N, 10)."""
        return self.represent(images, source)[2]

    def predict(self, images: Tensor, source: bool = False) -> Tensor:
        """(N, 3, 32, 32) uint8 -> labels (N,) int64 on the CPU."""
        return self.over(lambda chunk: self.logits(chunk, source).argmax(1), images)

    def features(self, images: Tensor, source: bool = False) -> Tensor:
        """(N, 3, 32, 32) uint8 -> L's last hidden layer (N, width) float on the CPU."""
        return self.over(lambda chunk: self.represent(chunk, source)[1], images)

    def accuracy(self, data: LabelledImages, source: bool = False) -> float:
        """Share of correctly classified images, 0 to 1."""
        return (self.predict(data.images, source) == data.labels).float().mean().item()


BACKBONES: dict[str, Callable[[Sequence[int]], nn.Module]] = {
    "plain": FeatureExtractor,
}
"""What `backbone` can be: channels of the blocks -> F, whose `size` is the length of its output."""


def networks(settings: ClassifierSettings) -> tuple[nn.Module, LabelClassifier]:
    """F and L with these settings."""
    extractor = BACKBONES[settings.backbone](settings.channels)
    sizes = extractor.size, settings.classifier_width
    return extractor, LabelClassifier(*sizes, settings.normalise_classifier)


def learned(class_loss: Tensor) -> Tensor:
    """How far a class loss is below chance: from 0 (at chance, or worse) to 1 (a loss of 0)."""
    return (1 - batch_mean(class_loss.detach()) / math.log(CLASSES)).clamp_min(0)


class TwoDomains(Classifier):
    """A classifier whose training also sees the target's images, without their labels.

    Attributes:
        title: its name in tables and figures.
    """

    title: ClassVar[str]

    @classmethod
    def settings_of(cls, chapter: DANNParams | PixelDAParams, seed: int) -> Any:
        """The settings of a seed's run: by default chapter 3's parameters, which 4 has too."""
        declared = get_type_hints(cls.__init__)["settings"]
        return part(declared, getattr(chapter, "dann", chapter), seed=seed)

    @property
    def augmentations(self) -> tuple[str, str]:
        """Names of the augmentations of source and of target images in a batch."""
        return self.settings.augmentation, self.settings.target_augmentation

    def batches(self, data: Adaptation, device: torch.device) -> Callable[[int], Batch]:
        """Source images (N, 3, 32, 32) in 0..1, labels (N,), target images (N, 3, 32, 32).

        The domains are drawn independently.
        """
        size, seed = self.settings.batch_size, self.settings.seed
        of_source, of_target = (AUGMENTATIONS[name] for name in self.augmentations)
        labelled = [data.source.images, data.source.labels]
        from_source = Batches(labelled, size, seed, device, of_source)
        # In a different order from the source's, even if both have the same size.
        from_target = Batches([data.target], size, ~seed, device, of_target)
        return lambda step: (*from_source(step), *from_target(step))
