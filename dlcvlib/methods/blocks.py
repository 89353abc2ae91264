"""Convolutional blocks that the networks of several methods consist of."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn


def halving(channels: Sequence[int]) -> list[nn.Module]:
    """Conv + BatchNorm + ReLU + MaxPool blocks, from an image's three channels on."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in itertools.pairwise((3, *channels)):
        layers += [
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.MaxPool2d(2),  # before ReLU: the same result, on a quarter of the values
            nn.ReLU(),
        ]
    return layers


def stem(
    latent_dim: int, channels: int, side: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """A linear layer from a latent vector to feature maps (N, channels, side, side)."""
    return nn.Sequential(
        nn.Linear(latent_dim, channels * side**2, bias=False),
        nn.BatchNorm1d(channels * side**2),
        activation(),
        nn.Unflatten(1, (channels, side, side)),
    )


def doubling(
    channels: Sequence[int], kernel: int, activation: Callable[[], nn.Module]
) -> list[nn.Module]:
    """ConvTranspose + BatchNorm + activation blocks, then a ConvTranspose to three channels.

    Args:
        channels: inputs of the transposed convolutions; each doubles the side.
        kernel: their side, 2 (adjacent patches) or more (overlapping ones).
        activation: makes the activation of a block.
    """
    padding = {"padding": (kernel - 1) // 2, "output_padding": kernel % 2}
    upsample = partial(nn.ConvTranspose2d, kernel_size=kernel, stride=2, **padding)
    layers: list[nn.Module] = []
    for in_channels, out_channels in itertools.pairwise(channels):
        convolution = upsample(in_channels, out_channels, bias=False)
        layers += [convolution, nn.BatchNorm2d(out_channels), activation()]
    return [*layers, upsample(channels[-1], 3)]
