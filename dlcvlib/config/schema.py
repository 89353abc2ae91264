"""The parameters of the four chapters, and how a profile's files set them.

`params/<profile>/<chapter>.yaml` is a flat mapping that papermill takes as it is; what a profile
does not set comes from `quick`.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import yaml
from pydantic import Field, model_validator

from dlcvlib.config import paths
from dlcvlib.config.settings import (
    PROFILES,
    AdaMatchFields,
    AdaMatchSettings,
    ClassifierSettings,
    DANNFields,
    DANNSettings,
    DigitParams,
    FaceParams,
    GANSettings,
    Parameters,
    Perplexity,
    PixelDAFields,
    PixelDASettings,
    Positive,
    Profile,
    Rate,
    Seeds,
    Several,
    VAESettings,
    Weights,
    means,
)
from dlcvlib.utils.errors import UserError

P = TypeVar("P", bound=Parameters)


class Chapter(Parameters):
    """All parameters of one chapter.

    Attributes:
        chapter: its name, as in `params/<profile>/<chapter>.yaml`.
        used: names of the other chapters whose runs this one uses; each is a property too.
    """

    chapter: ClassVar[str]
    used: ClassVar[tuple[str, ...]] = ()

    @property
    def uses(self) -> dict[str, "Chapter"]:
        """The parameters of the chapters that this one uses, by name.

        Raises:
            UserError: if `<chapter>_changes` holds what that chapter refuses.
        """
        return {chapter: getattr(self, chapter) for chapter in self.used}

    @model_validator(mode="after")
    def _uses_are_valid(self) -> Self:
        _ = self.uses
        return self


def _values(cls: type[Parameters], params: Parameters) -> dict[str, Any]:
    """Those of the parameters that a class has too, by name."""
    return params.model_dump(include=set(cls.model_fields))


def _part(cls: type[P], params: Parameters, **more: Any) -> P:
    """The parameters that a class of settings asks for."""
    return cls(**_values(cls, params) | more)


class VAEParams(FaceParams, VAESettings, Chapter):
    """Chapter 1."""

    chapter = "vae"
    kld_weights: Weights = means("KLD weights that 1-6 compares")
    ablation_steps: Positive = means("training steps of each run of 1-6")
    ablation_seeds: Seeds = means("seeds of each comparison of 1-6")
    tsne_points: Annotated[int, Field(ge=50, le=5000)] = means("points in a t-SNE plot")
    tsne_perplexity: Perplexity = means("t-SNE's perplexity: effective number of neighbours")

    @property
    def settings(self) -> VAESettings:
        """The part that decides the trained model."""
        return _part(VAESettings, self)


class GANParams(FaceParams, GANSettings, Chapter):
    """Chapter 2."""

    chapter = "gan"
    used = ("vae",)
    ablation_steps: Positive = means("training steps of each run of 2-3")
    ablation_batch_size: Several = means("images per batch in the runs of 2-3")
    ablation_channels: Positive = means("width of the networks of 2-3")
    ablation_learning_rate: Rate = means("learning rate of the runs of 2-3")
    ablation_seeds: Seeds = means("seeds of each comparison of 2-3")
    vae_profile: Profile = means("profile of the VAE that 2-4 compares with")
    vae_changes: dict[str, Any] = means("its parameters that differ from the profile")

    @property
    def settings(self) -> GANSettings:
        """The part that decides the trained model."""
        return _part(GANSettings, self)

    @cached_property
    def vae(self) -> VAEParams:
        """Chapter 1's parameters, on this chapter's faces; as they were when this was made."""
        return load(self.vae_profile, "vae", self.vae_changes | _values(FaceParams, self))


class DANNParams(DigitParams, DANNFields, Chapter):
    """Chapter 3."""

    chapter = "dann"
    domain_weights: Weights = means("weights of the domain loss that 3-6 compares")
    ablation_steps: Positive = means("training steps of each run of 3-5 and 3-6")

    def classifier(self, seed: int) -> ClassifierSettings:
        """Settings of the source-only and target-only classifiers."""
        return _part(ClassifierSettings, self, seed=seed)

    def settings(self, seed: int) -> DANNSettings:
        """Settings of the DANN of a seed."""
        return _part(DANNSettings, self, seed=seed)


class PixelDAParams(DigitParams, AdaMatchFields, PixelDAFields, Chapter):
    """Chapter 4; networks and augmentation of the classifier are chapter 3's."""

    chapter = "pixelda"
    used = ("dann",)
    adamatch_steps: Positive = means("training steps of AdaMatch")
    adamatch_batch_size: Several = means("images per domain in a batch of AdaMatch")
    adamatch_learning_rate: Rate = means("AdaMatch's peak learning rate")
    task_weights: Weights = means("weights of the classifier's loss that 4-4 compares")
    ablation_steps: Positive = means("training steps of each run of 4-4")
    dann_profile: Profile = means("profile of chapter 3, whose runs and classifier are used")
    dann_changes: dict[str, Any] = means("its parameters that differ from the profile")

    @cached_property
    def dann(self) -> DANNParams:
        """Chapter 3's parameters, on this chapter's digits; as they were when this was made."""
        return load(self.dann_profile, "dann", self.dann_changes | _values(DigitParams, self))

    def settings(self, seed: int) -> PixelDASettings:
        """Settings of the PixelDA of a seed."""
        return _part(PixelDASettings, self.dann, seed=seed, **_values(PixelDAFields, self))

    def adamatch(self, seed: int) -> AdaMatchSettings:
        """Settings of the AdaMatch of a seed: strong and weak views are the method's own."""
        return _part(
            AdaMatchSettings,
            self.dann,
            seed=seed,
            steps=self.adamatch_steps,
            batch_size=self.adamatch_batch_size,
            learning_rate=self.adamatch_learning_rate,
            precision=self.precision,
            augmentation="strong",
            target_augmentation="geometric",
            **_values(AdaMatchFields, self),
        )


KINDS: list[type[Chapter]] = [VAEParams, GANParams, DANNParams, PixelDAParams]
CHAPTERS = {kind.chapter: kind for kind in KINDS}


def load(profile: str, chapter: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The parameters of a chapter, such as "vae", under a profile, with some of them changed.

    Raises:
        UserError: if the profile is unknown, a file is damaged, or a parameter is refused.
    """
    if profile not in PROFILES:
        raise UserError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    values = {}
    for name in dict.fromkeys(("quick", profile)):
        values |= _read(paths.PARAMS / name / f"{chapter}.yaml")
    where = f"profile {profile}, chapter {chapter}"
    return CHAPTERS[chapter].parse(values | dict(changes or {}), where)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of 'name: value'")
    return values


def as_text(value: Any) -> str:
    """A value on one line, as YAML would have it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
