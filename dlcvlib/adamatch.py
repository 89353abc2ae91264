"""AdaMatch, chapter 4: pseudo-labels for the target that the source keeps honest.

What the classifier says of a weakly augmented image of the target, once its classes are as frequent
as the source's, becomes the label of the same image strongly augmented, wherever it is sure enough;
how sure that is, the source says:

    loss = cross-entropy on the source + mu(t) * masked cross-entropy on the target

References:
    [1] Berthelot et al.: AdaMatch: A Unified Approach to Semi-Supervised Learning and Domain
        Adaptation. ICLR 2022. arXiv:2106.04732
    [2] French et al.: Self-ensembling for Visual Domain Adaptation. ICLR 2018. arXiv:1706.05208
        (pseudo-labels from averaged weights, on these digits)
    [3] Tarvainen, Valpola: Mean Teachers Are Better Role Models. NIPS 2017. arXiv:1703.01780

Where we depart from [1]: its classifier labels for itself; here an average of its weights over the
last steps does, as in [2] and [3], and is what is measured in the end. Of the unlabelled weak views
only the average has need, so that they stay out of the joint batch.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcvlib import runs
from dlcvlib.averaging import averaged
from dlcvlib.classifier import CODE, Classifier, adam, move
from dlcvlib.dann import two_domains
from dlcvlib.data.augmentation import AUGMENTATIONS, unchanged
from dlcvlib.data.images import Adaptation
from dlcvlib.params import AdaMatchSettings
from dlcvlib.runs import Run
from dlcvlib.training import evaluating


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
    """Logits at a random point between two, each value's own ([1], section 3.2): same shape."""
    return torch.lerp(alone, joint, torch.rand_like(joint))


def align(target: Tensor, source: Tensor) -> Tensor:
    """Distribution alignment ([1], section 3.3): the target's mean becomes the source's.

    Args:
        target: class probabilities (M, 10).
        source: class probabilities (N, 10).

    Returns:
        The target's times the ratio of the means, each row made to sum to 1 again.
    """
    ratio = source.mean(0) / target.mean(0).clamp_min(1e-6)
    return F.normalize(target * ratio, p=1, dim=1)


def confident(target: Tensor, source: Tensor, threshold: float) -> Tensor:
    """Relative confidence ([1], section 3.4): which rows' best is sure enough, (M,) bool.

    Sure enough is `threshold` times the source's mean confidence.
    """
    return target.amax(1) >= threshold * source.amax(1).mean()


def warm_up(progress: float) -> float:
    """Weight mu of the target's loss ([1], section 3.5): from 0 to 1 at half of the run."""
    return 0.5 - 0.5 * math.cos(min(math.pi, 2 * math.pi * progress))


class AdaMatch(Classifier):
    """A student that is trained, and the average of it, which labels for it and is asked at last.

    `extractor` and `classifier` are the average's.
    """

    def __init__(self, settings: AdaMatchSettings) -> None:
        super().__init__(settings)
        self.student = nn.Sequential(self.extractor, self.classifier)
        self.averaged = averaged(self.student, settings.teacher_decay)
        self.extractor, self.classifier = self.averaged.module
        self.modules = {"student": self.student, "averaged": self.averaged}
        self.optimizers = {"student": adam([self.student], settings)}

    def step(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """One step; source images (N, 3, 32, 32), labels (N,), target images (M, 3, 32, 32)."""
        x_s, y_s, x_t = batch
        weak = AUGMENTATIONS[self.settings.target_augmentation]
        strong = AUGMENTATIONS[self.settings.augmentation]
        source = torch.cat([weak(x_s), strong(x_s)])
        joint = self.student(torch.cat([source, strong(x_t)]))
        with frozen_statistics(self.student):
            alone = self.student(source)
        of_source = interpolate(joint[: len(source)], alone)
        of_target = joint[len(source) :]
        with torch.no_grad():
            sure = of_source[: len(x_s)].softmax(1)
            pseudo = align(self._teach(weak(x_t)).softmax(1), sure)
            mask = confident(pseudo, sure, self.settings.threshold).float()
        source_loss = F.cross_entropy(of_source, torch.cat([y_s, y_s]))
        each = F.cross_entropy(of_target, pseudo.argmax(1), reduction="none")
        target_loss = (mask * each).mean()
        move(source_loss + self.target_weight() * target_loss, self.optimizers.values())
        self.averaged.update_parameters(self.student)
        return {"class": source_loss, "target": target_loss, "kept": mask.mean()}

    def pseudo_labels(self, data: Adaptation) -> tuple[Tensor, Tensor]:
        """What the teacher takes the target's training images for, and where it is sure enough.

        Returns:
            Labels (M,) int64 and (M,) bool, on the CPU.
        """
        source, target = (
            self._over(lambda x: self.logits(x).softmax(1), images)
            for images in (data.source.images, data.target)
        )
        aligned = align(target, source)
        return aligned.argmax(1), confident(aligned, source, self.settings.threshold)

    def _teach(self, images: Tensor) -> Tensor:
        with evaluating({"averaged": self.averaged}):
            return self.averaged(images)

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
        code=[*CODE, "averaging", "dann", "adamatch"],
        evaluate=lambda method: {"accuracy": method.accuracy(data.source_validation)},
    )
