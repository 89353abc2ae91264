"""What the training loop trains: modules that define their own optimisation steps."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch

# Imported before the processes form a group: its default arguments would keep the group alive.
import torch.distributed.nn
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from dlcvlib.data.batches import float_chunks

Batch = tuple[Tensor, ...]


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        precision: "bf16" or "fp32".
        precision_why: why this one.
        processes: number of processes that train it together.
        step: optimisation steps taken.
        seconds: time spent training.
        history: one row per logged step.
        pending: losses and gradient norms of each step since the last row: (terms,) float32.
    """

    precision: str
    precision_why: str
    processes: int
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    pending: list[Tensor] = field(default_factory=list)


class Method(nn.Module):
    """A method's networks, optimisers, batches and training step.

    The child modules are the networks: each is moved to the device, saved and restored by name.

    Attributes:
        name: first part of the run's folder name.
        trains: optimiser -> names of the networks that it trains; "" is all of them.
        rates: optimiser -> factor of its learning rate, if other than 1.
        snapshots: names of the networks that are saved at each validation, besides checkpoints.
        batches: data and device -> the batch of each step, as a function of the step, on the
            device; each method defines it.
        training_step: updates the networks on one batch and returns the losses by name, scalars on
            the device; each method defines it.
        second_derivatives: whether a step differentiates gradients, for which networks can neither
            be compiled nor have torch's SyncBatchNorm.
        swaps_buffers: whether a step calls networks with other buffers than their own, which CUDA
            graphs would not notice.
        settings: a `config.schema.TrainingSettings`, which with data and code determines a run.
        step: optimisation steps taken so far, which schedules depend on.
    """

    name: ClassVar[str]
    snapshots: tuple[str, ...] = ()
    second_derivatives = False
    swaps_buffers = False
    batches: Callable[[Any, torch.device], Callable[[int], Batch]]
    training_step: Callable[[Batch], dict[str, Tensor]]

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.step = 0
        self.trains = {"adam": [""]}
        self.rates: dict[str, float] = {}

    @cached_property
    def optimizers(self) -> dict[str, Optimizer]:
        """An Adam for each in `trains`.

        Created on first use, because the first optimiser loads torch's compiler.
        """
        how = {
            "lr": self.settings.learning_rate,
            "betas": tuple(self.settings.adam_betas),
            "weight_decay": self.settings.weight_decay,
            "fused": True,
        }
        return {
            name: Adam([w for part in parts for w in self.get_submodule(part).parameters()], **how)
            for name, parts in self.trains.items()
        }

    def evaluate(self, data: Any) -> dict[str, float]:
        """Measures on held-out data for the history, by name."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def over(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Apply a function to inputs of equal length, a chunk at a time.

        Args:
            function: its arguments are on the device.
            inputs: uint8 images (N, C, H, W), which the function gets as floats in 0..1, or
                other tensors (N, …), which it gets as they are.

        Returns:
            The results, in evaluation mode, concatenated on the CPU; floats as float32.
        """
        mode = self.training
        self.eval()  # BatchNorm uses its running statistics without updating them
        try:
            chunks = zip(*(float_chunks(rows, self.device) for rows in inputs), strict=True)
            result = torch.cat([function(*chunk).cpu() for chunk in chunks])
        finally:
            self.train(mode)
        return result.float() if result.is_floating_point() else result


def update(loss: Tensor, optimizers: Collection[Optimizer]) -> None:
    """One step of these optimisers on the loss, with gradients averaged over all processes.

    Gradients pass through all other networks without reaching their parameters.
    """
    weights = [weight for optimizer in optimizers for weight in weights_of(optimizer)]
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward(inputs=weights)
    if PartialState().num_processes > 1:
        _average([weight.grad for weight in weights])
    for optimizer in optimizers:
        optimizer.step()


def gradient_norms(optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """Euclidean norm of the gradient of each optimiser's last step: "gradient_<name>" -> scalar."""
    gradients = {name: [w.grad for w in weights_of(o)] for name, o in optimizers.items()}
    return {f"gradient_{n}": torch.nn.utils.get_total_norm(g) for n, g in gradients.items()}


def weights_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters that one of a method's optimisers updates."""
    return optimizer.param_groups[0]["params"]


def _average(gradients: list[Tensor]) -> None:
    """Average over the processes in one communication, in place."""
    mean = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
