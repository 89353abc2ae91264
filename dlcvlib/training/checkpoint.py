"""Checkpoints: everything a run needs to continue as if it had never stopped.

checkpoint-<step>.safetensors   weights, optimisers' tensors, history
checkpoint.json                 names the current one and its content hash; written last
"""

from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from dlcvlib.training.method import Method, Progress, weights_of
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError


def save(folder: Path, method: Method, progress: Progress) -> None:
    """Write a checkpoint, then the pointer that makes it the current one."""
    tensors = {"pending": torch.stack(progress.pending) if progress.pending else torch.empty(0)}
    tensors |= {f"module.{name}": value for name, value in method.state_dict().items()}
    for name, optimizer in method.optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{slot}": slots[slot] for slot in slots}
    path = folder / f"checkpoint-{progress.step}.safetensors"
    storage.write_tensors(path, tensors, vars(progress) | {"pending": []})
    current = {"file": path.name, "sha256": storage.sha256(path), "step": progress.step}
    storage.write_sealed(folder / "checkpoint.json", current)
    for other in {*folder.glob("checkpoint-*.safetensors")} - {path}:
        other.unlink()


def restore(folder: Path, method: Method) -> Progress | None:
    """Put a method, on its device, into the state of a run's current checkpoint, if there is one.

    A damaged checkpoint is reported and removed; the run then starts over.

    Raises:
        UserError: if it was written with another number of processes, on which its BatchNorm
            depends.
    """
    pointer = folder / "checkpoint.json"
    if not pointer.is_file():
        return None
    try:
        current = storage.read_sealed(pointer)
        tensors, meta = storage.read_tensors(folder / current["file"], current["sha256"])
    except storage.DamagedFileError as error:
        print(f"{error}; restarting this run from the beginning")
        clear(folder)
        return None
    progress = Progress(**meta)
    processes = PartialState().num_processes
    if progress.processes != processes and not method.settings.sync_batch_norm:
        raise UserError(
            f"{folder} was started with {progress.processes} processes, and without "
            "sync_batch_norm their number matters: continue with the same, or remove it"
        )
    progress.processes = processes
    progress.pending = list(tensors["pending"].to(method.device))
    method.load_state_dict(_part(tensors, "module."))
    for name, optimizer in method.optimizers.items():
        weights = weights_of(optimizer)
        for key, value in _part(tensors, f"optimizer.{name}.").items():
            index, slot = key.split(".")
            weight = weights[int(index)]
            # Fused optimisers iterate over memory: a moment must be laid out like its weight,
            # channels last, while files hold row-major tensors.
            like = weight if value.shape == weight.shape else value
            optimizer.state[weight][slot] = torch.empty_like(like, device=weight.device).copy_(
                value
            )
    return progress


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def save_snapshot(folder: Path, method: Method) -> None:
    """Save the networks that `method.snapshots` names, as of its step.

    In half precision, which is enough for sample images.
    """
    tensors = {
        name: value.half()
        for name, value in method.state_dict().items()
        if name.split(".")[0] in method.snapshots and value.is_floating_point()
    }
    if tensors:
        path = folder / f"snapshot-{method.step:07}.safetensors"
        storage.write_tensors(path, tensors, {"step": method.step})


def clear(folder: Path) -> None:
    """Remove a run's checkpoints, and temporary files that a killed process left."""
    for path in [folder / "checkpoint.json", *folder.glob("checkpoint-*.safetensors")]:
        path.unlink(missing_ok=True)
    storage.sweep(folder)
