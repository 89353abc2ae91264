"""AdaMatch, chapter 4: pseudo-labels for the target, selected by the source's confidence.

The classifier's prediction for a weakly augmented target image, after its class frequencies are
aligned with the source's, becomes the label of a strongly augmented view of the same image if it
is confident enough; the source's own confidence sets the threshold:

    loss = cross-entropy on the source + mu(t) * masked cross-entropy on the target

References:
    [1] Berthelot et al.: AdaMatch: A Unified Approach to Semi-Supervised Learning and Domain
        Adaptation. ICLR 2022. arXiv:2106.04732
    [2] Sohn et al.: FixMatch. NeurIPS 2020. arXiv:2001.07685 (weak and strong views)

As in [1], predictions use a moving average of the weights. With `plain`, logit interpolation,
distribution alignment and the relative threshold are left out: pseudo-labels as in [2]. Departures
from the published code of [1]: distribution alignment compares the means of the two current
batches, not running means, and both batches have the same size. Alignment assumes that the classes
are as frequent in both domains; in the embedded data they are nearly uniform in all three.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dlcvlib.config.schema import AdaMatchSettings, PixelDAParams
from dlcvlib.data.augment import AUGMENTATIONS
from dlcvlib.data.types import Adaptation
from dlcvlib.methods.averaging import Average
from dlcvlib.methods.classifier import TwoDomains, networks
from dlcvlib.training.method import Batch, Method, update
from dlcvlib.training.processes import batch_mean


def without_statistics(module: nn.Module, x: Tensor) -> Tensor:
    """module(x) that leaves the running statistics of BatchNorm as they are.

    It normalises by the batch all the same.
    """
    # Copies are updated in their place. The count of batches, an integer, goes on.
    copies = {name: b.clone() for name, b in module.named_buffers() if b.is_floating_point()}
    return functional_call(module, copies, x)


def interpolate(joint: Tensor, alone: Tensor) -> Tensor:
    """Random logit interpolation ([1]): each value drawn uniformly between the two."""
    return torch.lerp(alone, joint, torch.rand_like(joint))


def align(target: Tensor, source: Tensor) -> Tensor:
    """Distribution alignment ([1]): scale the target's mean prediction to the source's.

    Args:
        target: class probabilities (M, 10).
        source: class probabilities (N, 10).

    Returns:
        The target's probabilities times the ratio of the means, each row renormalised to sum to 1.
    """
    ratio = batch_mean(source) / batch_mean(target).clamp_min(1e-6)
    return F.normalize(target * ratio, p=1, dim=1)


def confident(target: Tensor, source: Tensor, threshold: float) -> Tensor:
    """Relative confidence threshold ([1]): which rows are confident, (M,) bool.

    Those whose highest probability reaches `threshold` times the source's mean confidence.
    """
    return target.amax(1) >= threshold * batch_mean(source.amax(1))


def warm_up(progress: float) -> float:
    """Weight mu of the target's loss ([1]): it rises from 0 to 1 over the first half of the run."""
    return 0.5 - 0.5 * math.cos(min(math.pi, 2 * math.pi * progress))


class AdaMatch(TwoDomains):
    """F and L, and their moving average, which makes the predictions."""

    name, title = "adamatch", "AdaMatch"
    settings_of = staticmethod(PixelDAParams.adamatch)
    augmentations = "none", "none"  # the step augments

    def __init__(self, settings: AdaMatchSettings) -> None:
        Method.__init__(self, settings)  # not Classifier's: its networks are these two
        self.swaps_buffers = not settings.plain
        self.trains = {"trained": ["trained"]}
        self.trained = nn.Sequential(*networks(settings))
        self.averaged = Average(self.trained, settings.ema_decay)

    @property
    def extractor(self) -> nn.Module:
        """F of the moving average."""
        return self.averaged.module[0]

    @property
    def classifier(self) -> nn.Module:
        """L of the moving average."""
        return self.averaged.module[1]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step on weak and strong views of both domains."""
        x_s, y_s, x_t = batch
        weak = AUGMENTATIONS[self.settings.target_augmentation]
        strong = AUGMENTATIONS[self.settings.augmentation]
        # 1. Logits of all views in one batch, and of the source's alone: BatchNorm differs.
        source = torch.cat([weak(x_s), strong(x_s)])
        joint = self.trained(torch.cat([source, weak(x_t), strong(x_t)]))
        on_source, (on_weak, on_strong) = joint[: len(source)], joint[len(source) :].chunk(2)
        if not self.settings.plain:
            on_source = interpolate(on_source, without_statistics(self.trained, source))
        # 2. Pseudo-labels for the target, and which of them are confident.
        with torch.no_grad():
            labels, mask = self.select(on_weak.softmax(1), on_source[: len(x_s)].softmax(1))
        # 3. Both losses.
        source_loss = F.cross_entropy(on_source, torch.cat([y_s, y_s]))
        losses = F.cross_entropy(on_strong, labels, reduction="none")
        target_loss = (mask * losses).mean()
        mu = warm_up(self.step / self.settings.steps)
        update(source_loss + mu * target_loss, self.optimizers.values())
        self.averaged.update(self.trained, self.step)
        return {"class": source_loss, "target": target_loss, "kept": mask.float().mean()}

    def select(self, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels (M,) int64 and which are confident (M,) bool, of class probabilities.

        A `plain` method takes the target's own, if they reach the threshold itself ([2]).

        Args:
            target: class probabilities (M, 10).
            source: class probabilities (N, 10).
        """
        if self.settings.plain:
            return target.argmax(1), target.amax(1) >= self.settings.threshold
        aligned = align(target, source)
        return aligned.argmax(1), confident(aligned, source, self.settings.threshold)

    def pseudo_labels(self, data: Adaptation) -> tuple[Tensor, Tensor]:
        """The averaged networks' labels for the target's training images, and which are confident.

        Returns:
            Labels (M,) int64 and (M,) bool, on the CPU.
        """
        source, target = (
            self.over(lambda x: self.logits(x).softmax(1), images)
            for images in (data.source.images, data.target)
        )
        return self.select(target, source)
