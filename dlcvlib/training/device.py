"""On which device a method trains, and in which precision.

`precision: auto` is bfloat16 on a GPU that supports it, and float32 where there is no support. On a
CPU that supports it, large layers are faster in bfloat16, but small or narrow ones are sometimes
slower; a short trial of the method itself decides. Its result is cached for this machine, in the
user's cache directory.
"""

import contextlib
import copy
import platform
import statistics
import timeit
from collections.abc import Callable

import joblib
import platformdirs
import torch
from accelerate import Accelerator, PartialState

from dlcvlib.training.method import Batch, Method
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

TRIAL_ROUNDS = 3
TRIAL_STEPS = 2
"""Steps per round and precision, after one that is not timed."""


def setup() -> None:
    """Set up the whole process: deterministic convolutions, true float32, number of threads."""
    # A GPU's fastest convolutions sum in a different order each time: no run is reproducible.
    torch.backends.cudnn.deterministic = True
    # Otherwise a GPU would round the factors of "fp32" to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    # torch counts all of a machine's processors, even if a container may use only some.
    if joblib.cpu_count() < torch.get_num_threads():
        torch.set_num_threads(joblib.cpu_count())


def default() -> torch.device:
    """The device for everything: a GPU if there is one."""
    setup()
    return PartialState().device


def name_of(device: torch.device) -> str:
    """A GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def prepare(method: Method, precision: str) -> None:
    """Have a method's networks, on their device, compute in a precision, "bf16" or "fp32"."""
    if precision == "bf16":
        accelerator = Accelerator(mixed_precision="bf16")
        for network in method.children():
            # Not wrapped for several processes, whose gradients `method.update` averages: a wrapper
            # supports neither two passes before a step nor a network that gets no gradient.
            accelerator.prepare_model(network, evaluation_mode=True)


def choose(method: Method, batch: Callable[[int], Batch]) -> tuple[str, str]:
    """The precision to train in, "bf16" or "fp32", and why.

    Args:
        method: on its device, with its initial weights, which are not changed;
            `settings.precision` is bf16, fp32 or auto.
        batch: step -> a batch.
    """
    if method.settings.precision != "auto":
        return method.settings.precision, "requested"
    on_cpu = not torch.accelerator.is_available()
    if not (_cpu_has_bf16() if on_cpu else _gpu_has_bf16()):
        return "fp32", "no support for bf16"
    # With several processes, a trial's steps would wait for those that are waiting for the trial.
    if not on_cpu or PartialState().num_processes > 1:
        return "bf16", "supported"
    gain = _gain(method, batch)
    return "bf16" if gain > 1 else "fp32", f"bf16 is {gain:.2g} times as fast as fp32"


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _gain(method: Method, batch: Callable[[int], Batch]) -> float:
    """Speed of bf16 relative to fp32, measured now or earlier on this machine."""
    workload = {
        "host": platform.node(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **fingerprints.versions("torch"),
        "method": type(method).__name__,
        "weights": [weight.shape for weight in method.state_dict().values()],
        "batch_size": method.settings.batch_size,
    }
    name = f"precision-{fingerprints.json_hash(workload)[:16]}.json"
    path = platformdirs.user_cache_path("dlcv-report") / name
    if known := storage.sealed(path):
        return known["gain"]
    gain = _trial(method, batch)
    with contextlib.suppress(UserError):  # a full disk there must not stop training
        storage.write_sealed(path, workload | {"gain": gain})
    return gain


@timed("trying precisions")
def _trial(method: Method, batch: Callable[[int], Batch]) -> float:
    """Speed of bf16 relative to fp32: median over rounds in which they alternate."""
    fp32, bf16 = copy.deepcopy(method), copy.deepcopy(method)
    prepare(bf16, "bf16")
    gains = [_seconds(fp32, batch(0)) / _seconds(bf16, batch(0)) for _ in range(TRIAL_ROUNDS)]
    return statistics.median(gains)


def _seconds(method: Method, batch: Batch) -> float:
    method.training_step(batch)
    return timeit.timeit(lambda: method.training_step(batch), number=TRIAL_STEPS)
