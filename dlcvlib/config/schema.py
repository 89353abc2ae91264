"""The parameters of the four chapters, and of everything that is trained, as pydantic models.

They are composed of sections. A `…Settings` model decides a trained run; a chapter's `…Params` also
say which data it uses, what it compares and what it shows. `params/<profile>/<chapter>.yaml` is a
flat mapping that papermill takes as it is; what a profile does not set comes from `quick`.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from PIL import ImageColor
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from dlcvlib.config import paths
from dlcvlib.utils.errors import UserError, nearest

P = TypeVar("P", bound="Parameters")


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true or false is no number")
    return value


def _distinct(values: list) -> list:
    # Weights as tables and figures name them, with six digits.
    shown = {f"{value:g}" if isinstance(value, float) else value for value in values}
    if len(shown) < len(values):
        raise ValueError("a value is named twice (of numbers six digits count), leave one out")
    return values


def _absolute_source(data: str) -> str:
    """`folder:mine` is relative to the working directory of whoever reads the parameters."""
    kind, _, path = data.partition(":")
    return f"{kind}:{paths.absolute(path)}" if path else data


def _two_domains(pair: str) -> str:
    if not re.fullmatch(r"([^\W\d]\w*)->(?!\1$)[^\W\d]\w*", pair):
        raise ValueError("expected SOURCE->TARGET, two names of letters, digits and _")
    return pair


def means(text: str) -> Any:
    """A field with its meaning, which notebooks, `params` and the report show."""
    return Field(description=text)


Profile = Literal["smoke", "quick", "full", "original"]
Whole = Annotated[int, BeforeValidator(_no_switch)]
Real = Annotated[float, BeforeValidator(_no_switch)]
Positive = Annotated[Whole, Field(gt=0)]
Drawn = Annotated[Whole, Field(gt=0, le=1_000_000)]
Width = Annotated[Whole, Field(gt=0, le=4096)]
Depth = Annotated[Whole, Field(gt=0, le=64)]
Several = Annotated[Whole, Field(gt=1)]
Count = Annotated[Whole, Field(ge=0)]
Weight = Annotated[Real, Field(ge=0, le=1e6)]
Probability = Annotated[Real, Field(ge=0, lt=1)]
Blur = Annotated[Real, Field(ge=0, le=8)]
Rate = Annotated[Real, Field(gt=0, le=1)]
MapPoints = Annotated[Whole, Field(ge=20, le=2000)]
Perplexity = Annotated[Real, Field(ge=2, le=200)]
Seed = Annotated[Whole, Field(ge=0, lt=2**31)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
DomainPair = Annotated[str, AfterValidator(_two_domains)]
Pairs = Annotated[list[DomainPair], Field(min_length=1), AfterValidator(_distinct)]
Channels = Annotated[list[Width], Field(min_length=1, max_length=5)]
Betas = Annotated[list[Probability], Field(min_length=2, max_length=2)]
Labels = Annotated[list[Annotated[Real, Field(gt=0.5, le=1)]], Field(min_length=2, max_length=2)]
Weights = Annotated[list[Weight], Field(min_length=2), AfterValidator(_distinct)]
Schedule = Literal["cosine", "halvings", "constant"]
Precision = Literal["auto", "bf16", "tf32", "fp32"]
Compile = Literal["auto", "always", "never"]
Policy = Literal["color", "translation", "cutout"]
Augmentation = Literal["none", "geometric", "strong"]
DomainUpdate = Literal["joint", "alternating"]
PixelNorm = Literal["instance", "batch"]
GANNorm = Literal["batch", "spectral", "none"]
Colour = Annotated[str, AfterValidator(lambda name: ImageColor.getrgb(name) and name)]
Source = Annotated[str, AfterValidator(_absolute_source)]
RunsDir = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(lambda path: paths.absolute(path, paths.ROOT)),
    PlainSerializer(lambda path: path.removeprefix(f"{paths.ROOT}/")),
]


class Parameters(BaseModel):
    """A validated, immutable, flat set of parameters; unknown names are refused.

    Paths are absolute in the attributes; `model_dump` has those within the project relative to it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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

    def replace(self, **changes: Any) -> Self:
        """A copy with some parameters changed, validated again."""
        return self.parse(self.model_dump() | changes, "replace")


