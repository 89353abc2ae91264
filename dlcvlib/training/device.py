"""Where a method trains, and in which precision."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dlcvlib.training.method import Method
from dlcvlib.utils.process import cores


def setup() -> None:
    """Set what holds for the whole process: repeatable convolutions, exact float32, threads."""
    # A GPU's fastest convolutions add up in another order each time: no run could be repeated.
    torch.backends.cudnn.deterministic = True
    # Else a GPU would round the factors of "fp32" to ten bits.
    torch.backends.cudnn.allow_tf32 = False
    # torch counts a machine's processors, also where a container has a share of them.
    if cores() < torch.get_num_threads():
        torch.set_num_threads(cores())


def accelerator_for(precision: str) -> Accelerator:
    """An accelerator of a precision, "bf16" or "fp32", whatever an earlier run has used."""
    setup()
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


def precision_for(requested: str) -> tuple[str, str]:
    """The precision to train in, "bf16" or "fp32", and why.

    Args:
        requested: bf16, fp32, or auto: bfloat16 where the hardware has it.
    """
    if requested != "auto":
        return requested, "requested"
    if torch.accelerator.is_available():
        cuda = torch.cuda.is_available()
        has = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return ("bf16", "the hardware has bfloat16") if has else ("fp32", "no bfloat16 in hardware")


def prepare(method: Method, precision: str) -> Accelerator:
    """Move a method to the device, channels last, to train there in that precision."""
    accelerator = accelerator_for(precision)
    for name, network in method.named_children():
        network.to(accelerator.device, memory_format=torch.channels_last)
        # Not wrapped for several processes, whose gradients `method.update` averages: a wrapper
        # does not support two passes before one step, or a network that is frozen in one.
        setattr(method, name, accelerator.prepare_model(network.train(), evaluation_mode=True))
    return accelerator


def unwrap(method: Method, accelerator: Accelerator) -> None:
    """Undo `prepare`'s precision."""
    for name, network in method.named_children():
        setattr(method, name, accelerator.unwrap_model(network, keep_fp32_wrapper=False))
