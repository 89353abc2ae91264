"""Batches, drawn and augmented on the device as a whole.

The batch of step t depends on (seed, t) alone: each epoch has its own permutation, and the
augmentation draws from the generator that `training.loop.seed_step` has just seeded. Where the data
lie, on the device or in a file, changes nothing in it.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 50
"""Images per forward pass outside of training: their activations then fit into a CPU's cache, where
larger chunks are slower and take hundreds of MB."""
RESIDENT_SHARE = 0.4
"""Share of a GPU's free memory that a data set may take; networks and their gradients need some."""
AHEAD = 2
"""Steps whose batches are read while a step is computed, if the data are not on the device."""


def epoch_indices(
    size: int, batch_size: int, seed: int, step: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Indices of a step's batch among `size` items, each used once per epoch: (batch_size,) int64.

    An incomplete last batch of an epoch is dropped; the next epoch has another permutation.
    """
    batches = max(1, size // batch_size)
    epoch, index = divmod(step, batches)
    order = _permutation(size, seed * 1_000_003 + epoch, device)
    return order[index * batch_size : (index + 1) * batch_size]


# Cached for the two domains of this step and the next: a step's cost must not grow with the data.
# On the device: otherwise each step would wait for the GPU.
@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, device: torch.device | str) -> Tensor:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    if torch.device(device).type == "cuda":
        order = order.pin_memory()  # otherwise the copy would wait for the GPU
    return order.to(device, non_blocking=order.is_pinned())


def is_resident(tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Whether to draw batches from a copy of the tensors on the device.

    A CPU uses them as they are, mapped from a file or not. So that other processes find room, a GPU
    has a copy only of what takes `RESIDENT_SHARE` of its free memory at most; Apple's, which share
    the memory of the CPU, have none.
    """
    if device.type != "cuda":
        return device.type == "cpu"
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in tensors) <= RESIDENT_SHARE * free


class Batches:
    """step -> tuple of tensors, one item per row, for `training.loop.fit`.

    Args:
        tensors: items along the first dimension; images are (N, C, H, W) uint8.
        batch_size: items per batch; a smaller set is used whole.
        seed: decides the order.
        device: of the batches; the tensors are moved there once, or else each batch is read from
            them in advance by a thread (`is_resident`).
        augment: applied to the images of a batch, float32 in 0..1.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        seed: int,
        device: torch.device,
        augment: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        self.resident = is_resident(tensors, device)
        self.tensors = [tensor.to(device) if self.resident else tensor for tensor in tensors]
        self.batch_size, self.seed, self.device, self.augment = batch_size, seed, device, augment
        self.reader = ThreadPoolExecutor(1)
        self.ahead: dict[int, Future[list[Tensor]]] = {}

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        """The batch of a step; images come as float32 in 0..1, channels last in memory."""
        images, *rest = self._rows(step) if self.resident else self._transferred(step)
        images = self.augment(images.float().div_(255))
        return images.contiguous(memory_format=memory_format(self.device)), *rest

    def _rows(self, step: int) -> list[Tensor]:
        """The rows of a step, where the tensors are."""
        first = self.tensors[0]
        chosen = epoch_indices(len(first), self.batch_size, self.seed, step, first.device)
        return [tensor[chosen] for tensor in self.tensors]

    def _transferred(self, step: int) -> list[Tensor]:
        """The rows of a step on the device, with those of the next steps being read."""

        def read(step: int) -> list[Tensor]:
            pinned = self.device.type == "cuda"  # copied while the GPU computes
            return [rows.pin_memory() if pinned else rows for rows in self._rows(step)]

        steps = range(step, step + AHEAD + 1)
        self.ahead = {t: self.ahead.get(t) or self.reader.submit(read, t) for t in steps}
        return [rows.to(self.device, non_blocking=True) for rows in self.ahead[step].result()]


def to_float(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 -> float32 in 0..1, channels last in memory."""
    return images.to(memory_format=memory_format(images.device)).float().div_(255)


def resized(images: Tensor, side: int) -> Tensor:
    """Images (N, C, S, S) averaged down, or enlarged, to (N, C, side, side); floats in 0..1."""
    images = to_float(images) if images.dtype == torch.uint8 else images
    if images.shape[-1] == side:
        return images
    # Of half the side, bilinear interpolation is the same average, in a fifth of the time.
    mean = side < images.shape[-1] != 2 * side
    return F.interpolate(images, side, mode="area" if mean else "bilinear")


def memory_format(device: torch.device) -> torch.memory_format:
    """How images and weights lie in memory: channels last.

    Not on Apple's GPUs: there BatchNorm's gradients are then wrong (pytorch, issue 175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def float_chunks(rows: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Chunks of `CHUNK` rows on the device; images that are uint8 are converted by `to_float`."""
    for part in rows.split(CHUNK):
        chunk = part.to(device)
        yield to_float(chunk) if chunk.dtype == torch.uint8 else chunk


def random_flips(horizontal: bool, vertical: bool) -> Callable[[Tensor], Tensor]:
    """Mirror each image of a batch with probability 1/2 along the requested axes."""
    axes = [axis for axis, requested in ((3, horizontal), (2, vertical)) if requested]

    def flip(images: Tensor) -> Tensor:
        for axis in axes:
            chosen = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
        return images

    return flip


def prior_samples(count: int, latent_dim: int, seed: int) -> Tensor:
    """z ~ N(0, I): (count, latent_dim), the same for the same seed."""
    return torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(seed))