def _problem(cls: type[BaseModel], error: Mapping[str, Any]) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown parameter {name!r}{nearest(name, cls.model_fields)}"
    if error["type"] == "missing":
        return f"parameter {name!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"parameter {name!r}: {message} (got {error['input']!r})"


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
    precision: Precision = means("auto (the faster one on this machine), bf16, tf32 or fp32")
    sync_batch_norm: bool = means("BatchNorm over the whole batch where processes share it")
    deterministic: bool = means("on a GPU: the same numbers each time, or the fastest kernels")
    compile: Compile = means("torch.compile; auto: on a GPU where a run is long enough")


EXECUTION = ("precision", "sync_batch_norm", "deterministic", "compile")
"""Fields that say how a device computes, whatever the task."""


class TrainingSettings(TrainingFields, Seeded):
    """What decides a run, together with the method's own fields."""


class AttributeSettings(TrainingSettings):
    """Everything that decides a classifier of the faces' attributes."""

    attributes: list[str] = means("the attributes, in the order of the network's outputs")


class DataParams(Parameters):
    """Which images, and where runs are kept."""

    data: Source = means("embedded, folder:PATH or torchvision:PATH")
    drawn_train: Drawn = means("faces or street numbers drawn for training (embedded data)")
    drawn_test: Drawn = means("faces or street numbers drawn for testing (embedded data)")
    image_limit: Count = means("most images read of a split (other data; 0: all)")
    background: Colour = means("colour under transparent pictures (folder:PATH)")
    validation_size: Positive = means("training images held out for validation, of each domain")
    runs_dir: RunsDir = means("folder of trained runs and prepared data")


class FaceParams(DataParams):
    """Which faces, and what they are measured by."""

    attribute: str = means("attribute that 1-5 colours, edits and classifies")
    extractor_steps: Positive = means("training steps of the KID/FID features")


class DigitParams(DataParams):
    """Which digits, which pairs of domains, and over which seeds."""

    pairs: Pairs = means("each SOURCE->TARGET")
    seeds: Seeds = means("seeds of the main runs: weights, batches and noise")
    tsne_points: MapPoints = means("points in a t-SNE plot, half of each domain")
    tsne_perplexity: Perplexity = means("t-SNE's perplexity: effective number of neighbours")


# --- methods ------------------------------------------------------------------------------------


class VAESettings(TrainingSettings):
    """What decides a trained VAE."""

    image_size: Literal[32, 64] = means("side in pixels; 32 for smaller, faster tasks")
    channels: Channels = means("channels of the encoder's blocks; the decoder mirrors them")
    latent_dim: Width = means("length of the latent vector z")
    decoder_kernel: Literal[2, 4] = means("side of the decoder's stride-2 kernels")
    normalise_heads: bool = means("BatchNorm on mean and log-variance")
    activation: Literal["relu", "leaky_relu"] = means("the decoder's activation")
    output: Literal["sigmoid", "tanh"] = means("the decoder's last non-linearity")
    normalise_output: bool = means("BatchNorm before the last non-linearity")
    reconstruction_loss: Literal["sum", "calibrated"] = means("squared error, or calibrated")
    kld_weight: Weight = means("weight of the KL divergence; 1 is right for a calibrated decoder")
    horizontal_flip: bool = means("mirror training images at random")
    vertical_flip: bool = means("turn training images upside down at random")


