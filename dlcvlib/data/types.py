"""Image sets in memory: uint8 tensors, split into train, validation and test.

Validation is held out of train; test is read for the tables alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class FaceData:
    """Faces, split; validation is held out of train.

    Attributes:
        source: a few words for captions, such as "photographs in hw3_data".
        synthetic: whether the faces are drawn.
        notes: what a reader must know about how they were read.
        fingerprint: hex digest of all that training can see.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    source: str
    synthetic: bool
    notes: tuple[str, ...]
    fingerprint: str

    def images(self) -> dict[str, Tensor]:
        """Images of the training and the test split by name."""
        return {"train": self.train.images, "test": self.test.images}

    def summary(self) -> str:
        """Markdown: one or two sentences on what the data are and what to know about them."""
        text = f"Data: {escaped(self.source)}; {_sizes(self)}."
        return " ".join([text, *map(escaped, self.notes)])

    def note(self) -> str:
        """Markdown for the end of a caption: what the pictures and numbers are of."""
        return f"Data: {'synthetic faces' if self.synthetic else escaped(self.source)}."

    def attribute(self, wanted: str) -> tuple[str, str]:
        """The wanted attribute, or else the most balanced one with a line that says so.

        Raises:
            UserError: if all training or all test images have the same value, in every column.
        """
        balance = {
            name: min(_rarer(split.attributes[name]) for split in (self.train, self.test))
            for name in self.train.attributes
        }
        if balance.get(wanted):
            return wanted, ""
        found = max(balance, key=lambda name: balance[name])
        if not balance[found]:
            raise UserError(
                "data: no attribute is 0 for some and 1 for others of both training and test "
                f"faces (there are: {', '.join(balance)}): add a column, or more faces"
            )
        if wanted in balance:
            why = f"{wanted} is the same for all training or all test images"
        else:
            why = f"The data have no {wanted}"
        return found, f"{why}; {found}, the most balanced column, stands in."


@dataclass(frozen=True)
class MeasuredFaces:
    """Faces, and how far generated ones are from the held-out ones: what a GAN trains on.

    Attributes:
        faces: the data.
        held_out: how many validation images generated ones are compared with.
        quality: generated images (held_out, 3, 64, 64) in 0..1 -> measures by name.
        fingerprint: hex digest of the data and of the features that they are measured by.
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
class Domain:
    """Digits of one kind, split.

    Attributes:
        name: "usps", "mnistm" or "svhn".
        source: what they really are, in a few words.
        synthetic: whether they are drawn.
        notes: what a reader must know about how they were read.
        fingerprint: hex digest of images and labels.
        images_fingerprint: hex digest of the images alone.
        brief: the source in two or three words for captions, if it has more.
    """

    name: str
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    source: str
    synthetic: bool
    notes: tuple[str, ...]
    fingerprint: str
    images_fingerprint: str
    brief: str = ""

    def summary(self) -> str:
        """Markdown: a sentence or two on what they are, how many, what to know about them."""
        text = f"{self.name}: {escaped(self.source)}; {_sizes(self)}."
        return " ".join([text, *map(escaped, self.notes)])


@dataclass(frozen=True)
class Adaptation:
    """All that a method of unsupervised domain adaptation may see: the target has no labels here.

    Attributes:
        source: labelled images of the source, for training.
        source_validation: others, held out.
        target: images of the target, for training, (N, 3, 32, 32) uint8.
        target_validation: others, held out.
        fingerprint: hex digest of all that; no target label is in it.
    """

    source: LabelledImages
    source_validation: LabelledImages
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

    def note(self) -> str:
        """`DigitData.note` of these two."""
        return _note([self.source, self.target])

    def adaptation(self) -> Adaptation:
        """What the methods are handed of it."""
        return Adaptation(
            self.source.train,
            self.source.validation,
            self.target.train.images,
            self.target.validation.images,
            f"{self.source.fingerprint} {self.target.images_fingerprint}",
        )


@dataclass(frozen=True)
class DigitData:
    """The domains that there are, and the pairs that can be run.

    Attributes:
        domains: name -> domain.
        pairs: name -> pair, in the order asked for.
        left_out: a line for each pair that was asked for and cannot be run.
        fingerprint: hex digest of everything.
    """

    domains: dict[str, Domain]
    pairs: dict[str, Pair]
    left_out: tuple[str, ...]
    fingerprint: str

    def summary(self) -> str:
        """Markdown: a line a domain, and what is missing."""
        lines = [f"- {domain.summary()}" for domain in self.domains.values()]
        return "\n".join([*lines, *(f"- **{escaped(line)}**" for line in self.left_out)])

    def brief(self) -> str:
        """The same in a sentence or two."""
        parts = [f"{name} ({escaped(domain.source)})" for name, domain in self.domains.items()]
        return " ".join(
            [f"Data: {', '.join(parts)}.", *(f"**{escaped(x)}**" for x in self.left_out)]
        )

    def note(self) -> str:
        """Markdown for the end of a caption: what each domain really is, in the fewest words."""
        return _note(self.domains.values())


def _rarer(values: Tensor) -> float:
    """Share of the rarer of the two values 0 and 1."""
    share = float(values.float().mean())
    return min(share, 1 - share)


def _note(domains: Iterable[Domain]) -> str:
    parts = [f"{domain.name} ({escaped(domain.brief or domain.source)})" for domain in domains]
    return f"Data: {', '.join(parts)}."


def _sizes(data: FaceData | Domain) -> str:
    return (
        f"{len(data.train):,} for training, {len(data.validation):,} for validation, "
        f"{len(data.test):,} for testing"
    )
