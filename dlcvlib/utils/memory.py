"""How much memory is in use, and what the C library does with what was freed."""

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import psutil

# malloc.h's names of parameters.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGE_BLOCK = 1 << 20
"""Bytes."""
USUAL = {M_MMAP_MAX: 65_536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}
"""What glibc arrives at by itself where large blocks come and go."""
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}
"""No block by itself, which would go back when freed, and no unused end of the heap given back."""
TUNED = {"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}
"""Environment variables by which a user has decided it."""


@contextmanager
def kept_between_steps() -> Iterator[None]:
    """Have glibc keep what one training step frees for the next, unless the user has tuned it.

    By itself it gives some of that back each time and fetches it again: 90,000 page faults a step
    of the original's VAE, a fifth of its time. All that is unused goes back at the end.
    """
    if not _is_glibc() or TUNED & {*os.environ}:
        yield
        return
    _mallopt(KEEPING)
    try:
        yield
    finally:
        _mallopt(USUAL)
        ctypes.CDLL(None).malloc_trim(0)


def keep_no_large_blocks() -> None:
    """Have this process return large blocks of memory as soon as they are free.

    A notebook with many pictures is 10 MB of text, several times over while it is written. glibc
    would keep the space in this process, over 100 MB of it, for as long as notebooks run.
    """
    if _is_glibc():
        _mallopt({M_MMAP_THRESHOLD: LARGE_BLOCK})


def _mallopt(values: Mapping[int, int]) -> None:
    for parameter, value in values.items():
        ctypes.CDLL(None).mallopt(parameter, value)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


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
