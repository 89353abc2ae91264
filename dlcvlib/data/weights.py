"""Inception's weights, which a user may put into torch's cache."""

from pathlib import Path

import torch

INCEPTION = "inception_v3_google-0cc3c7bd.pth"
"""torchvision's name of the file."""


def inception_file() -> Path | None:
    """The weights in torch's cache, if they are there as safetensors."""
    file = (Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION).with_suffix(".safetensors")
    return file if file.is_file() else None
