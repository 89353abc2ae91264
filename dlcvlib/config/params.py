"""The parameters of a chapter: names, meaning, ranges; profiles and how they are overridden.

`params/<profile>/<chapter>.yaml` is a flat mapping that papermill takes as it is. What a profile
does not set comes from `quick`. Every notebook's `parameters` cell holds the values of `quick`.
"""

import difflib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dlcvlib.utils.environment import ROOT
from dlcvlib.utils.errors import UserError

PROFILES = ("smoke", "quick", "full", "original")
PARAMS, NOTEBOOKS = ROOT / "params", ROOT / "notebooks"

DOMAINS = ("usps", "mnistm", "svhn")
P = TypeVar("P", bound="Parameters")

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Label = Annotated[float, Field(gt=0.5, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _differ(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("a value is named twice: its runs would be the same")
    return values


Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_differ)]
Weights = Annotated[list[Weight], AfterValidator(_differ)]


class Parameters(BaseModel):
    """A validated, immutable, flat set of parameters; unknown names are refused."""

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
            return cls(**values)
        except ValidationError as error:
            problems = [_problem(cls, item) for item in error.errors()]
            raise UserError(f"{where}: " + "; ".join(problems)) from None

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """The parameters that a notebook's first cells have set: `from_notebook(globals())`.

        papermill only warns of a parameter that the notebook does not know, so that a mistyped
        one would be ignored: every plain value in the namespace is taken for a parameter. When
        the cell is run again, what later cells have defined since is left alone.

        JupyterLab starts a notebook in its own folder. It goes on in the project's, where relative
        paths mean what they mean to the report, and what that has trained is found.
        """
        seen = "_dlcv_parameters_read"
        values = {
            name: value
            for name, value in namespace.items()
            if (not name.startswith("_") and isinstance(value, _PLAIN) and name not in _IPYTHON)
            if name in cls.model_fields or not namespace.get(seen)
        }
        params = cls.parse(values, "parameters of this notebook")
        namespace[seen] = True
        if Path.cwd() == NOTEBOOKS.resolve():
            os.chdir(ROOT)
        return params

    @property
    def uses(self) -> dict[str, "Parameters"]:
        """Other chapters whose runs this one uses: chapter -> their parameters.

        Raises:
            UserError: if `<chapter>_changes` holds what that chapter refuses.
        """
        return {}

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        switch = cls.model_fields[info.field_name].annotation is bool
        if not switch and any(
            isinstance(v, bool) for v in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f"{value} is a switch, where none is asked for")
        return value

    @model_validator(mode="after")
    def _uses_are_valid(self) -> Self:
        _ = self.uses
        return self

    def replace(self, **changes: Any) -> Self:
        """A copy with some parameters changed, validated again."""
        return self.parse(self.model_dump() | changes, "replace")


_PLAIN = (str, int, float, list, tuple, dict, NoneType)
_IPYTHON = ("In", "Out")


def _problem(cls: type[BaseModel], error: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, cls.model_fields, n=1)
        return f"unknown parameter {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
    if error["type"] == "missing":
        return f"parameter {name!r} is missing"
    if not name:
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"parameter {name!r}: {error['msg'].removeprefix('Value error, ')}"
    return f"parameter {name!r}: {error['msg'].lower()} (got {error['input']!r})"


class Seeded(Parameters):
    """The seed of one run; chapters that compare accuracies have `seeds` in its place."""

    seed: Seed = Field(description="seed of initial weights, batches and noise")


class TrainingFields(Parameters):
    """What every training run needs to know, the seed aside."""

    steps: Positive = Field(description="training steps, one batch each")
    batch_size: Annotated[int, Field(gt=1)] = Field(
        description="images in a batch; of each domain where there are two"
    )
    learning_rate: Rate = Field(description="Adam's learning rate at its highest")
    learning_rate_schedule: Literal["cosine", "halvings", "constant"] = Field(
        description="cosine with warm-up, halvings (original) or constant"
    )
    adam_betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2)] = Field(
        description="Adam's two decay rates", max_length=2
    )
    weight_decay: Weight = Field(description="Adam's weight decay")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        description="auto (what is faster on this machine), bf16 or fp32"
    )


