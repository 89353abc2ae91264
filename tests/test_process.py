"""Subprocesses: results, errors and end; what they load; how they use memory."""

import os
import platform
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter

import psutil
import pytest
from conftest import ROOT

from dlcvlib.report import execute
from dlcvlib.utils import stopwatch
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import resident_bytes, run_in_subprocess


def test_it_answers_from_another_process(monkeypatch):
    monkeypatch.setattr(stopwatch, "_seconds", Counter({"data": 100.0}))
    assert run_in_subprocess("builtins:divmod", 7, 2) == (3, 1)
    assert run_in_subprocess("os:getpid") != os.getpid()
    run_in_subprocess("work:spend")
    assert stopwatch.so_far()["data"] > 100.0


def test_errors_are_passed_on_with_their_origin():
    with pytest.raises(UserError) as caught:
        run_in_subprocess("work:refuse", "luck")
    assert str(caught.value) == "no luck"
    assert "in refuse" in str(caught.value.__cause__)


def test_its_death_is_reported():
    with pytest.raises(UserError, match=r"'work:die' ended without an answer"):
        run_in_subprocess("work:die")


@pytest.fixture
def interruptible():
    """A shell's background jobs are started with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_this_process_alone_ends_it_too(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")

    def interrupt():
        pipe.open().close()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_in_subprocess("work:begin", pipe)
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_it_ends_with_a_parent_that_is_killed(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    program = (
        "from pathlib import Path; from dlcvlib.utils.process import run_in_subprocess; "
        f"run_in_subprocess('work:begin', Path({str(pipe)!r}))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as parent:
        pipe.open().close()  # until the work has begun
        started = psutil.Process(parent.pid).children()
        parent.kill()
    assert started
    assert not psutil.wait_procs(started, timeout=60)[1]


def test_chapters_do_not_load_torchvision():
    program = (
        "import sys; from dlcvlib.evaluation import features; from dlcvlib.methods import dcgan; "
        "features.inception(); assert 'torchvision' not in sys.modules"
    )
    environment = os.environ | {"TORCH_HOME": "/nowhere", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


# --- memory -----------------------------------------------------------------------------------

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
STEPS = """
import ctypes, resource

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: a fault would be of 512 pages
for step in range(25):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [b"x" * (50 << 20) for _ in range(3)]  # 12,800 pages each
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@glibc
@pytest.mark.parametrize(
    ("tuned", "faults"),
    [({}, range(5_000)), ({"MALLOC_TRIM_THRESHOLD_": "0"}, range(500_000, 10**7))],
    ids=["kept", "unless the user has tuned it"],
)
def test_kernels_keep_what_a_training_step_frees(monkeypatch, tmp_path, tuned, faults):
    for name in execute.TUNED:
        monkeypatch.delenv(name, raising=False)
    for name, value in tuned.items():
        monkeypatch.setenv(name, value)
    environment = execute.kernel_environment(1, str(tmp_path))
    counted = subprocess.check_output([sys.executable, "-c", STEPS], text=True, env=environment)
    assert int(counted) in faults


def test_resident_memory_covers_all_processes():
    own = resident_bytes()
    assert 0.5 < own / (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) < 1.5
    program = "block = bytearray(10**8); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as child:
        child.stdout.readline()
        assert resident_bytes() > own + 9e7
        assert 1e8 < resident_bytes(child.pid) < 2e8
        child.communicate(b"\n")
    assert resident_bytes(child.pid) == 0
