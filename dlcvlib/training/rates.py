"""How long a step of training takes here, for an estimate of what runs cost before they begin."""

import time
import timeit
from typing import Any

import torch

from dlcvlib.training import device
from dlcvlib.training.method import Method
from dlcvlib.training.runs import Data, _create

STEPS = 3
"""Timed steps, after one that is not."""
_measured: dict[str, float] = {}
"""By networks, batches and precision."""


def seconds_per_step(kind: type[Method], settings: Any, data: Data) -> float:
    """Seconds of a training step on this machine, measured once; validation is not in it.

    On a CPU, `precision: auto` is taken for fp32, since the choice takes many steps.
    """
    method = _create(kind, settings)
    shapes = [tuple(weight.shape) for weight in method.state_dict().values()]
    workload = f"{kind.__name__} {shapes} {settings.batch_size} {settings.precision}"
    if workload not in _measured:
        _measured[workload] = _measure(method, data)
    return _measured[workload]


def _measure(method: Method, data: Data) -> float:
    batch = method.batches(data, method.device)
    if method.settings.precision != "auto" or torch.accelerator.is_available():
        device.prepare(method, device.choose(method, batch)[0])
    method.training_step(batch(0))
    return timeit.timeit(lambda: method.training_step(batch(1)), timer=_now, number=STEPS) / STEPS


def _now() -> float:
    """The time by which all work that was given to a GPU has ended."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.monotonic()