class TrainingSettings(TrainingFields, Seeded):
    """What decides a run, with the method's own fields; the seed stands first."""


class FaceParams(Parameters):
    """Which faces, and where runs are kept."""

    data: str = Field(description="embedded, folder:PATH or torchvision:PATH")
    attribute: str = Field(description="attribute that 1-5 colours, moves along and tells apart")
    drawn_train: Positive = Field(description="faces drawn for training (embedded data)")
    drawn_test: Positive = Field(description="faces drawn for testing (embedded data)")
    image_limit: Count = Field(description="most images read of a split (other data; 0: all)")
    validation_size: Positive = Field(description="training images held out for validation")
    extractor_steps: Positive = Field(description="training steps of the KID/FID features")
    runs_dir: str = Field(description="folder of trained runs and prepared data", min_length=1)


class VAESettings(TrainingSettings):
    """What decides a trained VAE."""

    channels: Annotated[list[Positive], Field(min_length=1, max_length=5)] = Field(
        description="channels of the encoder's blocks; the decoder mirrors them"
    )
    latent_dim: Positive = Field(description="length of the latent vector z")
    decoder_kernel: Literal[2, 4] = Field(description="side of the decoder's stride-2 kernels")
    normalise_heads: bool = Field(description="BatchNorm on mean and log-variance")
    activation: Literal["relu", "leaky_relu"] = Field(description="the decoder's activation")
    output: Literal["sigmoid", "tanh"] = Field(description="the decoder's last non-linearity")
    normalise_output: bool = Field(description="BatchNorm before the last non-linearity")
    kld_weight: Weight = Field(
        description="weight of the KL divergence; both terms are sums an image"
    )
    horizontal_flip: bool = Field(description="mirror training images at random")
    vertical_flip: bool = Field(description="turn training images upside down at random")


class VAEParams(FaceParams, VAESettings):
    """Chapter 1."""

    kld_weights: Weights = Field(min_length=2, description="KLD weights that 1-6 compares")
    ablation_steps: Positive = Field(description="training steps of each run of 1-6")
    ablation_seeds: Seeds = Field(description="seeds of each comparison of 1-6")
    tsne_points: Annotated[int, Field(ge=50, le=5000)] = Field(description="points in a t-SNE plot")
    tsne_perplexity: Annotated[float, Field(ge=2, le=200)] = Field(
        description="t-SNE's perplexity: about how many neighbours count"
    )

    @property
    def settings(self) -> VAESettings:
        """The part that decides the trained model."""
        return _part(VAESettings, self)


class GANSettings(TrainingSettings):
    """What decides a trained DCGAN."""

    channels: Positive = Field(description="width of both networks' outermost convolutions")
    latent_dim: Positive = Field(description="length of the noise vector z")
    kernel: Literal[4, 5] = Field(description="side of all stride-2 kernels")
    loss: Literal["bce", "hinge"] = Field(description="bce (original) or hinge")
    discriminator_norm: Literal["batch", "spectral"] = Field(
        description="BatchNorm (original) or spectral normalisation"
    )
    soft_labels: Annotated[list[Label], Field(min_length=2, max_length=2)] = Field(
        description="range of a real image's label; 1 to 1 is hard"
    )
    flip_labels: Probability = Field(description="chance that a label is flipped")
    flip_labels_until: Count = Field(description="step at which flipping ends")
    generator_steps: Positive = Field(description="generator steps per discriminator step")
    generator_steps_until: Count = Field(description="step from which it is one to one")
    input_noise: Weight = Field(description="std of noise on the discriminator's input (-1..1)")
    input_noise_annealed: bool = Field(description="let it fall to 0 over the run")
    input_blur: Annotated[float, Field(ge=0, le=8)] = Field(
        description="std in pixels of blur on the discriminator's input"
    )
    input_blur_annealed: bool = Field(description="let it fall to 0 over the run")
    augmentation: list[Literal["color", "translation", "cutout"]] = Field(
        description="differentiable augmentation: color, translation, cutout"
    )
    ema_decay: Probability = Field(
        description="highest decay of the averaged generator, shorter at first; 0 is none"
    )
    horizontal_flip: bool = Field(description="mirror training images at random")
    keep_snapshots: bool = Field(description="keep generators along the run")

    @model_validator(mode="after")
    def _tricks_fit_together(self) -> Self:
        if self.soft_labels[0] > self.soft_labels[1]:
            raise ValueError("soft_labels: the range must rise")
        if self.loss == "hinge" and self.soft_labels != [1, 1]:
            raise ValueError("soft_labels: the hinge loss knows no soft labels, set [1.0, 1.0]")
        return self


