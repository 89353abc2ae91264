"""DANN, chapter 3: features that separate the digits but not the domains.

A domain classifier D predicts from F's features which domain an image comes from; F is trained so
that the label classifier L succeeds and D fails:

    L and F minimise  class loss - weight * domain loss,   D minimises  domain loss

where the class loss is the cross-entropy on the source's labels and the domain loss D's binary
cross-entropy on images of both domains. A gradient reversal layer does both in one step. In the
papers F, L, D and the weight are G_f, G_y, G_d and lambda; the domain label 1 is the source here.

References:
    [1] Ganin, Lempitsky: Unsupervised Domain Adaptation by Backpropagation. ICML 2015.
        arXiv:1409.7495
    [2] Ganin et al.: Domain-Adversarial Training of Neural Networks. JMLR 2016. arXiv:1505.07818

Both domains' images pass through F in one batch, as in the original's code, so that BatchNorm sees
their mixture in training and, through its running statistics, in evaluation too. Departure from
the original: the two domains are drawn independently, so that an epoch does not end with the
shorter one. Departure from the papers: a "patient" schedule (a label warm-up), because D separates
the domains almost immediately, and its reversed gradient can flatten the features before L has
learned any digit.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcvlib.config.schema import DANNSettings
from dlcvlib.data.types import Adaptation
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


class DomainClassifier(nn.Module):
    """D: fully connected layers with BatchNorm and ReLU, then a logit of being from the source.

    Args:
        features: length of F's output.
        settings: `domain_width`, of the hidden layers; `domain_layers`, their number.
    """

    def __init__(self, features: int, settings: DANNSettings) -> None:
        super().__init__()
        width = settings.domain_width
        blocks: list[nn.Module] = []
        for in_features in [features, *[width] * (settings.domain_layers - 1)]:
            blocks += [nn.Linear(in_features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*blocks, nn.Linear(width, 1), nn.Flatten(0))

    def forward(self, features: Tensor) -> Tensor:
        """(N, features) -> logits (N,)."""
        return self.layers(features)


class DANN(TwoDomains):
    """F, L and D; F and L share an optimiser, D has its own."""

    name = "dann"

    def __init__(self, settings: DANNSettings) -> None:
        super().__init__(settings)
        self.trains["domain"] = ["domain"]
        self.domain = DomainClassifier(self.extractor.size, settings)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """One joint step of F, L and D.

        "alternating" first trains D alone, with F fixed.
        """
        x_s, y_s, x_t = batch
        features = self.extractor(torch.cat([x_s, x_t]))
        is_source = torch.arange(len(features), device=features.device) < len(x_s)
        if self.settings.domain_update == "alternating":
            domain_logits = self.domain(features.detach())
            domain_loss = F.binary_cross_entropy_with_logits(domain_logits, is_source.float())
            update(domain_loss, [self.optimizers["domain"]])
        class_loss = F.cross_entropy(self.classifier(features[: len(x_s)]), y_s)
        weight = self.domain_weight(class_loss)
        domain_logits = self.domain(reverse_gradient(features, weight))
        domain_loss = F.binary_cross_entropy_with_logits(domain_logits, is_source.float())
        update(class_loss + domain_loss, self.optimizers.values())
        return {
            "class": class_loss,
            "domain": domain_loss,
            "domain_accuracy": ((domain_logits > 0) == is_source).float().mean(),
            "domain_weight": weight,
        }

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

        D's accuracy is the mean of those on both domains' images; 0.5 is chance.
        """
        images = data.validation.images, data.target_validation
        logits = [self.over(lambda x: self.domain(self.extractor(x)), some) for some in images]
        correct = (logits[0] > 0).float().mean() + (logits[1] <= 0).float().mean()
        return super().evaluate(data) | {"domain_accuracy": correct.item() / 2}
