"""What a run, a data set and a chapter can be set to: sections of parameters, as pydantic models.

A `…Settings` model decides a trained run. The chapters, in `schema`, are composed of sections.
"""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dlcvlib.config import paths
from dlcvlib.utils.errors import UserError, nearest

Profile = Literal["smoke", "quick", "full", "original"]
PROFILES: tuple[str, ...] = get_args(Profile)
DOMAINS = ("usps", "mnistm", "svhn")
PAIRS = ["->".join(pair) for pair in itertools.permutations(DOMAINS, 2)]


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("a value is named twice: its runs would be the same")
    return values


def _absolute_source(data: str) -> str:
    """`folder:mine` is relative to the working directory of whoever reads the parameters."""
    kind, _, path = data.partition(":")
    return f"{kind}:{paths.absolute(path)}" if path else data


def _absolute_runs_dir(path: str) -> str:
    return str(paths.ROOT / os.path.expanduser(path))  # noqa: PTH111


def _portable_runs_dir(path: str) -> str:
    """As it is written down: relative if it lies in the project."""
    inside = Path(path).is_relative_to(paths.ROOT)
    return str(Path(path).relative_to(paths.ROOT)) if inside else path


def means(text: str) -> Any:
    """A field with its meaning, which notebooks, `params` and the report show."""
    return Field(description=text)