class GANParams(FaceParams, GANSettings):
    """Chapter 2."""

    ablation_steps: Positive = Field(description="training steps of each run of 2-3")
    ablation_batch_size: Annotated[int, Field(gt=1)] = Field(
        description="images in a batch of the runs of 2-3"
    )
    ablation_channels: Positive = Field(description="width of the networks of 2-3")
    ablation_learning_rate: Rate = Field(description="learning rate of the runs of 2-3")
    ablation_seeds: Seeds = Field(description="seeds of each comparison of 2-3")
    vae_profile: Literal["smoke", "quick", "full", "original"] = Field(
        description="profile of the VAE that 2-4 compares with"
    )
    vae_changes: dict[str, Any] = Field(description="its parameters that differ from the profile")

    @property
    def settings(self) -> GANSettings:
        """The part that decides the trained model."""
        return _part(GANSettings, self)

    @property
    def vae(self) -> VAEParams:
        """Chapter 1's parameters, on this chapter's faces."""
        faces = _values(FaceParams, self)
        return load(self.vae_profile, "vae", self.vae_changes | faces)

    @property
    def uses(self) -> dict[str, Parameters]:
        """Chapter 1."""
        return {"vae": self.vae}


class DigitParams(Parameters):
    """Which digits, which pairs of domains, over which seeds, and where runs are kept."""

    data: str = Field(description="embedded, folder:PATH or torchvision:PATH")
    pairs: Annotated[list[str], Field(min_length=1)] = Field(description="each SOURCE->TARGET")
    seeds: Seeds = Field(description="seeds of every comparison: weights, batches and noise")
    drawn_train: Positive = Field(description="street numbers drawn for training (embedded data)")
    drawn_test: Positive = Field(description="street numbers drawn for testing (embedded data)")
    image_limit: Count = Field(description="most images read of a split (other data; 0: all)")
    validation_size: Positive = Field(description="training images held out of each domain")
    runs_dir: str = Field(description="folder of trained runs and prepared data", min_length=1)
    tsne_points: Annotated[int, Field(ge=20, le=2000)] = Field(
        description="points in a t-SNE plot, half of each domain"
    )
    tsne_perplexity: Annotated[float, Field(ge=2, le=200)] = Field(
        description="t-SNE's perplexity: about how many neighbours count"
    )

    @field_validator("pairs")
    @classmethod
    def _pairs_are_known(cls, pairs: list[str]) -> list[str]:
        for pair in pairs:
            source, _, target = pair.partition("->")
            if not {source, target} <= set(DOMAINS) or source == target:
                known = ", ".join("->".join(two) for two in itertools.permutations(DOMAINS, 2))
                raise ValueError(f"unknown pair {pair!r}; the known ones are {known}")
        if len(set(pairs)) < len(pairs):
            raise ValueError("a pair is named twice")
        return pairs


class ClassifierFields(TrainingFields):
    """What decides a digit classifier that is trained on labels alone, the seed aside."""

    channels: Annotated[list[Positive], Field(min_length=1, max_length=5)] = Field(
        description="channels of the feature extractor's blocks"
    )
    classifier_width: Positive = Field(description="width of the label classifier's hidden layers")
    instance_norm: bool = Field(description="normalise each image by its own mean and deviation")
    augmentation: Literal["none", "geometric", "strong"] = Field(
        description="of labelled images: none, geometric or strong (and colour)"
    )


