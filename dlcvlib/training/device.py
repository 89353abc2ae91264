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
import time
from collections.abc import Callable

import joblib
import platformdirs
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from dlcvlib.training.method import Batch, Method
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

TRIAL_ROUNDS = 3
TRIAL_STEPS = 3
"""Steps per round and precision; the first is not timed."""


def setup() -> None:
    """Set up the whole process: deterministic convolutions, true float32, number of threads."""
    # A GPU's fastest convolutions sum in a different order each time: no run is reproducible.
    torch.backends.cudnn.deterministic = True
    # Otherwise a GPU would round the factors of "fp32" to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    # torch counts all of a machine's processors, even if a container may use only some.
    if joblib.cpu_count() < torch.get_num_threads():
        torch.set_num_threads(joblib.cpu_count())


def accelerator_for(precision: str) -> Accelerator:
    """An accelerator for a precision, "bf16" or "fp32", whichever an earlier run used."""
    setup()
    mixed = "bf16" if precision == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed)


def default() -> torch.device:
    """The device for everything: a GPU if there is one."""
    return accelerator_for("fp32").device


def name_of(device: torch.device) -> str:
    """A GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def prepare(method: Method, precision: str) -> Accelerator:
    """Move a method to the device, channels last, to train there in that precision."""
    accelerator = accelerator_for(precision)
    for name, network in method.named_children():
        network.to(accelerator.device, memory_format=torch.channels_last)
        # Not wrapped for several processes, whose gradients `method.update` averages: a wrapper
        # supports neither two passes before a step nor a network that is frozen in one.
        setattr(method, name, accelerator.prepare_model(network.train(), evaluation_mode=True))
    return accelerator


def unwrap(method: Method, accelerator: Accelerator) -> None:
    """Undo `prepare`'s precision."""
    for name, network in method.named_children():
        setattr(method, name, accelerator.unwrap_model(network, keep_fp32_wrapper=False))


def choose(method: Method, batch: Callable[[int], Batch]) -> tuple[str, str]:
    """The precision to train in, "bf16" or "fp32", and why.

    Args:
        method: with its initial weights, which are not changed; `settings.precision` is bf16,
            fp32 or auto.
        batch: step -> a batch.
    """
    if method.settings.precision != "auto":
        return method.settings.precision, "requested"
    if torch.accelerator.is_available():
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU supports it"
        return "fp32", "this accelerator has no bfloat16"
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "fp32", "this CPU has no bfloat16"
    if PartialState().num_processes > 1:
        # A trial's steps would wait for processes that are waiting for the trial.
        return "bf16", "this CPU supports it; no trial with several processes"
    gain = _gain(method, batch)
    if gain > 1:
        return "bf16", f"{gain:.2g} times as fast as fp32"
    return "fp32", f"{1 / gain:.2g} times as fast as bf16"


def _gain(method: Method, batch: Callable[[int], Batch]) -> float:
    """Speed of bf16 relative to fp32, measured now or earlier on this machine."""
    machine = {
        "host": platform.node(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **fingerprints.versions("torch"),
    }
    workload = {
        "method": type(method).__name__,
        "weights": [weight.shape for weight in method.state_dict().values()],
        "batch_size": method.settings.batch_size,
    }
    path = platformdirs.user_cache_path("dlcv-report") / (
        f"precision-{fingerprints.json_hash(machine | workload)[:16]}.json"
    )
    with contextlib.suppress(storage.DamagedFileError):
        return storage.read_sealed(path)["gain"]
    gain = _trial(method, batch)
    with contextlib.suppress(UserError):  # a full disk there must not stop training
        storage.write_sealed(path, machine | {"method": workload["method"], "gain": gain})
    return gain


@timed("trying precisions")
def _trial(method: Method, batch: Callable[[int], Batch]) -> float:
    """Speed of bf16 relative to fp32: median over rounds in which they alternate."""
    copies = {precision: copy.deepcopy(method) for precision in ("fp32", "bf16")}
    for precision, one in copies.items():
        prepare(one, precision)
    gains = []
    for _ in range(TRIAL_ROUNDS):
        seconds = {precision: _seconds(one, batch(0)) for precision, one in copies.items()}
        gains.append(seconds["fp32"] / seconds["bf16"])
    return statistics.median(gains)


def _seconds(method: Method, batch: Batch) -> float:
    method.training_step(batch)
    started = time.perf_counter()
    for _ in range(1, TRIAL_STEPS):
        method.training_step(batch)
    return time.perf_counter() - started
