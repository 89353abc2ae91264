"""What the training loop trains: modules that define their own optimisation steps."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
        precision: "bf16" or "fp32", and why.
        processes: number of processes that train it together.
        step: optimisation steps taken.
        seconds: time spent training.
        history: one row per logged step.
        pending: losses of the steps since the last row.
    """

    precision: tuple[str, str]
    processes: int
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    pending: list[dict[str, Tensor]] = field(default_factory=list)


class Method(nn.Module):
    """A method's networks, optimisers, batches and training step.

    The child modules are the networks: each is moved to the device, saved and restored by name.

    Attributes:
        name: first part of the run's folder name.
        settings: a `config.schema.TrainingSettings`, which with data and code determines a run.
        step: optimisation steps taken so far, which schedules depend on.
    """

    name: ClassVar[str]

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.step = 0

    @cached_property
    def optimizers(self) -> dict[str, Optimizer]:
        """By name. Created on first use, because the first optimiser loads torch's compiler."""
        return {"adam": adam(self.children(), self.settings)}

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the networks whose weights are saved at each validation."""
        return ()

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the networks on one batch and return the losses, scalars by name."""
        raise TypeError(f"{type(self).__name__} defines no training_step")

    def batches(self, data: Any, device: torch.device) -> Callable[[int], Batch]:
        """The batch of each step, as a function of the step, on the device."""
        raise TypeError(f"{type(self).__name__} defines no batches")

    def evaluate(self, data: Any) -> dict[str, float]:
        """Measures on held-out data for the history, by name."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def over(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Apply a function of float images to uint8 images (N, C, H, W), a chunk at a time.

        Returns:
            The results, in evaluation mode, concatenated on the CPU; floats as float32.
        """
        with evaluating(self):
            chunks = float_chunks(images, self.device)
            result = torch.cat([function(chunk).cpu() for chunk in chunks])
        return result.float() if result.is_floating_point() else result


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within it: BatchNorm uses its running statistics without updating them."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within it, gradients pass through the modules but do not reach their parameters."""
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for module in modules:
            module.requires_grad_(True)


def adam(modules: Iterable[nn.Module], settings: Any) -> Adam:
    """Adam over the parameters of several modules."""
    return Adam(
        [parameter for module in modules for parameter in module.parameters()],
        lr=settings.learning_rate,
        betas=tuple(settings.adam_betas),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def update(loss: Tensor, optimizers: Collection[Optimizer]) -> None:
    """One step of these optimisers on the loss, with gradients averaged over all processes."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        if PartialState().num_processes > 1:
            _average(_gradients(optimizer))
        optimizer.step()


def gradient_norms(optimizers: Mapping[str, Optimizer]) -> dict[str, Tensor]:
    """Euclidean norm of the gradient of each optimiser's last step, by the optimiser's name."""
    return {
        name: torch.nn.utils.get_total_norm(_gradients(optimizer))
        for name, optimizer in optimizers.items()
    }


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [weight.grad for weight in weights if weight.grad is not None]


def _average(gradients: list[Tensor]) -> None:
    """Average over the processes in one communication, in place."""
    mean = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