class ClassifierSettings(ClassifierFields, TrainingSettings):
    """What decides a source-only or target-only classifier."""


class AdaptationFields(ClassifierFields):
    """What decides a classifier that sees the target's images too."""

    target_augmentation: Literal["none", "geometric", "strong"] = Field(
        description="of unlabelled target images"
    )


class DANNFields(AdaptationFields):
    """What decides a DANN, the seed aside."""

    domain_width: Positive = Field(description="width of the domain classifier's hidden layers")
    domain_layers: Positive = Field(description="hidden layers of the domain classifier")
    domain_weight: Weight = Field(description="weight of the reversed domain gradient, at its most")
    domain_schedule: Literal["fixed", "rising", "patient"] = Field(
        description="fixed; rising (the paper's); patient: once labels are learned"
    )
    domain_update: Literal["joint", "alternating"] = Field(
        description="joint, or alternating: a step of D alone before the joint one"
    )


class DANNSettings(DANNFields, TrainingSettings):
    """What decides a trained DANN."""


class DANNParams(DigitParams, DANNFields):
    """Chapter 3."""

    domain_weights: Annotated[list[Weight], Field(min_length=2)] = Field(
        description="weights of the domain loss that 3-6 compares"
    )
    ablation_steps: Positive = Field(description="training steps of each run of 3-5 and 3-6")

    def classifier(self, seed: int) -> ClassifierSettings:
        """Settings of the source-only and target-only classifiers."""
        return _part(ClassifierSettings, self, seed=seed)

    def settings(self, seed: int) -> DANNSettings:
        """Settings of the DANN of a seed."""
        return _part(DANNSettings, self, seed=seed)


class PixelDAFields(TrainingFields):
    """What decides a PixelDA, its classifier and the seed aside."""

    latent_dim: Positive = Field(description="length of the noise vector")
    generator_channels: Positive = Field(description="width of the generator's residual blocks")
    residual_blocks: Positive = Field(description="residual blocks of the generator")
    discriminator_channels: Positive = Field(
        description="width of the discriminator's first convolution"
    )
    discriminator_norm: Literal["instance", "batch"] = Field(
        description="instance (original) or batch, which lets D see colours"
    )
    adversarial_loss: Literal["least_squares", "bce"] = Field(
        description="least_squares (original) or bce (paper)"
    )
    adversarial_weight: Weight = Field(description="weight of the adversarial loss in G's loss")
    task_weight: Weight = Field(description="weight of the classifier's loss in G's loss")
    content_weight: Weight = Field(description="weight of the content-similarity loss; 0 is none")
    patient: bool = Field(
        description="T learns from generated images only once the labels are learned"
    )
    softmax_twice: bool = Field(description="a slip of the original: cross-entropy of a Softmax")
    classifier_with_generator: bool = Field(description="another: T moves with G, not with D")

    @model_validator(mode="after")
    def _who_moves_with_g_cannot_wait(self) -> Self:
        if self.patient and self.classifier_with_generator:
            raise ValueError("patient: a T that moves with G does not wait, set false")
        return self


class PixelDASettings(PixelDAFields, AdaptationFields, TrainingSettings):
    """What decides a trained PixelDA."""


class AdaMatchFields(Parameters):
    """What AdaMatch has beyond a classifier that sees the target's images."""

    threshold: Rate = Field(
        description="share of the source's confidence from which a pseudo-label counts"
    )
    ema_decay: Probability = Field(
        description="highest decay of AdaMatch's averaged weights, shorter at first"
    )


class AdaMatchSettings(AdaMatchFields, AdaptationFields, TrainingSettings):
    """What decides a trained AdaMatch; its two augmentations are the strong and the weak view."""


