"""What the C library does with freed memory; each in a process of its own, whose setting it is."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def printed(program, *arguments, **environment):
    """The number that a program prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", program, *arguments]
    return int(subprocess.check_output(command, text=True, env=clean | environment))


FREES = """
import sys, threading, psutil
from dlcvlib.utils import memory

def blocks():
    # From the first, freed at once, glibc learns that large blocks come and go, and keeps space.
    bytearray(30 << 20)
    texts = [bytearray(8 << 20) for _ in range(5)]
    kept.append([bytearray(5_000) for _ in range(20)])
    del texts

kept = []
if sys.argv[1] == "returned":
    memory.keep_no_large_blocks()
before = psutil.Process().memory_full_info().uss
thread = threading.Thread(target=blocks)
thread.start()
thread.join()
print(psutil.Process().memory_full_info().uss - before)
"""


@pytest.mark.parametrize(("way", "mb"), [("kept", (30, 80)), ("returned", (-5, 5))])
def test_large_blocks_are_returned(way, mb):
    assert mb[0] < printed(FREES, way) / 1e6 < mb[1]


STEPS = """
import ctypes, resource, sys, psutil, torch
from dlcvlib.utils import memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: a fault would be of 512 pages

def step():
    return [torch.ones(12 << 20) for _ in range(3)]  # 50 MB each

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def held():
    return psutil.Process().memory_full_info().uss

held_before = held()
with memory.kept_between_steps():
    for _ in range(5):
        step()
    faults_before = faults()
    for _ in range(20):
        step()
    of_steps = faults() - faults_before
print(of_steps if sys.argv[1] == "faults" else held() - held_before)
"""


def test_what_a_training_step_frees_is_kept():
    assert printed(STEPS, "faults") < 5_000


def test_unless_the_user_has_tuned_it():
    assert printed(STEPS, "faults", MALLOC_TRIM_THRESHOLD_="0") > 500_000  # 12,000 a block


def test_until_training_ends():
    assert printed(STEPS, "held") < 20e6
