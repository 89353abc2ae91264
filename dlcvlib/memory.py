"""How much memory is in use, and what the C library does with what was freed."""

import ctypes
import os
import platform
from contextlib import suppress

import psutil

# malloc.h's names of parameters.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE_BLOCK = 1 << 20
"""Bytes."""
KEPT_BLOCK, KEPT_SPACE = 32 << 20, 64 << 20
"""Bytes: what is larger than a tensor of a training step goes back when freed; so does the unused
end of the heap once it is longer than a step's."""


def keep_what_a_step_frees() -> None:
    """Have glibc keep what one training step frees for the next, unless the user has tuned it.

    By itself it gives some of that back each time and fetches it again, which takes PixelDA
    thousands of page faults a step.
    """
    if not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & {*os.environ}:
        _mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK)
        _mallopt(M_TRIM_THRESHOLD, KEPT_SPACE)


def keep_no_large_blocks() -> None:
    """Have this process return large blocks of memory as soon as they are free.

    A notebook with many pictures is 10 MB of text, several times over while it is written. glibc
    would keep the space in this process, over 100 MB of it, for as long as notebooks run.
    """
    _mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _mallopt(parameter: int, value: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(parameter, value)


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, by default this one, and of all that it has started.

    On Linux a page that several of them share counts once; elsewhere, for each.
    """
    total = 0
    with suppress(psutil.Error):  # it may have ended
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                memory = one.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
    return total
