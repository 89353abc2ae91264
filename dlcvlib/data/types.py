"""Image sets in memory: uint8 tensors, split into train, validation and test.

Validation is held out of train; test is used only for evaluation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from dlcvlib.utils.errors import UserError
from dlcvlib.utils.markdown import escaped

CLASSES = 10
"""Digits from 0 to 9."""


@dataclass(frozen=True)
class ImageSet:
    """Images with binary attributes.

    Attributes:
        images: (N, 3, 64, 64) uint8 RGB.
        attributes: name -> (N,) uint8 of 0 and 1.
    """

    images: Tensor
    attributes: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.images)


Images = TypeVar("Images", "ImageSet", "LabelledImages")


@dataclass(frozen=True)
class Splits(Generic[Images]):
    """Images of one kind, split; validation is held out of train.

    Attributes:
        source: what the images are, in a few words, such as "images in hw3_data/face".
        synthetic: whether they are drawn.
        notes: what a reader must know about how they were read.
        fingerprint: hex digest of images, labels and attributes.
    """

    train: Images
    validation: Images
    test: Images
    source: str
    synthetic: bool
    notes: tuple[str, ...]
    fingerprint: str

    def description(self) -> str:
        """Markdown: a few sentences on what the data are, how many, and what to know about them."""
        text = (
            f"{escaped(self.source)}; {len(self.train):,} images for training, "
            f"{len(self.validation):,} for validation, {len(self.test):,} for testing."
        )
        return " ".join([text, *map(escaped, self.notes)])


@dataclass(frozen=True)
class FaceData(Splits[ImageSet]):
    """Faces, split."""

    def summary(self) -> str:
        """Markdown: a few sentences on what the data are, how many, and what to know about them."""
        return f"Data: {self.description()}"

    def attribute(self, requested: str) -> tuple[str, str]:
        """The requested attribute, or else the most balanced one with a sentence that says so.

        Raises:
            UserError: if all training or all test images have the same value, in every column.
        """
        balance = {
            name: min(_rarer(split.attributes[name]) for split in (self.train, self.test))
            for name in self.train.attributes
        }
        if balance.get(requested):
            return requested, ""
        if not any(balance.values()):
            raise UserError(
                "data: no attribute is 0 for some and 1 for other faces, in training and in test "
                f"alike (there are: {', '.join(balance) or 'none'}): add a column, or more faces; "
                "1-1, 1-2 and 1-3 need none"
            )
        best = max(balance, key=lambda name: balance[name])
        reason = f"The data have no {requested}"
        if requested in balance:
            reason = f"{requested} is the same for all training or all test images"
        return best, f"{reason}; {best}, the most balanced column, is used instead."


@dataclass(frozen=True)
class MeasuredFaces:
    """The faces a GAN trains on, and a measure of generated faces against held-out ones.

    Attributes:
        faces: the data.
        held_out: how many validation images generated ones are compared with; 0: none, ever.
        quality: generated images (held_out, 3, 64, 64) in 0..1 -> values by measure.
        fingerprint: hex digest of the data and of the features used for measuring.
    """

    faces: FaceData
    held_out: int
    quality: Callable[[Tensor], dict[str, float]]
    fingerprint: str


@dataclass(frozen=True)
class LabelledImages:
    """Digits with their labels.

    Attributes:
        images: (N, 3, 32, 32) uint8 RGB.
        labels: (N,) int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Domain(Splits[LabelledImages]):
    """Digits of one kind, split.

    Attributes:
        name: such as "usps", "mnistm" or "svhn".
        images_fingerprint: hex digest of the images alone.
    """

    name: str
    images_fingerprint: str


@dataclass(frozen=True)
class Adaptation:
    """What a method of unsupervised domain adaptation may see: the target has no labels here.

    Attributes:
        source: labelled images of the source, for training.
        validation: further labelled images of the source, held out of training.
        target: images of the target, for training, (N, 3, 32, 32) uint8.
        target_validation: further images of the target, held out of training.
        fingerprint: hex digest of all of these; no target label is in it.
    """

    source: LabelledImages
    validation: LabelledImages
    target: Tensor
    target_validation: Tensor
    fingerprint: str


@dataclass(frozen=True)
class Pair:
    """A source and a target domain."""

    source: Domain
    target: Domain

    @property
    def name(self) -> str:
        """Such as "usps->mnistm"."""
        return f"{self.source.name}->{self.target.name}"

    def adaptation(self) -> Adaptation:
        """The part of the pair that the methods may see."""
        source, target = self.source, self.target
        images = target.train.images, target.validation.images
        fingerprint = f"{source.fingerprint} {target.images_fingerprint}"
        return Adaptation(source.train, source.validation, *images, fingerprint)


@dataclass(frozen=True)
class DigitData:
    """The domains that the data have, and the pairs that can be run.

    Attributes:
        domains: name -> domain.
        pairs: name -> pair, in the requested order.
        left_out: a sentence for each requested pair that cannot be run.
        fingerprint: hex digest of everything.
    """

    domains: dict[str, Domain]
    pairs: dict[str, Pair]
    left_out: tuple[str, ...]
    fingerprint: str

    def summary(self) -> str:
        """Markdown: a sentence or two for each domain, and which pairs are left out."""
        texts = [f"{name} – {domain.description()}" for name, domain in self.domains.items()]
        return " ".join(["Data:", *texts, *(f"**{escaped(line)}**" for line in self.left_out)])


def _rarer(values: Tensor) -> float:
    """Share of the rarer of the two values 0 and 1."""
    share = float(values.float().mean())
    return min(share, 1 - share)
