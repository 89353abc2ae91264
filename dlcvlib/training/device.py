"""On which device a method trains, in which precision, and with which kernels.

`precision: auto` is bfloat16 on a GPU that supports it, and float32 where there is no support. On a
CPU that supports it, large layers are faster in bfloat16, but small or narrow ones are sometimes
slower; a short trial of the method itself decides. Its result is cached for this machine, in the
user's cache directory. "tf32" is float32 whose products a GPU rounds to 10 bits.
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
from dlcvlib.training.processes import synchronise
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

COMPILED_STEPS = 20_000
TRIAL_ROUNDS = 3
TRIAL_STEPS = 2
"""Steps per round and precision, after one that is not timed."""


def setup() -> None:
    """Set up the whole process: deterministic convolutions, true float32, number of threads."""
    choose_kernels(deterministic=True, tf32=False)
    # torch counts all of a machine's processors, even if a container may use only some.
    if joblib.cpu_count() < torch.get_num_threads():
        torch.set_num_threads(joblib.cpu_count())


def _several() -> bool:
    return PartialState().num_processes > 1


def choose_kernels(deterministic: bool, tf32: bool) -> None:
    """Set a GPU's kernels, for the whole process, until the next `setup`."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    # A GPU's fastest convolutions sum in a different order each time: no run is reproducible.
    cudnn.deterministic, cudnn.benchmark = deterministic, not deterministic
    cudnn.allow_tf32 = products.allow_tf32 = tf32


def default() -> torch.device:
    """The device for everything: a GPU if there is one."""
    setup()
    return PartialState().device


def name_of(device: torch.device) -> str:
    """A GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def prepare(method: Method, precision: str) -> None:
    """Have a method's networks, on their device, compute in a precision that `choose` returned."""
    settings = method.settings
    choose_kernels(settings.deterministic, precision == "tf32")
    on_gpus = method.device.type == "cuda" and _several()
    if on_gpus and settings.sync_batch_norm and not method.second_derivatives:
        synchronise(method)
    if precision == "bf16":
        accelerator = Accelerator(mixed_precision="bf16")
        for network in method.children():
            # Not wrapped for several processes, whose gradients `method.update` averages: a wrapper
            # supports neither two passes before a step nor a network that gets no gradient.
            accelerator.prepare_model(network, evaluation_mode=True)


def compiling(method: Method) -> str:
    """How `compile_networks` compiles a method's networks, as a mode of torch.compile; "": not.

    "auto" compiles on an NVIDIA GPU, in a single process, in runs of `COMPILED_STEPS` at least,
    which save more than the minutes that compiling takes. On a CPU it was slower: VAE and DANN of
    profile quick had .93 of their speed.
    """
    wanted, on_gpu = method.settings.compile, method.device.type == "cuda"
    if wanted == "auto":
        pays = on_gpu and method.settings.steps >= COMPILED_STEPS and not _several()
        wanted = "always" if pays else "never"
    if method.second_derivatives or wanted == "never":
        return ""
    # The former with CUDA graphs.
    return "reduce-overhead" if on_gpu and not method.swaps_buffers else "default"


def compile_networks(method: Method) -> None:
    """Compile a method's networks in place, at their first call: names of weights stay."""
    if mode := compiling(method):
        for network in method.children():
            network.compile(mode=mode, dynamic=False)


def choose(method: Method, batch: Callable[[int], Batch]) -> tuple[str, str]:
    """The precision to train in, "bf16", "tf32" or "fp32", and why.

    Args:
        method: on its device, with its initial weights, which are not changed;
            `settings.precision` is one of these or auto.
        batch: step -> a batch.
    """
    requested = method.settings.precision
    if requested == "tf32" and not _gpu_has_tf32():
        return "fp32", "no support for tf32"
    if requested != "auto":
        return requested, "requested"
    on_cpu = not torch.accelerator.is_available()
    if not (_cpu_has_bf16() if on_cpu else _gpu_has_bf16()):
        return "fp32", "no support for bf16"
    # With several processes, a trial's steps would wait for those that are waiting for the trial.
    if not on_cpu or _several():
        return "bf16", "supported"
    gain = _gain(method, batch)
    return "bf16" if gain > 1 else "fp32", f"bf16 is {gain:.2g} times as fast as fp32"


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _gpu_has_tf32() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_tf32_supported()


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
