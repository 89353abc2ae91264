"""DANN, chapter 3: features that separate the digits but not the domains.

A domain classifier D predicts from the networks' features which domain an image comes from; the
feature extractor F and the label classifier L are trained so that L succeeds and D fails:

    L and F minimise  class loss - weight * domain loss,   D minimises  domain loss

where the class loss is the cross-entropy on the source's labels and the domain loss D's binary
cross-entropy on images of both domains. A gradient reversal layer does both in one step. In the
papers F, L, D and the weight are G_f, G_y, G_d and lambda; the domain label 1 is the source here.

In [1] and [2] D looks at F's output. In [3] (CDAN) it looks at L's last hidden layer times L's
prediction, so that it compares the domains class by class; `domain_input` chooses. BatchNorm
normalises both domains by joint statistics, as in the original's code, or each by its own, with
common scale and shift ([4]); in evaluation by the running statistics of the image's domain.

References:
    [1] Ganin, Lempitsky: Unsupervised Domain Adaptation by Backpropagation. ICML 2015.
        arXiv:1409.7495
    [2] Ganin et al.: Domain-Adversarial Training of Neural Networks. JMLR 2016. arXiv:1505.07818
    [3] Long et al.: Conditional Adversarial Domain Adaptation. NeurIPS 2018. arXiv:1705.10667
    [4] Li et al.: Revisiting Batch Normalization for Practical Domain Adaptation. ICLR 2017
        Workshop. arXiv:1603.04779

Departure from the original: the two domains are drawn independently, so that an epoch does not end
with the shorter one. Departure from the papers: a "patient" schedule (a label warm-up), because D
separates the domains almost immediately, and its reversed gradient can flatten the features before
L has learned any digit.
"""

import math
from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dlcvlib.config.schema import DANNSettings
from dlcvlib.data.types import CLASSES, Adaptation
from dlcvlib.methods.classifier import TwoDomains, learned
from dlcvlib.training.method import Batch, update


def reverse_gradient(x: Tensor, weight: float | Tensor) -> Tensor:
    """x forward, -weight times the gradient backward ([1], section 3, eq. 8 and 9).

    Raises:
        RuntimeError: if x requires no gradient.
    """
    same = x.view_as(x)
    same.register_hook(lambda gradient: -weight * gradient)
    return same


