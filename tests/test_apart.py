"""Processes apart: their results, their errors, their end."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from conftest import ROOT

import dlcvlib.utils.process
from dlcvlib.utils import stopwatch
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import cores, run_in_subprocess


def refuse(word):
    raise UserError(f"no {word}")


def spend():
    with stopwatch.timed("data"):
        pass


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def begin(path):
    path.open("w").close()  # waits until the other end of the pipe is opened
    while True:
        pass


def test_it_answers_from_another_process():
    assert run_in_subprocess("builtins:divmod", 7, 2) == (3, 1)
    assert run_in_subprocess("os:getpid") != os.getpid()


def test_its_errors_are_ours_and_say_where_they_come_from():
    with pytest.raises(UserError) as caught:
        run_in_subprocess("test_apart:refuse", "luck")
    assert str(caught.value) == "no luck"
    assert "in refuse" in caught.value.__notes__[0]


def test_its_time_counts_here(monkeypatch):
    monkeypatch.setattr(stopwatch, "_seconds", {"data": 100.0})
    run_in_subprocess("test_apart:spend")
    assert stopwatch.so_far()["data"] > 100.0


def test_its_death_is_told():
    with pytest.raises(UserError, match=r"'test_apart:die' ended with status -9"):
        run_in_subprocess("test_apart:die")


@pytest.fixture
def interruptible():
    """A shell's background jobs are started with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_us_alone_ends_it_too(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")

    def interrupt():
        pipe.open().close()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_in_subprocess("test_apart:begin", pipe)
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_it_ends_with_a_parent_that_is_killed(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    program = (
        "from pathlib import Path; from dlcvlib.utils.process import run_in_subprocess; "
        f"run_in_subprocess('test_apart:begin', Path({str(pipe)!r}))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as parent:
        pipe.open().close()  # until the work has begun
        started = psutil.Process(parent.pid).children()
        parent.kill()
    assert started
    assert not psutil.wait_procs(started, timeout=60)[1]


def test_the_reports_own_process_loads_nothing_large(tmp_path):
    """It is there for as long as the notebooks run; torch alone would take 400 MB."""
    program = (
        "import sys; from dlcvlib.report.cli import main; "
        f"assert main(['report', '--profile=smoke', '--only=1-2', '--out={tmp_path / 'report'}', "
        f"'--runs-dir={tmp_path / 'runs'}']) == 0; "
        "large = {'torch', 'pandas', 'PIL', 'matplotlib', 'nbconvert', 'typst'}; "
        "assert not large & set(sys.modules), large & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_chapters_do_without_torchvision():
    program = (
        "import sys; from dlcvlib import adaptation, dcgan, explore, features, gan_ablation; "
        "features.inception(); assert 'torchvision' not in sys.modules"
    )
    environment = os.environ | {"TORCH_HOME": "/nowhere"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), (None, 8)]
)
def test_cores_are_those_of_the_container(monkeypatch, tmp_path, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(dlcvlib.utils.process, "QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    assert cores() == expected
