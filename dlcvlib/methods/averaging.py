"""Moving averages of weights, which sample and predict better than the last step's weights.

References:
    [1] Yazici et al.: The Unusual Effectiveness of Averaging in GAN Training. ICLR 2019
    [2] Tarvainen, Valpola: Mean Teachers Are Better Role Models. NIPS 2017. arXiv:1703.01780
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn


def averaged(module: nn.Module, highest: float) -> AveragedModel:
    """An exponential moving average of a module's weights and buffers, itself never trained.

    Args:
        module: the network to average.
        highest: the decay of an update, after a ramp of (1 + t) / (10 + t) for t updates before.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
        t = int(updates)
        decay = min(highest, (1 + t) / (10 + t))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    average = AveragedModel(module, multi_avg_fn=update, use_buffers=True)
    return average.requires_grad_(False)


def with_statistics(module: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy in evaluation mode whose BatchNorm statistics are means over batches of inputs.

    Averaged statistics belong to the networks of earlier steps, not to the averaged weights.
    """
    estimated = copy.deepcopy(module)
    update_bn(batches, estimated)
    return estimated.eval()