def rising(progress: float) -> float:
    """The schedule of [1], section 4: 0 at the start, nearly 1 from the middle of the run."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def multilinear(hidden: Tensor, logits: Tensor) -> Tensor:
    """Products of each unit with each class probability ([3], eq. 4): (N, D), (N, C) -> (N, C * D).

    As in the code of [3], no gradient reaches the probabilities.
    """
    probabilities = logits.softmax(1).detach()
    return (probabilities[:, :, None] * hidden[:, None]).flatten(1)


class DomainClassifier(nn.Module):
    """D: fully connected layers with ReLU, then a logit of being from the source.

    Args:
        inputs: length of what it looks at.
        settings: `domain_width`, of the hidden layers; `domain_layers`, their number;
            `normalise_domain`, BatchNorm before each ReLU.
    """

    def __init__(self, inputs: int, settings: DANNSettings) -> None:
        super().__init__()
        width, normalise = settings.domain_width, settings.normalise_domain
        blocks: list[nn.Module] = []
        for size in [inputs, *[width] * (settings.domain_layers - 1)]:
            norm = [nn.BatchNorm1d(width)] if normalise else []
            blocks += [nn.Linear(size, width, bias=not normalise), *norm, nn.ReLU()]
        self.layers = nn.Sequential(*blocks, nn.Linear(width, 1), nn.Flatten(0))

    def forward(self, seen: Tensor) -> Tensor:
        """(N, inputs) -> logits (N,)."""
        return self.layers(seen)


class DANN(TwoDomains):
    """F, L and D; F and L share an optimiser, D has its own."""

    name, title = "dann", "DANN"

    def __init__(self, settings: DANNSettings) -> None:
        super().__init__(settings)
        self.trains["domain"] = ["domain"]
        width = settings.classifier_width
        sizes = {"features": self.extractor.size, "hidden": width, "conditional": CLASSES * width}
        # With separate statistics, those of F and L are the target's, and these the source's.
        own = dict(self.named_buffers()) if settings.batch_statistics == "separate" else {}
        self.swaps_buffers = bool(own)
        self.of_source = {name: "source_" + name.replace(".", "_") for name in own}
        for name, statistic in own.items():
            self.register_buffer(self.of_source[name], statistic.clone())
        self.domain = DomainClassifier(sizes[settings.domain_input], settings)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """One joint step of F, L and D.

        "alternating" first trains D alone, with F and L fixed.
        """
        x_s, y_s, x_t = batch
        # 1. F and L on both domains, and what D sees of it, the source's part first.
        on_source, on_target = self._represent_both(x_s, x_t)
        seen = torch.cat([self.seen_by_domain(*on_source), self.seen_by_domain(*on_target)])
        is_source = torch.arange(len(seen), device=seen.device) < len(x_s)
        # 2. D alone.
        if self.settings.domain_update == "alternating":
            domain_logits = self.domain(seen.detach())
            domain_loss = F.binary_cross_entropy_with_logits(domain_logits, is_source.float())
            update(domain_loss, [self.optimizers["domain"]])
        # 3. All three, with the gradient reversed between D and the others.
        class_loss = F.cross_entropy(on_source[2], y_s)
        weight = self.domain_weight(class_loss)
        # Without a weight nothing would reach F and L: the target's backward pass is saved.
        reverses = self.settings.domain_weight > 0
        domain_logits = self.domain(reverse_gradient(seen, weight) if reverses else seen.detach())
        domain_loss = F.binary_cross_entropy_with_logits(domain_logits, is_source.float())
        update(class_loss + domain_loss, self.optimizers.values())
        return {
            "class": class_loss,
            "domain": domain_loss,
            "domain_accuracy": ((domain_logits > 0) == is_source).float().mean(),
            "domain_weight": weight,
        }

    def seen_by_domain(self, features: Tensor, hidden: Tensor, logits: Tensor) -> Tensor:
        """What D looks at (`domain_input`): (N, inputs)."""
        if self.settings.domain_input == "conditional":
            return multilinear(hidden, logits)
        return hidden if self.settings.domain_input == "hidden" else features

    def represent(self, images: Tensor, source: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """As `Classifier.represent`, each domain normalised by its own statistics if separate."""
        # In training, these are then updated in place, and the networks' own stay as they are.
        used = {name: self.get_buffer(own) for name, own in self.of_source.items() if source}
        return functional_call(self, used, images)

    def _represent_both(self, x_s: Tensor, x_t: Tensor) -> Iterable[tuple[Tensor, ...]]:
        if self.settings.batch_statistics == "separate":
            return self.represent(x_s, source=True), self.represent(x_t)
        parts = self.represent(torch.cat([x_s, x_t]))
        return zip(*(part.split([len(x_s), len(x_t)]) for part in parts), strict=True)

    def domain_weight(self, class_loss: Tensor) -> Tensor:
        """The weight of the reversed gradient at the current step: scalar.

        Fixed, `rising`, or "patient" (a label warm-up): rising, times how far the batch's class
        loss lies below chance (`learned`).
        """
        settings = self.settings
        weight = torch.full_like(class_loss, settings.domain_weight)
        if settings.domain_schedule != "fixed":
            weight *= rising(self.step / settings.steps)
        if settings.domain_schedule == "patient":
            weight *= learned(class_loss)
        return weight

    def evaluate(self, data: Adaptation) -> dict[str, float]:
        """Accuracy on the source's validation images, and D's; no target label is used.

        D's accuracy and cross-entropy are means over both domains, whatever their sizes; at chance
        they are 0.5 and ln 2.
        """

        def logits(images: Tensor, source: bool) -> Tensor:
            return self.domain(self.seen_by_domain(*self.represent(images, source)))

        on_source = self.over(partial(logits, source=True), data.validation.images)
        on_target = self.over(partial(logits, source=False), data.target_validation)
        correct = (on_source > 0).float().mean() + (on_target <= 0).float().mean()
        loss = F.softplus(-on_source).mean() + F.softplus(on_target).mean()
        measured = {"domain_accuracy": correct.item() / 2, "domain": loss.item() / 2}
        return super().evaluate(data) | measured