class PixelDAParams(DigitParams, AdaMatchFields, PixelDAFields):
    """Chapter 4; networks and augmentation of the classifier are chapter 3's."""

    adamatch_steps: Positive = Field(description="training steps of AdaMatch")
    adamatch_batch_size: Annotated[int, Field(gt=1)] = Field(
        description="images of each domain in a batch of AdaMatch"
    )
    adamatch_learning_rate: Rate = Field(description="AdaMatch's learning rate at its highest")
    task_weights: Annotated[list[Weight], Field(min_length=2)] = Field(
        description="weights of the classifier's loss that 4-4 compares"
    )
    ablation_steps: Positive = Field(description="training steps of each run of 4-4")
    dann_profile: Literal["smoke", "quick", "full", "original"] = Field(
        description="profile of chapter 3, whose runs and classifier are used"
    )
    dann_changes: dict[str, Any] = Field(description="its parameters that differ from the profile")

    @property
    def dann(self) -> DANNParams:
        """Chapter 3's parameters, on this chapter's digits."""
        digits = _values(DigitParams, self)
        return load(self.dann_profile, "dann", self.dann_changes | digits)

    @property
    def uses(self) -> dict[str, Parameters]:
        """Chapter 3."""
        return {"dann": self.dann}

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


def _part(cls: type[P], params: Parameters, **more: Any) -> P:
    """The parameters that a class of settings asks for."""
    names = [name for name in cls.model_fields if name not in more]
    return cls(**{name: getattr(params, name) for name in names}, **more)


def _values(cls: type[Parameters], params: Parameters) -> dict[str, Any]:
    """The parameters that a class has, by name."""
    return {name: getattr(params, name) for name in cls.model_fields}


CHAPTERS: dict[str, type[Parameters]] = {
    "vae": VAEParams,
    "gan": GANParams,
    "dann": DANNParams,
    "pixelda": PixelDAParams,
}


def load(profile: str, chapter: str, changes: Mapping[str, Any] | None = None) -> Any:
    """The parameters of a chapter under a profile, with some of them changed.

    Raises:
        UserError: if the profile is unknown, a file is damaged, or a parameter is refused.
    """
    if profile not in PROFILES:
        raise UserError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    values = _read(PARAMS / "quick" / f"{chapter}.yaml")
    if profile != "quick":
        values |= _read(PARAMS / profile / f"{chapter}.yaml")
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


def parse_assignments(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`vae.kld_weight=0.5` -> {"vae": {"kld_weight": 0.5}}; the value is read as YAML.

    Raises:
        UserError: if an assignment has another form or names an unknown chapter.
    """
    changes: dict[str, dict[str, Any]] = {chapter: {} for chapter in CHAPTERS}
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        chapter, dot, name = target.strip().partition(".")
        if not (equals and dot and name) or chapter not in CHAPTERS:
            raise UserError(
                f"--set {assignment}: expected CHAPTER.NAME=VALUE, such as vae.kld_weight=0.5, "
                f"with a chapter of {', '.join(CHAPTERS)}"
            )
        try:
            changes[chapter][name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {assignment}: the value is not valid YAML") from None
    return changes


def parameters_cell(chapter: str) -> str:
    """Source of the `parameters` cell of a chapter's notebooks: the values of `quick`."""
    params = load("quick", chapter)
    lines = []
    for name, field in type(params).model_fields.items():
        value = getattr(params, name)
        literal = json.dumps(value) if isinstance(value, str | list) else repr(value)
        lines.append(f"{name}: {_annotation(field.annotation)} = {literal}  # {field.description}")
    return "\n".join(lines)


def _annotation(type_: Any) -> str:
    """A type as papermill's `--help-notebook` shows it: the plain type behind the constraints."""
    if get_origin(type_) is Literal:
        type_ = type(get_args(type_)[0])
    return (get_origin(type_) or type_).__name__


def write_parameters_cells(chapter: str) -> int:
    """Put `parameters_cell` into the chapter's notebooks; the number of notebooks changed."""
    import nbformat

    number = list(CHAPTERS).index(chapter) + 1
    changed = 0
    for path in sorted(NOTEBOOKS.glob(f"{number}-*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        if cell.source != parameters_cell(chapter):
            cell.source = parameters_cell(chapter)
            nbformat.write(notebook, path)
            changed += 1
    return changed


def as_text(value: Any) -> str:
    """A value on one line, as YAML would have it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
