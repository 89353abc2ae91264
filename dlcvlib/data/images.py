"""Image sets in memory: uint8 tensors with attributes, split into train, validation and test."""

from dataclasses import dataclass

from torch import Tensor

from dlcvlib.errors import UserError


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
        """One or two sentences: what the data are and what to know about them."""
        sizes = f"{len(self.train):,} for training, {len(self.validation):,} for validation, "
        text = f"Data: {self.source}; {sizes}{len(self.test):,} for testing."
        return " ".join([text, *self.notes])

    def attribute(self, wanted: str) -> tuple[str, str | None]:
        """The wanted attribute, or else the most balanced one with a line that says so.

        Raises:
            UserError: if the data have no attributes.
        """
        names = self.train.attributes
        if wanted in names:
            return wanted, None
        if not names:
            raise UserError(f"{self.source} have no attributes: add 0/1 columns to their CSV")
        balance = {name: abs(float(v.float().mean()) - 0.5) for name, v in names.items()}
        found = min(balance, key=lambda name: balance[name])
        return found, f"The data have no {wanted}; {found}, the most balanced column, stands in."