class GANSettings(TrainingSettings):
    """What decides a trained DCGAN."""

    image_size: Literal[32, 64] = means("side in pixels; 32 for smaller, faster tasks")
    channels: Width = means("width of both networks' outermost convolutions")
    latent_dim: Width = means("length of the noise vector z")
    kernel: Literal[4, 5] = means("side of all stride-2 kernels")
    loss: Literal["bce", "hinge", "relativistic"] = means("bce (original), hinge or relativistic")
    discriminator_norm: GANNorm = means("BatchNorm (original), spectral normalisation or none")
    gradient_penalty: Weight = means("weight of the penalties on D's gradient (R1 + R2); 0 is none")
    soft_labels: Labels = means("range of a real image's label; 1 to 1 is hard")
    flip_labels: Probability = means("probability that a label is flipped")
    flip_labels_until: Count = means("step at which flipping ends")
    generator_steps: Positive = means("generator steps per discriminator step")
    generator_steps_until: Count = means("step from which it is one to one")
    input_noise: Weight = means("initial std of noise on the discriminator's input (-1..1)")
    input_blur: Blur = means("initial std in pixels of blur on the discriminator's input")
    augmentation: list[Policy] = means("differentiable augmentation: color, translation, cutout")
    ema_decay: Probability = means(
        "maximum decay of the generator's EMA (ramped up); 0 disables it"
    )
    horizontal_flip: bool = means("mirror training images at random")
    keep_snapshots: bool = means("keep generators along the run")

    @field_validator("soft_labels")
    @classmethod
    def _labels_suit_the_loss(cls, labels: list[float], info: ValidationInfo) -> list[float]:
        if labels != sorted(labels):
            raise ValueError("the range must rise")
        if labels != [1, 1] and (loss := info.data.get("loss")) != "bce":
            raise ValueError(f"the {loss} loss has no soft labels, set [1.0, 1.0]")
        return labels


class ClassifierFields(TrainingFields):
    """What decides a digit classifier that is trained on labels alone, except the seed."""

    backbone: Literal["plain"] = means("feature extractor: plain (original)")
    channels: Channels = means("channels of the feature extractor's blocks")
    classifier_width: Width = means("width of the label classifier's hidden layers")
    normalise_classifier: bool = means("BatchNorm after the label classifier's first layer")
    augmentation: Augmentation = means("of labelled images: none, geometric or strong (and colour)")


class ClassifierSettings(ClassifierFields, TrainingSettings):
    """What decides a source-only or target-only classifier."""


class AdaptationFields(ClassifierFields):
    """What decides a classifier that sees the target's images too."""

    target_augmentation: Augmentation = means("of unlabelled target images")


class DANNFields(AdaptationFields):
    """What decides a DANN, except the seed."""

    batch_statistics: Literal["joint", "separate"] = means(
        "BatchNorm's: joint (original), or separate for each domain"
    )
    domain_input: Literal["features", "hidden", "conditional"] = means(
        "what D sees: features (original), hidden, or conditional (CDAN)"
    )
    domain_width: Width = means("width of the domain classifier's hidden layers")
    domain_layers: Depth = means("hidden layers of the domain classifier")
    normalise_domain: bool = means("BatchNorm in the domain classifier")
    domain_weight: Weight = means("maximum weight of the reversed domain gradient")
    domain_schedule: Literal["fixed", "rising", "patient"] = means(
        "fixed; rising (paper); patient: rising after a label warm-up"
    )
    domain_update: DomainUpdate = means("joint, or alternating: D alone, then jointly")


class DANNSettings(DANNFields, TrainingSettings):
    """What decides a trained DANN."""


