"""Moving averages of weights, which sample and predict better than the last step's weights.

References:
    [1] Yazici et al.: The Unusual Effectiveness of Averaging in GAN Training. ICLR 2019
    [2] Tarvainen, Valpola: Mean Teachers Are Better Role Models. NIPS 2017. arXiv:1703.01780
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn


class Average(nn.Module):
    """An exponential moving average of a module's weights and buffers, itself never trained.

    Unlike torch's `AveragedModel`, which counts its updates on the device, it never waits for it.

    Args:
        module: the network to average.
        highest: the decay of an update, after a ramp of (1 + t) / (10 + t) for t updates before.
    """

    def __init__(self, module: nn.Module, highest: float) -> None:
        super().__init__()
        self.module, self.highest = copy.deepcopy(module).requires_grad_(False), highest

    @torch.no_grad()
    def update(self, module: nn.Module, updates: int) -> None:
        """Average in a module's state, after `updates` earlier ones; the first is copied."""
        decay = min(self.highest, (1 + updates) / (10 + updates)) if updates else 0.0
        tensors = ([*m.parameters(), *m.buffers()] for m in (self.module, module))
        for average, value in zip(*tensors, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)


def with_statistics(module: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy in evaluation mode whose BatchNorm statistics are means over batches of inputs.

    Averaged statistics belong to the networks of earlier steps, not to the averaged weights.
    """
    estimated = copy.deepcopy(module)
    update_bn(batches, estimated)
    return estimated.eval()
