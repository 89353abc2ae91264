"""AdaMatch, chapter 4: pseudo-labels for the target that the source keeps honest.

What the classifier says of a weakly augmented image of the target, once its classes are as frequent
as the source's, becomes the label of the same image strongly augmented, wherever it is sure enough;
how sure that is, the source says:

    loss = cross-entropy on the source + mu(t) * masked cross-entropy on the target

References:
    [1] Berthelot et al.: AdaMatch: A Unified Approach to Semi-Supervised Learning and Domain
        Adaptation. ICLR 2022. arXiv:2106.04732
    [2] Sohn et al.: FixMatch. NeurIPS 2020. arXiv:2001.07685 (weak and strong views)

As in [1], the weights that are asked in the end are an average over the last steps. Where we depart
from its published code: distribution alignment compares the means of the two batches at hand, not
running ones, and both batches are of one size.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcvlib.config.schema import AdaMatchSettings
from dlcvlib.data.augment import AUGMENTATIONS, unchanged
from dlcvlib.data.types import Adaptation
from dlcvlib.methods.averaging import averaged
from dlcvlib.methods.classifier import CODE, Classifier
from dlcvlib.methods.dann import two_domains
from dlcvlib.training import runs
from dlcvlib.training.loop import adam, move
from dlcvlib.training.runs import Run

THRESHOLD = 0.9
"""Share of the source's confidence from which [1] believes a pseudo-label."""


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm still normalises by the batch meanwhile, but its running statistics stay."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum


def interpolate(joint: Tensor, alone: Tensor) -> Tensor:
    """Random logit interpolation ([1]): each value somewhere between the two, same shape."""
    return torch.lerp(alone, joint, torch.rand_like(joint))


def align(target: Tensor, source: Tensor) -> Tensor:
    """Distribution alignment ([1]): the target's mean becomes the source's.

    Args:
        target: class probabilities (M, 10).
        source: class probabilities (N, 10).

    Returns:
        The target's times the ratio of the means, each row made to sum to 1 again.
    """
    ratio = source.mean(0) / target.mean(0).clamp_min(1e-6)
    return F.normalize(target * ratio, p=1, dim=1)


def confident(target: Tensor, source: Tensor, threshold: float) -> Tensor:
    """Relative confidence threshold ([1]): which rows' best is sure enough, (M,) bool.

    Sure enough is `threshold` times the source's mean confidence.
    """
    return target.amax(1) >= threshold * source.amax(1).mean()


def warm_up(progress: float) -> float:
    """Weight mu of the target's loss ([1]): from 0 to 1 at half of the run."""
    return 0.5 - 0.5 * math.cos(min(math.pi, 2 * math.pi * progress))


class AdaMatch(Classifier):
    """F and L that are trained, and their average; `extractor` and `classifier` are the average's.

    What is predicted and measured is therefore the average's.
    """

    def __init__(self, settings: AdaMatchSettings) -> None:
        super().__init__(settings)
        self.trained = nn.Sequential(self.extractor, self.classifier)
        self.averaged = averaged(self.trained, settings.ema_decay)
        self.extractor, self.classifier = self.averaged.module
        self.modules = {"trained": self.trained, "averaged": self.averaged}

    @cached_property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Of what is trained."""
        return {"trained": adam([self.trained], self.settings)}

    def step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """One step; source images (N, 3, 32, 32), labels (N,), target images (M, 3, 32, 32)."""
        x_s, y_s, x_t = batch
        weak = AUGMENTATIONS[self.settings.target_augmentation]
        strong = AUGMENTATIONS[self.settings.augmentation]
        # 1. Logits of all views together, and of the source's alone, for BatchNorm's sake.
        source = torch.cat([weak(x_s), strong(x_s)])
        joint = self.trained(torch.cat([source, weak(x_t), strong(x_t)]))
        with frozen_statistics(self.trained):
            alone = self.trained(source)
        of_source = interpolate(joint[: len(source)], alone)
        of_weak, of_strong = joint[len(source) :].chunk(2)
        # 2. Pseudo-labels of the target, and which of them to believe.
        with torch.no_grad():
            known = of_source[: len(x_s)].softmax(1)
            pseudo = align(of_weak.softmax(1), known)
            mask = confident(pseudo, known, self.settings.threshold).float()
        # 3. Both losses.
        source_loss = F.cross_entropy(of_source, torch.cat([y_s, y_s]))
        each = F.cross_entropy(of_strong, pseudo.argmax(1), reduction="none")
        target_loss = (mask * each).mean()
        move(source_loss + self.target_weight() * target_loss, self.optimizers.values())
        self.averaged.update_parameters(self.trained)
        return {"class": source_loss, "target": target_loss, "kept": mask.mean()}

    def pseudo_labels(self, data: Adaptation) -> tuple[Tensor, Tensor]:
        """What the average takes the target's training images for, and where it is sure enough.

        Returns:
            Labels (M,) int64 and (M,) bool, on the CPU.
        """
        source, target = (
            self._over(lambda x: self.logits(x).softmax(1), images)
            for images in (data.source.images, data.target)
        )
        aligned = align(target, source)
        return aligned.argmax(1), confident(aligned, source, self.settings.threshold)

    def target_weight(self) -> float:
        """Weight of the target's loss at the step that `done` says."""
        return warm_up(self.done / self.settings.steps)


def train_or_load(
    settings: AdaMatchSettings, data: Adaptation, runs_dir: Path | str
) -> Run[AdaMatch]:
    """The AdaMatch of these settings on this pair, trained now or by an earlier run."""
    return runs.train_or_load(
        "adamatch",
        lambda: AdaMatch(settings),
        two_domains(data, settings, settings.seed, unchanged, unchanged),
        settings,
        data=data.fingerprint,
        runs_dir=runs_dir,
        code=[*CODE, "methods/averaging", "methods/dann", "methods/adamatch"],
        evaluate=lambda method: {"accuracy": method.accuracy(data.source_validation)},
    )