class PixelDAFields(TrainingFields):
    """What decides a PixelDA, except its classifier and the seed."""

    latent_dim: Width = means("length of the noise vector")
    generator: Literal["direct", "residual"] = means("direct (original), or the identity at first")
    generator_channels: Width = means("width of the generator's residual blocks")
    residual_blocks: Depth = means("residual blocks of the generator")
    discriminator_channels: Width = means("width of the discriminator's first convolution")
    discriminator_norm: PixelNorm = means("instance (original) or batch, which lets D see colours")
    adversarial_weight: Weight = means("weight of the adversarial loss in G's loss")
    task_weight: Weight = means("weight of the classifier's loss in G's loss")
    content_weight: Weight = means("weight of the content loss, by the correlation of greys")
    generator_rate: Weight = means("factor of G's learning rate")
    discriminator_rate: Weight = means("factor of D's learning rate")
    instance_noise: Weight = means("std of noise on D's input (0..1), falling to 0 over the run")
    patient: bool = means("G's adversarial loss counts as far as T has learned the source's labels")
    softmax_twice: bool = means("implementation error of the original: softmax applied twice")
    classifier_with_generator: bool = means("T is updated with G (original), not with D (paper)")


class PixelDASettings(PixelDAFields, AdaptationFields, TrainingSettings):
    """What decides a trained PixelDA."""


class AdaMatchFields(Parameters):
    """What AdaMatch has beyond a classifier that sees the target's images."""

    threshold: Rate = means("least confidence of a pseudo-label, as a share of the source's")
    plain: bool = means("pseudo-labels without logit interpolation, alignment, relative threshold")
    ema_decay: Probability = means("maximum decay of AdaMatch's weight average (ramped up)")


class AdaMatchSettings(AdaMatchFields, AdaptationFields, TrainingSettings):
    """What decides a trained AdaMatch; its two augmentations are the strong and the weak view."""


# --- chapters -----------------------------------------------------------------------------------


class Chapter(Parameters):
    """All parameters of one chapter.

    Attributes:
        used: names of the other chapters whose runs this one uses; each is a property too.
    """

    used: ClassVar[tuple[str, ...]] = ()
    ablation_steps: Positive = means("training steps of each run of 1-6, 2-3, 3-5, 3-6 and 4-4")
    ablation_seeds: Seeds = means("seeds of each run of these comparisons")

    @property
    def uses(self) -> dict[str, "Chapter"]:
        """The parameters of the chapters that this one uses, by name."""
        return {chapter: getattr(self, chapter) for chapter in self.used}

    def own(self, task: str) -> dict[str, Any]:
        """The parameters of a task, such as ablation, without its name before theirs."""
        return {n.removeprefix(f"{task}_"): v for n, v in self if n.startswith(f"{task}_")}

    def model_post_init(self, context: Any) -> None:
        """Refuse what those chapters refuse."""
        _ = self.uses


def part(cls: type[P], *sources: Parameters | Mapping[str, Any], **more: Any) -> P:
    """A class's parameters out of others, of which the later ones count, and its defaults."""
    values = {name: value for source in sources for name, value in dict(source).items()}
    return cls(**{name: values[name] for name in cls.model_fields if name in values} | more)


class VAEParams(Chapter, FaceParams, VAESettings):
    """Chapter 1."""

    kld_weights: Weights = means("KLD weights that 1-6 compares")
    ablation_batch_size: Several = means("images per batch in the runs of 1-6")
    ablation_channels: Channels = means("channels of the networks of 1-6")
    ablation_image_size: Literal[32, 64] = means("side of the images of 1-6 in pixels")
    ablation_latent_dim: Width = means("length of the latent vectors of 1-6")
    tsne_points: Annotated[Whole, Field(ge=50, le=5000)] = means("points in a t-SNE plot")
    tsne_perplexity: Perplexity = means("t-SNE's perplexity: effective number of neighbours")

    @property
    def settings(self) -> VAESettings:
        """The part that decides the trained model."""
        return part(VAESettings, self)


