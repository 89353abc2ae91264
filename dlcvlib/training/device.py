"""Where a method trains, and in which precision.

`precision: auto` is bfloat16 on a GPU that has it, and float32 where nothing has. A CPU that has it
multiplies large layers faster so, but small ones, or narrow ones, sometimes slower: there a short
trial of the method itself decides. Its outcome is kept for this machine, in the user's cache.
"""

import contextlib
import copy
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import platformdirs
import torch

# Before several processes make their group, which its default arguments would hold for good.
import torch.distributed.nn
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from dlcvlib.config.schema import TrainingSettings
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import cores
from dlcvlib.utils.stopwatch import timed

# A GPU's fastest convolutions add up in another order each time: no run could be repeated.
torch.backends.cudnn.deterministic = True
# Else a GPU would round the factors of "fp32" to ten bits.
torch.backends.cudnn.allow_tf32 = False
# torch counts a machine's processors, also where a container has a share of them.
if cores() < torch.get_num_threads():
    torch.set_num_threads(cores())

TRIAL_ROUNDS = 3
TRIAL_STEPS = 3
"""Of each round and precision; the first is not timed."""
CLEAR = 1.15
"""How many times as fast one precision must be, twice, for a third round to be needless."""


class Method(Protocol):
    """What is trained.

    Attributes:
        modules: name -> network; `prepare` moves them to the device.
        optimizers: name -> optimiser of their parameters. Made when first asked for: the first of a
            process makes torch load its compiler, seconds and 150 MB that a run from disk can do
            without.
        done: steps taken so far: what schedules depend on.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    done: int

    def step(self, batch: Any) -> dict[str, Tensor]: ...


def accelerator_for(precision: str) -> Accelerator:
    """An accelerator of a precision, "bf16" or "fp32", whatever an earlier run has used."""
    mixed = "bf16" if precision == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed)


def default() -> torch.device:
    """Where everything happens: a GPU if there is one."""
    return accelerator_for("fp32").device


def name_of(device: torch.device) -> str:
    """A GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def prepare(method: Method, precision: str) -> Accelerator:
    """Move a method's modules to the device, channels last, to train there in that precision."""
    accelerator = accelerator_for(precision)
    for name, module in method.modules.items():
        module.to(accelerator.device, memory_format=torch.channels_last)
        # Not wrapped for several processes, whose gradients `training.move` averages: a wrapper
        # bears neither two passes before one step nor a network that stands still in one.
        setattr(method, name, accelerator.prepare_model(module.train(), evaluation_mode=True))
    return accelerator


def choose(
    settings: TrainingSettings, method: Method, batch: Callable[[int], Any]
) -> tuple[str, str]:
    """The precision to train in, "bf16" or "fp32", and why, in words.

    Args:
        settings: precision "bf16", "fp32" or "auto"; the batch's size.
        method: in its initial state, which it keeps.
        batch: step -> a batch.
    """
    if settings.precision != "auto":
        return settings.precision, "asked for"
    if torch.cuda.is_available():
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "this GPU has it") if has else ("fp32", "this GPU has no bfloat16")
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "fp32", "this CPU has no bfloat16"
    if PartialState().num_processes > 1:
        # A trial's steps would wait for processes that wait for the trial.
        return "bf16", "this CPU has it; several processes try nothing"
    gain = _kept_gain(settings.batch_size, method, batch)
    if gain > 1:
        return "bf16", f"{gain:.2g} times as fast as fp32"
    return "fp32", f"{1 / gain:.2g} times as fast as bf16"


def _kept_gain(batch_size: int, method: Method, batch: Callable[[int], Any]) -> float:
    """What a trial on this machine has found, now or earlier."""
    weights = [w.shape for module in method.modules.values() for w in module.state_dict().values()]
    machine = {
        "host": platform.node(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **fingerprints.versions("torch"),
    }
    what = {"method": type(method).__name__, "weights": weights, "batch_size": batch_size}
    path = platformdirs.user_cache_path("dlcv-report") / (
        f"precision-{fingerprints.json_hash(machine | what)[:16]}.json"
    )
    try:
        storage.make_dir(path.parent)
    except UserError:
        return _gain(method, batch)  # it will be tried again the next time
    with storage.exclusive_lock(path.with_suffix(""), "tried"):
        with contextlib.suppress(storage.DamagedFileError):
            return storage.read_sealed(path)["gain"]
        gain = _gain(method, batch)
        with contextlib.suppress(UserError):  # a full disk there is no reason to train no more
            storage.write_sealed(path, machine | {"method": what["method"], "gain": gain})
        return gain


@timed("trying precisions")
def _gain(method: Method, batch: Callable[[int], Any]) -> float:
    """How many times as fast bf16 is as fp32: median of rounds in which they take turns."""
    copies = {precision: copy.deepcopy(method) for precision in ("fp32", "bf16")}
    for precision, one in copies.items():
        prepare(one, precision)
    gains = []
    for _ in range(TRIAL_ROUNDS):
        seconds = {precision: _seconds(one, batch(0)) for precision, one in copies.items()}
        gains.append(seconds["fp32"] / seconds["bf16"])
        if len(gains) > 1 and (min(gains) > CLEAR or max(gains) < 1 / CLEAR):
            break
    return statistics.median(gains)


def _seconds(method: Method, batch: Any) -> float:
    method.step(batch)
    started = time.perf_counter()
    for _ in range(1, TRIAL_STEPS):
        method.step(batch)
    return time.perf_counter() - started
