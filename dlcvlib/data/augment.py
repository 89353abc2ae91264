"""Random augmentation of whole batches of digits on the device, independent per image.

References:
    [1] French et al.: Self-ensembling for Visual Domain Adaptation. ICLR 2018. arXiv:1706.05208
        (affine and intensity augmentation, inversion among it, for digits)
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATION = math.radians(10)
SCALE = 0.15
SHIFT = 2 / 32
SHEAR = 0.15


def unchanged(images: Tensor) -> Tensor:
    """The images as they are."""
    return images


def geometric(images: Tensor) -> Tensor:
    """Small random rotation, scaling, shear and shift, as one affine grid; the shape stays.

    Pixels from outside the image repeat its edge.
    """
    count, device = len(images), images.device

    def uniform(reach: float) -> Tensor:
        return torch.empty(count, device=device).uniform_(-reach, reach)

    angle, shear = uniform(ROTATION), uniform(SHEAR)
    across, down = 1 + uniform(SCALE), 1 + uniform(SCALE)
    # In units of half a side: a shift of 1 would move the image by half its width.
    rows = [
        torch.stack([across * angle.cos(), shear - angle.sin(), uniform(2 * SHIFT)], 1),
        torch.stack([shear + angle.sin(), down * angle.cos(), uniform(2 * SHIFT)], 1),
    ]
    # The same as `affine_grid` of these rows, as one matrix product, which takes half the time.
    grid = torch.stack(rows, 1).flatten(0, 1) @ _points(*images.shape[2:], device)
    grid = grid.view(count, 2, *images.shape[2:]).permute(0, 2, 3, 1)
    if images.is_cpu:
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return sample(images, grid)


def sample(images: Tensor, grid: Tensor) -> Tensor:
    """`F.grid_sample` with edges repeated, as products: (N, C, H, W), (N, H, W, 2) -> (N, C, H, W).

    A GPU sums that function's gradient in a different order each time: no run is reproducible.
    """
    weights = []
    for place, size in zip(grid.flatten(1, 2).unbind(2), images.shape[:1:-1], strict=True):
        pixel = ((place + 1) * size / 2 - 0.5).clamp(0, size - 1)
        distance = pixel[..., None] - torch.arange(size, device=images.device)
        weights.append((1 - distance.abs()).clamp_min(0))  # of the two nearest columns, or rows
    return torch.einsum("nchw,npw,nph->ncp", images, *weights).view_as(images)


@functools.cache
def _points(height: int, width: int, device: torch.device) -> Tensor:
    """Positions of an image's pixels in -1..1, each as (x, y, 1): (3, height * width)."""
    y, x = (torch.arange(0.5, size, device=device) * 2 / size - 1 for size in (height, width))
    down, across = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([across, down, torch.ones_like(down)]).flatten(1)


def photometric(images: Tensor) -> Tensor:
    """Random inversion, contrast, brightness, colour shifts and noise ([1]).

    Args:
        images: (N, 3, H, W) in 0..1.

    Returns:
        Images of the same shape and range.
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(count, channels, 1, 1, device=device).uniform_(low, high)

    # One image in four has a single channel inverted, such as blue ink on yellow.
    channels = torch.arange(3, device=device).view(3, 1, 1)
    odd = channels == torch.randint(12, (count, 1, 1, 1), device=device)
    inverted = (uniform(0, 1) < 0.5) ^ odd
    # Inversion, contrast and brightness are one factor and one offset per channel and image.
    images = images.contiguous()  # like the noise: mixed memory layouts are many times slower
    mean = images.mean((2, 3), keepdim=True)
    factor = torch.where(inverted, -1.0, 1.0) * uniform(0.5, 1.3) * uniform(0.7, 1.3, 3)
    level = torch.where(inverted, 1 - mean, mean) + uniform(-0.3, 0.3) + uniform(-0.2, 0.2, 3)
    changed = torch.addcmul(level - factor * mean, factor, images)
    noisy = torch.addcmul(changed, uniform(0, 0.1), torch.randn(images.shape, device=device))
    return noisy.clamp(0, 1)


def strong(images: Tensor) -> Tensor:
    """First `geometric`, then `photometric`."""
    return photometric(geometric(images))


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": unchanged,
    "geometric": geometric,
    "strong": strong,
}
