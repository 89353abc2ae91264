"""Image features for KID, FID and diversity, without a download.

`AttributeNet` is a small convolutional network trained here to tell the data's own attributes;
its last hidden layer is the feature. Distances in it are comparable within one data set and one
trained extractor, not with published FIDs. Where Inception's weights lie in torch's cache as
safetensors, they are used as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dlcvlib.config.params import FaceParams, TrainingSettings
from dlcvlib.data.batches import CHUNK, Batches, float_chunks, random_flips
from dlcvlib.data.types import FaceData
from dlcvlib.data.weights import INCEPTION, inception_file
from dlcvlib.training import device, runs
from dlcvlib.training.loop import adam, move
from dlcvlib.training.runs import Run, device_of
from dlcvlib.utils.errors import UserError


@dataclass(frozen=True)
class Extractor:
    """A named feature function.

    Attributes:
        name: for captions.
        key: changes whenever the features do.
        features: images (N, 3, 64, 64), uint8 or float in 0..1 -> (N, D) float on the CPU.
        runs: what it was trained by, if it was here.
    """

    name: str
    key: str
    features: Callable[[Tensor], Tensor]
    runs: tuple[Run, ...] = ()


class AttributeNet(nn.Module):
    """Strided convolutions to a feature vector, and a linear layer to the attributes' logits."""

    def __init__(self, attributes: int, channels: tuple[int, ...] = (32, 64, 128, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for out_channels in channels:
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            in_channels = out_channels
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        # BatchNorm gives features of unit scale, whatever the data: KID's cubic kernel needs it.
        self.hidden = nn.Sequential(
            nn.Linear(4 * in_channels, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()
        )
        self.head = nn.Linear(128, attributes)

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) in 0..1 -> (N, 128)."""
        return self.hidden(self.convolutions(2 * images - 1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) in 0..1 -> logits (N, attributes)."""
        return self.head(self.features(images))


class AttributeClassifier:
    """`AttributeNet` and Adam, for `training.fit`."""

    def __init__(self, settings: TrainingSettings, attributes: Sequence[str]) -> None:
        self.settings = settings
        self.attributes = list(attributes)
        self.net = AttributeNet(len(attributes))
        self.modules = {"net": self.net}

    @cached_property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The network's."""
        return {"adam": adam([self.net], self.settings)}

    def step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """One step of binary cross-entropy; images in 0..1 and attributes (N, A) of 0 and 1."""
        images, attributes = batch
        loss = F.binary_cross_entropy_with_logits(self.net(images), attributes)
        move(loss, self.optimizers.values())
        return {"cross_entropy": loss}

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64), uint8 or float in 0..1 -> (N, 128) float on the CPU."""
        return self._over(self.net.features, images)

    def probability(self, images: Tensor, attribute: str) -> Tensor:
        """Chance that each image (N, 3, 64, 64) has an attribute: (N,)."""
        logits = self._over(self.net, images)
        return logits[:, self.attributes.index(attribute)].sigmoid()

    @torch.no_grad()
    def _over(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Apply a function chunk by chunk."""
        chunks = float_chunks(_as_files(images), device_of(self.net))
        return torch.cat([function(chunk).float().cpu() for chunk in chunks])


def _as_files(images: Tensor) -> Tensor:
    """Generated pictures, float in 0..1, rounded to uint8 like the real ones."""
    if images.dtype == torch.uint8:
        return images
    return images.mul(255).round().clamp(0, 255).byte()


def train_or_load(
    faces: FaceData, settings: TrainingSettings, runs_dir: Path | str
) -> Run[AttributeClassifier]:
    """The attribute classifier of a data set, trained now or by an earlier run."""
    names = sorted(faces.train.attributes)
    targets = torch.stack([faces.train.attributes[name] for name in names], dim=1).float()
    return runs.train_or_load(
        "features",
        lambda: AttributeClassifier(settings, names),
        lambda device: Batches(
            [faces.train.images, targets],
            settings.batch_size,
            settings.seed,
            device,
            random_flips(horizontal=True, vertical=False),
        ),
        settings,
        data=faces.fingerprint,
        runs_dir=runs_dir,
        code=["evaluation/features"],
    )


def settings_for(params: FaceParams) -> TrainingSettings:
    """Settings of the attribute classifier: short, and the same in both chapters of faces.

    Unless these differ in `extractor_steps` or `precision`: their distances are then others.
    """
    return TrainingSettings(
        seed=0,
        steps=params.extractor_steps,
        batch_size=128,
        learning_rate=2e-3,
        learning_rate_schedule="cosine",
        adam_betas=[0.9, 0.999],
        weight_decay=0.0,
        precision=params.precision,
    )


def extractor(params: FaceParams, faces: FaceData) -> Extractor:
    """Our own features, which every comparison goes by."""
    run = train_or_load(faces, settings_for(params), params.runs_dir)
    name = "a network trained here on the data's attributes"
    return Extractor(name, run.name, run.method.features, (run,))


def extractors(params: FaceParams, faces: FaceData) -> list[Extractor]:
    """All features that faces are measured with: our own, and Inception's if at hand."""
    return [extractor(params, faces), *filter(None, [inception()])]


def inception() -> Extractor | None:
    """Inception-v3's pooled features, if its weights lie in torch's cache as safetensors.

    torchvision's own file there is a pickle, and is not read.

    Raises:
        UserError: if they are not Inception's.
    """
    if (file := inception_file()) is None:
        return None
    # It takes a second and 150 MB: it is loaded only if it is of use.
    from torchvision.models import Inception_V3_Weights, inception_v3

    weights = Inception_V3_Weights.IMAGENET1K_V1
    net = inception_v3(init_weights=False, transform_input=True)
    try:
        net.load_state_dict(load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(
            f"{file} does not hold the weights of {INCEPTION} ({error}): write it anew or remove it"
        ) from None
    net.eval().requires_grad_(False).to(device.default())
    net.fc = nn.Identity()
    # The whole picture, where the weights' own recipe would cut its margin off.
    prepare = weights.transforms(antialias=True, resize_size=299, crop_size=299)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        chunks = _as_files(images).split(CHUNK)
        return torch.cat([net(prepare(chunk.to(device_of(net)))).cpu() for chunk in chunks])

    return Extractor("Inception-v3 (ImageNet)", f"{weights}, whole pictures", features)
