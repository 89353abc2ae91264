"""Killed at any moment, repeatedly, a report ends as if it had not been killed."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import psutil
from conftest import ROOT

from dlcvlib.utils import storage

KILLS = 12
PROBLEMS = "1-2,2-2,3-2,4-1"
"""One per method; their output contains no times."""
SETTINGS = {
    "vae.steps": 40,
    "vae.precision": "fp32",
    "gan.steps": 24,
    "dann.steps": 40,
    "pixelda.steps": 24,
    "pixelda.adamatch_steps": 24,
}


OFTEN = "from dlcvlib.training import loop; loop.CHECKPOINT_SECONDS = 0.0\n"
"""A checkpoint at every opportunity."""


class Report:
    def __init__(self, base):
        self.base, startup = base, base / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "often.py").write_text(OFTEN)

    def start(self):
        words = ["report", "--profile=smoke", f"--only={PROBLEMS}"]
        words += [f"--set={name}={value}" for name, value in SETTINGS.items()]
        words += [f"--out={self.base / 'report'}", f"--runs-dir={self.base / 'runs'}"]
        environment = {"IPYTHONDIR": str(self.base / "ipython"), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", "dlcvlib", *words],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self):
        process, started = self.start(), time.monotonic()
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return time.monotonic() - started

    def made(self):
        """All models, and results.json without its provenance."""
        results = json.loads((self.base / "report" / "results.json").read_text())
        models = (self.base / "runs").glob("*/model.safetensors")
        return results | {"provenance": {p.parent.name: storage.sha256(p) for p in models}}


def kill(process):
    """SIGKILL to the process, its workers and its kernels at once, as in a power failure."""
    top = psutil.Process(process.pid)
    for one in [top, *top.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


def test_killed_at_random_moments(tmp_path):
    """`KILLS` times, at random times independent of what is happening.

    The times are spread evenly over a report's duration, in random order; once the report ends
    early, the remaining range is shorter.
    """
    whole, report, rng = Report(tmp_path / "whole"), Report(tmp_path / "killed"), random.Random(0)
    longest = whole.finish()
    for moment in rng.sample(range(KILLS), KILLS):
        process, started = report.start(), time.monotonic()
        try:
            output, _ = process.communicate(timeout=(moment + rng.random()) / KILLS * longest)
            assert process.returncode == 0, output
            longest = time.monotonic() - started
        except subprocess.TimeoutExpired:
            kill(process)
    report.finish()
    assert report.made() == whole.made()
    patterns = (f"{storage.TEMPORARY}*", "checkpoint*", "*.damaged", "*.failed.ipynb")
    assert [path for pattern in patterns for path in report.base.rglob(pattern)] == []


def test_ctrl_c_says_where_it_stopped_and_how_to_continue(tmp_path):
    words = ["train", "vae", "--profile=smoke", "--set=vae.steps=100000", f"--runs-dir={tmp_path}"]
    # As on a terminal: a shell has what it starts in the background ignore interrupts.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += f"from dlcvlib.report.cli import main; {OFTEN}sys.exit(main({words}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("vae-*/checkpoint.json")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    (pointer,) = tmp_path.glob("vae-*/checkpoint.json")
    saved = storage.read_sealed(pointer)["step"]
    stopped = re.search(r"vae stopped after step (\d+) of 100000; run it again to continue", error)
    assert saved <= int(stopped[1]) <= saved + 1