class GANParams(Chapter, FaceParams, GANSettings):
    """Chapter 2."""

    used = ("vae",)
    ablation_batch_size: Several = means("images per batch in the runs of 2-3")
    ablation_channels: Width = means("width of the networks of 2-3")
    ablation_image_size: Literal[32, 64] = means("side of the images of 2-3 in pixels")
    ablation_learning_rate: Rate = means("learning rate of the runs of 2-3")
    vae_profile: Profile = means("profile of the VAE that 2-4 compares with")
    vae_changes: dict[str, Any] = means("its parameters that differ from the profile")

    @property
    def settings(self) -> GANSettings:
        """The part that decides the trained model."""
        return part(GANSettings, self)

    @cached_property
    def vae(self) -> VAEParams:
        """Chapter 1's parameters, on this chapter's faces; as they were when this was made."""
        changes = self.vae_changes | dict(part(FaceParams, self))
        return load(self.vae_profile, "vae", changes, "vae_changes: ")


class DANNParams(Chapter, DigitParams, DANNFields):
    """Chapter 3."""

    domain_weights: Weights = means("weights of the domain loss that 3-6 compares")
    ablation_batch_size: Several = means("images per domain in a batch of the runs of 3-5 and 3-6")
    ablation_channels: Channels = means("channels of the feature extractor there")

    def classifier(self, seed: int) -> ClassifierSettings:
        """Settings of the source-only and target-only classifiers."""
        return part(ClassifierSettings, self, seed=seed)

    def settings(self, seed: int) -> DANNSettings:
        """Settings of the DANN of a seed."""
        return part(DANNSettings, self, seed=seed)

    def ablation(self) -> DANNSettings:
        """Settings that the runs of 3-5 and 3-6 share; their seeds are `ablation_seeds`."""
        return part(DANNSettings, self, self.own("ablation"), seed=self.ablation_seeds[0])


class PixelDAParams(Chapter, DigitParams, AdaMatchFields, PixelDAFields):
    """Chapter 4; networks and augmentation of the classifier are chapter 3's."""

    used = ("dann",)
    adamatch_steps: Positive = means("training steps of AdaMatch")
    adamatch_batch_size: Several = means("images per domain in a batch of AdaMatch")
    adamatch_learning_rate: Rate = means("AdaMatch's peak learning rate")
    all_variants: bool = means("4-4 also compares task weights and when T is updated")
    dann_profile: Profile = means("profile of chapter 3, whose runs and classifier are used")
    dann_changes: dict[str, Any] = means("its parameters that differ from the profile")

    @cached_property
    def dann(self) -> DANNParams:
        """Chapter 3's parameters, on this chapter's digits; as they were when this was made."""
        changes = self.dann_changes | dict(part(DigitParams, self))
        return load(self.dann_profile, "dann", changes, "dann_changes: ")

    def settings(self, seed: int) -> PixelDASettings:
        """Settings of the PixelDA of a seed."""
        return part(PixelDASettings, self.dann, self, seed=seed)

    def adamatch(self, seed: int) -> AdaMatchSettings:
        """Settings of the AdaMatch of a seed: strong and weak views are the method's own."""
        own = self.own("adamatch") | {name: getattr(self, name) for name in EXECUTION}
        views = {"augmentation": "strong", "target_augmentation": "geometric"}
        return part(AdaMatchSettings, self, self.dann, own, views, seed=seed)


CHAPTERS = {"vae": VAEParams, "gan": GANParams, "dann": DANNParams, "pixelda": PixelDAParams}
"""In the order of their numbers; the names are those of their files."""


def load(profile: str, chapter: str, changes: dict[str, Any] | None = None, by: str = "") -> Any:
    """The parameters of a chapter, such as "vae", under a profile, with some of them changed.

    Errors begin with `by`, what has changed them.

    Raises:
        UserError: if a file is not there or damaged, or a parameter is refused.
    """
    values = _read("quick", chapter) | _read(profile, chapter) | (changes or {})
    return CHAPTERS[chapter].parse(values, f"{by}profile {profile}, chapter {chapter}")


def _read(profile: str, chapter: str) -> dict[str, Any]:
    path = paths.PARAMS / profile / f"{chapter}.yaml"
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path} as lines of 'name: value': {error}") from None


def as_text(value: Any) -> str:
    """A value on one line, as YAML would have it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
