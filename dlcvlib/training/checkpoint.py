"""Checkpoints: everything a run needs to continue as if it had never stopped.

checkpoint-<step>.safetensors   weights, optimisers' tensors, history
checkpoint.json                 names the current one and its content hash; written last
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlcvlib.training.method import Method, Progress
from dlcvlib.utils import storage


def save(folder: Path, method: Method, progress: Progress) -> None:
    """Write a checkpoint, then the pointer that makes it the current one."""
    tensors = {f"module.{name}": value for name, value in method.state_dict().items()}
    plain: dict[str, Any] = {}
    for name, optimizer in method.optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                target = tensors if isinstance(value, Tensor) else plain
                target[f"optimizer.{name}.{index}.{slot}"] = value
    pending = [{name: float(value) for name, value in row.items()} for row in progress.pending]
    meta = vars(progress) | {"pending": pending, "optimizer_values": plain}
    before = pointer(folder)
    path = folder / f"checkpoint-{progress.step}.safetensors"
    storage.write_tensors(path, tensors, meta)
    current = {"file": path.name, "sha256": storage.sha256(path), "step": progress.step}
    storage.write_sealed(folder / "checkpoint.json", current)
    if before and before["file"] != path.name:
        (folder / before["file"]).unlink(missing_ok=True)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and metadata of a run's current checkpoint, if there is one.

    A damaged checkpoint is reported and removed; the run then starts over.
    """
    if (current := pointer(folder)) is None:
        return None
    try:
        return storage.read_tensors(folder / current["file"], current["sha256"])
    except storage.DamagedFileError as error:
        print(f"{error}; restarting this run from the beginning")
        clear(folder)
        return None


def restore(tensors: dict[str, Tensor], meta: dict[str, Any], method: Method) -> Progress:
    """Put a method, on its device, into the state that `load` returned."""
    prefix = "module."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    method.load_state_dict(weights)
    values = tensors | meta.pop("optimizer_values")
    for name, optimizer in method.optimizers.items():
        state: dict[int, dict[str, Any]] = {}
        for key, value in values.items():
            if key.startswith(prefix := f"optimizer.{name}."):
                index, slot = key.removeprefix(prefix).split(".")
                state.setdefault(int(index), {})[slot] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        _match_layout(optimizer)
    progress = Progress(**meta)
    progress.precision = tuple(progress.precision)
    progress.pending = [{k: torch.tensor(v) for k, v in row.items()} for row in progress.pending]
    return progress


def pointer(folder: Path) -> dict[str, Any] | None:
    """The record of a run's current checkpoint: file, sha256, step."""
    path = folder / "checkpoint.json"
    if not path.is_file():
        return None
    try:
        return storage.read_sealed(path)
    except storage.DamagedFileError as error:
        print(f"{error}; restarting this run from the beginning")
        return None


def clear(folder: Path) -> None:
    """Remove a run's checkpoints, and temporary files that a killed process left."""
    for pattern in ("checkpoint-*.safetensors", "checkpoint.json"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    storage.sweep(folder)


def _match_layout(optimizer: Optimizer) -> None:
    """Give loaded moments the memory layout of their parameters.

    Files hold row-major tensors; fused optimisers iterate over memory, so that a moment laid out
    differently from its channels_last weight would be applied to the wrong elements.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter).copy_(value)