Positive = Annotated[int, Field(gt=0)]
Several = Annotated[int, Field(gt=1)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Label = Annotated[float, Field(gt=0.5, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Blur = Annotated[float, Field(ge=0, le=8)]
Perplexity = Annotated[float, Field(ge=2, le=200)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
Pairs = Annotated[list[Literal[*PAIRS]], Field(min_length=1), AfterValidator(_distinct)]
Channels = Annotated[list[Positive], Field(min_length=1, max_length=5)]
Betas = Annotated[list[Probability], Field(min_length=2, max_length=2)]
Labels = Annotated[list[Label], Field(min_length=2, max_length=2)]
Weights = Annotated[list[Weight], Field(min_length=2), AfterValidator(_distinct)]
Schedule = Literal["cosine", "halvings", "constant"]
Precision = Literal["auto", "bf16", "fp32"]
DomainSchedule = Literal["fixed", "rising", "patient"]
Policy = Literal["color", "translation", "cutout"]
Augmentation = Literal["none", "geometric", "strong"]
Source = Annotated[str, AfterValidator(_absolute_source)]
RunsDir = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(_absolute_runs_dir),
    PlainSerializer(_portable_runs_dir),
]


class Parameters(BaseModel):
    """A validated, immutable, flat set of parameters; unknown names are refused.

    Paths are absolute in the attributes; `model_dump` has those within the project relative to it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate a mapping.

        Args:
            values: name -> value.
            where: what the values came from, for the message.

        Raises:
            UserError: naming every parameter that is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problems = [_problem(cls, item) for item in error.errors()]
            raise UserError(f"{where}: " + "; ".join(problems)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_not_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        types = set(map(type, value if isinstance(value, list) else [value]))
        if bool in types and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{value} is true or false, which this parameter does not accept")
        return value

    def replace(self, **changes: Any) -> Self:
        """A copy with some parameters changed, validated again."""
        return self.parse(self.model_dump() | changes, "replace")


def _problem(cls: type[BaseModel], error: Mapping[str, Any]) -> str:
    name, given = ".".join(map(str, error["loc"])), repr(error["input"])
    match error["type"]:
        case "extra_forbidden":
            return f"unknown parameter {name!r}{nearest(name, cls.model_fields)}"
        case "missing":
            return f"parameter {name!r} is missing"
        case "invalid_key":
            return f"{given} is not a parameter's name (YAML reads on, off, yes and no as switches)"
        case "value_error":  # one of ours; those about several parameters name them
            return (f"parameter {name!r}: " if name else "") + str(error["ctx"]["error"])
    return f"parameter {name!r}: {error['msg'].lower()} (got {given})"


class Seeded(Parameters):
    """The seed of one run; chapters that compare accuracies have `seeds` instead."""

    seed: Seed = means("seed of initial weights, batches and noise")


class TrainingFields(Parameters):
    """What every training run needs to know, except the seed."""

    steps: Positive = means("training steps, one batch each")
    batch_size: Several = means("images per batch; of each domain where there are two")
    learning_rate: Rate = means("Adam's peak learning rate")
    learning_rate_schedule: Schedule = means("cosine with warm-up, halvings (original) or constant")
    adam_betas: Betas = means("Adam's two decay rates")
    weight_decay: Weight = means("Adam's weight decay")
    precision: Precision = means("auto (the faster one on this machine), bf16 or fp32")


class TrainingSettings(TrainingFields, Seeded):
    """What decides a run, together with the method's own fields."""


class AttributeSettings(TrainingSettings):
    """Everything that decides a classifier of the faces' attributes."""

    attributes: list[str] = means("the attributes, in the order of the network's outputs")


class FaceParams(Parameters):
    """Which faces, and where runs are kept."""

    data: Source = means("embedded, folder:PATH or torchvision:PATH")
    attribute: str = means("attribute that 1-5 colours, edits and classifies")
    drawn_train: Positive = means("faces drawn for training (embedded data)")
    drawn_test: Positive = means("faces drawn for testing (embedded data)")
    image_limit: Count = means("most images read of a split (other data; 0: all)")
    validation_size: Positive = means("training images held out for validation")
    extractor_steps: Positive = means("training steps of the KID/FID features")
    runs_dir: RunsDir = means("folder of trained runs and prepared data")


class DigitParams(Parameters):
    """Which digits, which pairs of domains, over which seeds, and where runs are kept."""

    data: Source = means("embedded, folder:PATH or torchvision:PATH")
    pairs: Pairs = means("each SOURCE->TARGET")
    seeds: Seeds = means("seeds of every comparison: weights, batches and noise")
    drawn_train: Positive = means("street numbers drawn for training (embedded data)")
    drawn_test: Positive = means("street numbers drawn for testing (embedded data)")
    image_limit: Count = means("most images read of a split (other data; 0: all)")
    validation_size: Positive = means("training images held out of each domain")
    runs_dir: RunsDir = means("folder of trained runs and prepared data")
    tsne_points: Annotated[int, Field(ge=20, le=2000)] = means(
        "points in a t-SNE plot, half of each domain"
    )
    tsne_perplexity: Perplexity = means("t-SNE's perplexity: effective number of neighbours")


# --- methods ------------------------------------------------------------------------------------


class VAESettings(TrainingSettings):
    """What decides a trained VAE."""

    channels: Channels = means("channels of the encoder's blocks; the decoder mirrors them")
    latent_dim: Positive = means("length of the latent vector z")
    decoder_kernel: Literal[2, 4] = means("side of the decoder's stride-2 kernels")
    normalise_heads: bool = means("BatchNorm on mean and log-variance")
    activation: Literal["relu", "leaky_relu"] = means("the decoder's activation")
    output: Literal["sigmoid", "tanh"] = means("the decoder's last non-linearity")
    normalise_output: bool = means("BatchNorm before the last non-linearity")
    kld_weight: Weight = means("weight of the KL divergence; both terms are sums per image")
    horizontal_flip: bool = means("mirror training images at random")
    vertical_flip: bool = means("turn training images upside down at random")


class GANSettings(TrainingSettings):
    """What decides a trained DCGAN."""

    channels: Positive = means("width of both networks' outermost convolutions")
    latent_dim: Positive = means("length of the noise vector z")
    kernel: Literal[4, 5] = means("side of all stride-2 kernels")
    loss: Literal["bce", "hinge"] = means("bce (original) or hinge")
    discriminator_norm: Literal["batch", "spectral"] = means(
        "BatchNorm (original) or spectral normalisation"
    )
    soft_labels: Labels = means("range of a real image's label; 1 to 1 is hard")
    flip_labels: Probability = means("probability that a label is flipped")
    flip_labels_until: Count = means("step at which flipping ends")
    generator_steps: Positive = means("generator steps per discriminator step")
    generator_steps_until: Count = means("step from which it is one to one")
    input_noise: Weight = means("std of noise on the discriminator's input (-1..1)")
    input_noise_annealed: bool = means("let it fall to 0 over the run")
    input_blur: Blur = means("std in pixels of blur on the discriminator's input")
    input_blur_annealed: bool = means("let it fall to 0 over the run")
    augmentation: list[Policy] = means("differentiable augmentation: color, translation, cutout")
    ema_decay: Probability = means(
        "maximum decay of the generator's EMA (ramped up); 0 disables it"
    )
    horizontal_flip: bool = means("mirror training images at random")
    keep_snapshots: bool = means("keep generators along the run")

    @model_validator(mode="after")
    def _tricks_fit_together(self) -> Self:
        if self.soft_labels[0] > self.soft_labels[1]:
            raise ValueError("soft_labels: the range must rise")
        if self.loss == "hinge" and self.soft_labels != [1, 1]:
            raise ValueError("soft_labels: the hinge loss has no soft labels, set [1.0, 1.0]")
        return self


class ClassifierFields(TrainingFields):
    """What decides a digit classifier that is trained on labels alone, except the seed."""

    channels: Channels = means("channels of the feature extractor's blocks")
    classifier_width: Positive = means("width of the label classifier's hidden layers")
    instance_norm: bool = means("normalise each image by its own mean and deviation")
    augmentation: Augmentation = means("of labelled images: none, geometric or strong (and colour)")


class ClassifierSettings(ClassifierFields, TrainingSettings):
    """What decides a source-only or target-only classifier."""


class AdaptationFields(ClassifierFields):
    """What decides a classifier that sees the target's images too."""

    target_augmentation: Augmentation = means("of unlabelled target images")


class DANNFields(AdaptationFields):
    """What decides a DANN, except the seed."""

    domain_width: Positive = means("width of the domain classifier's hidden layers")
    domain_layers: Positive = means("hidden layers of the domain classifier")
    domain_weight: Weight = means("maximum weight of the reversed domain gradient")
    domain_schedule: DomainSchedule = means(
        "fixed; rising (paper); patient: rising after a label warm-up"
    )
    domain_update: Literal["joint", "alternating"] = means(
        "joint, or alternating: D alone, then jointly"
    )


class DANNSettings(DANNFields, TrainingSettings):
    """What decides a trained DANN."""


class PixelDAFields(TrainingFields):
    """What decides a PixelDA, except its classifier and the seed."""

    latent_dim: Positive = means("length of the noise vector")
    generator_channels: Positive = means("width of the generator's residual blocks")
    residual_blocks: Positive = means("residual blocks of the generator")
    discriminator_channels: Positive = means("width of the discriminator's first convolution")
    discriminator_norm: Literal["instance", "batch"] = means(
        "instance (original) or batch, which lets D see colours"
    )
    adversarial_loss: Literal["least_squares", "bce"] = means(
        "least_squares (original) or bce (paper)"
    )
    adversarial_weight: Weight = means("weight of the adversarial loss in G's loss")
    task_weight: Weight = means("weight of the classifier's loss in G's loss")
    content_weight: Weight = means("weight of the content-similarity loss; 0 is none")
    patient: bool = means("T learns from generated images only after a label warm-up")
    softmax_twice: bool = means("implementation error of the original: softmax applied twice")
    classifier_with_generator: bool = means("another: T is updated with G, not with D")

    @model_validator(mode="after")
    def _a_classifier_updated_with_g_has_no_warm_up(self) -> Self:
        if self.patient and self.classifier_with_generator:
            raise ValueError("patient: a T that is updated with G has no warm-up, set false")
        return self


class PixelDASettings(PixelDAFields, AdaptationFields, TrainingSettings):
    """What decides a trained PixelDA."""


class AdaMatchFields(Parameters):
    """What AdaMatch has beyond a classifier that sees the target's images."""

    threshold: Rate = means("least confidence of a pseudo-label, as a share of the source's")
    ema_decay: Probability = means("maximum decay of AdaMatch's weight average (ramped up)")


class AdaMatchSettings(AdaMatchFields, AdaptationFields, TrainingSettings):
    """What decides a trained AdaMatch; its two augmentations are the strong and the weak view."""
