"""Moving averages of weights, which sample and predict better than the last step's weights.

References:
    [1] Yazici et al.: The Unusual Effectiveness of Averaging in GAN Training. ICLR 2019
    [2] Tarvainen, Valpola: Mean Teachers Are Better Role Models. NIPS 2017. arXiv:1703.01780
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a module's weights and buffers, itself never trained.

    Args:
        module: the network to average.
        decay: maximum decay (see `decay_after`).
    """
    return AveragedModel(module, multi_avg_fn=_average(decay), use_buffers=True).requires_grad_(
        False
    )


def decay_after(updates: int, highest: float) -> float:
    """Decay of the update that follows `updates` others: ramped up to `highest`."""
    return min(highest, (1 + updates) / (10 + updates))


def _average(decay: float) -> Callable:
    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        share = 1 - decay_after(int(count), decay)
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)

    return update
