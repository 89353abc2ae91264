"""How long a step of training takes here, for an estimate of what runs cost before they begin."""

import platform
import time
from contextlib import suppress
from typing import Any

import platformdirs
import torch

from dlcvlib.training import device
from dlcvlib.training.method import Method
from dlcvlib.training.runs import Data, _create
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError

STEPS, ENOUGH = 3, 2.0
"""Timed steps, after one that is not, or their seconds."""


def seconds_per_step(kind: type[Method], settings: Any, data: Data) -> float:
    """Seconds of a training step on this machine, measured now or earlier; validation is not in it.

    On a CPU, `precision: auto` is taken for fp32, since the choice takes many steps. The result is
    cached, for networks, batches and a precision like these, in the user's cache directory.
    """
    method = _create(kind, settings)
    workload = {
        "host": platform.node(),
        "device": device.name_of(method.device),
        "threads": torch.get_num_threads(),
        **fingerprints.versions("torch"),
        "method": kind.__name__,
        "weights": [weight.shape for weight in method.state_dict().values()],
        "batch_size": settings.batch_size,
        "precision": settings.precision,
    }
    name = f"rate-{fingerprints.json_hash(workload)[:16]}.json"
    path = platformdirs.user_cache_path("dlcv-report") / name
    if known := storage.sealed(path):
        return known["seconds"]
    batch = method.batches(data, method.device)
    if settings.precision != "auto" or torch.accelerator.is_available():
        device.prepare(method, device.choose(method, batch)[0])
    method.training_step(batch(0))
    begun = _now()
    while method.step < STEPS and _now() - begun < ENOUGH:
        method.step += 1
        method.training_step(batch(method.step))
    seconds = (_now() - begun) / method.step
    with suppress(UserError):  # a full disk there must not stop the estimate
        storage.write_sealed(path, workload | {"seconds": seconds})
    return seconds


def _now() -> float:
    """The time by which all work that was given to a GPU has ended."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.monotonic()
