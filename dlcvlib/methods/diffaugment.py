"""Differentiable augmentation: random changes to D's input, real and generated alike.

References:
    [1] Zhao et al.: Differentiable Augmentation. NeurIPS 2020. arXiv:2006.10738
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, policy: Sequence[str]) -> Tensor:
    """Random changes, independent per image, through which gradients pass ([1], section 3.2).

    Args:
        images: (N, 3, H, W) in -1..1.
        policy: of "color" (brightness, saturation, contrast), "translation" (by up to 1/8, padded
            with zeros) and "cutout" (a square of half the side set to zero).
    """
    for name in policy:
        images = POLICIES[name](images)
    return images


def _color(images: Tensor) -> Tensor:
    count, device = len(images), images.device
    brightness, saturation, contrast = (torch.rand(count, 1, 1, 1, device=device) for _ in range(3))
    images = images + brightness - 0.5
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * 2 * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def _translation(images: Tensor) -> Tensor:
    count, _, height, width = images.shape
    reach = height // 8, width // 8
    down, right = (torch.randint(-r, r + 1, (count, 1, 1), device=images.device) + r for r in reach)
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    rows = torch.arange(height, device=images.device)[None, :, None] + down
    columns = torch.arange(width, device=images.device)[None, None, :] + right
    index = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2)


def _cutout(images: Tensor) -> Tensor:
    count, _, height, width = images.shape

    def hidden(size: int) -> Tensor:
        """Which of `size` rows or columns each image's hole covers: (N, size)."""
        length = size // 2
        start = torch.randint(0, size + 1, (count, 1), device=images.device) - length // 2
        offset = torch.arange(size, device=images.device)[None] - start
        return (offset >= 0) & (offset < length)

    hole = hidden(height)[:, None, :, None] & hidden(width)[:, None, None, :]
    return images.masked_fill(hole, 0.0)


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}
