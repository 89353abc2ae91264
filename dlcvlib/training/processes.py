"""One run on several processes: each takes its share of a batch, as part of one step on all of it.

All processes seed a step alike and draw its batch whole. What a method computes from its share is
then what one process would compute from the whole batch, rounding aside:

- a loss is the mean of the shares' losses, so that gradients are averaged (`method.update`);
- random numbers are drawn for the whole batch, and each process takes those of its rows (`Share`);
- BatchNorm normalises by the whole batch (`Share`; on GPUs, torch's SyncBatchNorm);
- where a batch's mean is an argument of another function, such as a logarithm, it is `batch_mean`.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlcvlib.utils.errors import UserError

SHAPED = {torch.rand, torch.randn, torch.randint}
"""Draws by shape, which is the last positional argument."""
LIKE = {torch.rand_like, torch.randn_like}
IN_PLACE = {Tensor.uniform_, Tensor.normal_}


class _MeanOverProcesses(torch.autograd.Function):
    """Elementwise; it is its own adjoint, so that it can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return reduce(x.contiguous(), "mean")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _MeanOverProcesses.apply(gradient)


def batch_mean(values: Tensor) -> Tensor:
    """Mean over the rows of a whole batch, of which each process has its share.

    Args:
        values: (N, …), or a scalar that is already a mean over the share's rows.

    Returns:
        (…), in a step the same on all processes, and differentiable.
    """
    mean = values.mean(0)
    return _MeanOverProcesses.apply(mean) if Share.active else mean


class Share(TorchFunctionMode):
    """The context of a step on one process's share of a batch.

    Random numbers with as many rows as one of the share's tensors, or a multiple, belong to its
    rows: they are drawn for the whole batch. Others are the same on all processes.

    Args:
        batch: drawn whole, the same on all processes.
        sync_batch_norm: BatchNorm normalises by the whole batch, not by the share.

    Attributes:
        batch: this process's rows.

    Raises:
        UserError: if the shares would not have equal sizes of at least two rows.
    """

    active = False

    def __init__(self, batch: tuple[Tensor, ...], sync_batch_norm: bool) -> None:
        super().__init__()
        count, self.rank = PartialState().num_processes, PartialState().process_index
        if any(len(rows) % count or len(rows) < 2 * count for rows in batch):
            raise UserError(
                f"a batch of {len(batch[0])} cannot be divided evenly, with at least two each, "
                f"among {count} processes: start fewer, or change batch_size"
            )
        self.count, self.sync_batch_norm = count, sync_batch_norm
        self.batch = tuple(rows.chunk(count)[self.rank] for rows in batch)

    def __enter__(self) -> "Share":
        # A single process has the whole batch: nothing is intercepted.
        if self.count > 1:
            Share.active = True
            super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.count > 1:
            Share.active = False
            super().__exit__(*error)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Intercepts each call of torch's; those in here are as usual."""
        kwargs = kwargs or {}
        if function in SHAPED:
            *bounds, shape = [args] if isinstance(args[-1], int) else args
            if size := self._size(shape):
                whole = function(*bounds, (self.count * shape[0], *shape[1:]), **kwargs)
                return self._own(whole, size)
        elif function in LIKE and (size := self._size(args[0].shape)):
            # Of copies, because the order of the numbers depends on how a tensor lies in memory.
            return self._own(function(torch.cat([args[0]] * self.count), **kwargs), size)
        elif function in IN_PLACE and (size := self._size(args[0].shape)):
            whole = function(torch.cat([args[0]] * self.count), *args[1:], **kwargs)
            return args[0].copy_(self._own(whole, size))
        elif function is F.batch_norm and self.sync_batch_norm:
            return _batch_norm(self.count, *args, **kwargs)
        return function(*args, **kwargs)

    def _size(self, shape: Sequence[int]) -> int:
        """Of how many rows a share's part is if random numbers have this shape; 0: of none."""
        sizes = [len(rows) for rows in self.batch if shape and shape[0] % len(rows) == 0]
        return max(sizes, default=0)

    def _own(self, whole: Tensor, size: int) -> Tensor:
        """This process's rows, in parts of a size, of what was drawn for the whole batch."""
        return whole.unflatten(0, (-1, self.count, size))[:, self.rank].flatten(0, 1)


def _batch_norm(
    count: int,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` by the statistics of a whole batch, shared among `count` processes.

    torch's SyncBatchNorm needs GPUs, and cannot be differentiated twice.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    values = x.float().movedim(1, -1)
    rows = values.flatten(0, -2)
    mean = batch_mean(rows)
    deviation = values - mean
    variance = batch_mean(deviation.square().flatten(0, -2))
    if running_mean is not None:
        n = count * len(rows)
        running_mean.lerp_(mean.detach(), momentum)
        running_var.lerp_(variance.detach() * n / (n - 1), momentum)
    normalised = deviation * (variance + eps).rsqrt()
    if weight is not None:
        normalised = normalised * weight + bias
    return normalised.movedim(-1, 1).to(x.dtype)


@contextmanager
def ending_together() -> Iterator[None]:
    """End this process with one message if another process of its run is lost.

    Communication then fails, or the launcher ends the processes that are left.

    Raises:
        UserError: in each of them.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's must not precede the message
        raise UserError(
            "another process of this run was lost, or all were told to end: run the same command "
            "again to continue from the last checkpoint"
        ) from None

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except RuntimeError as error:  # "[gloo/transport/...] Connection closed by peer"
        if any(backend in str(error).lower() for backend in ("gloo", "nccl")):
            stop()
        raise
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)


def synchronise(method: nn.Module) -> None:
    """Give a method's networks torch's SyncBatchNorm, for training by several GPUs."""
    for network in method.children():
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
