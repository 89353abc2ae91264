"""Killed at any moment, repeatedly, a report ends as if it had not been killed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
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


class Report:
    """A report that saves checkpoints at every opportunity."""

    def __init__(self, base):
        self.base = base
        startup = base / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True, exist_ok=True)
        (startup / "often.py").write_text(
            "from dlcvlib.training import loop\nloop.CHECKPOINT_SECONDS = 0.0\n"
        )

    def start(self):
        assignments = [f"--set={name}={value}" for name, value in SETTINGS.items()]
        arguments = ["--profile", "smoke", "--only", PROBLEMS, *assignments]
        folders = ["--out", str(self.base / "report"), "--runs-dir", str(self.base / "runs")]
        return subprocess.Popen(
            [sys.executable, "-m", "dlcvlib", "report", *arguments, *folders],
            cwd=ROOT,
            env=os.environ | {"IPYTHONDIR": str(self.base / "ipython"), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def models(self):
        return {
            path.parent.name: storage.sha256(path)
            for path in (self.base / "runs").glob("*/model.safetensors")
        }

    def results(self):
        found = json.loads((self.base / "report" / "results.json").read_text())
        found.pop("provenance")
        return found


def kill(process):
    """SIGKILL to the process, its workers and its kernels at once, as in a power failure."""
    top = psutil.Process(process.pid)
    for one in [top, *top.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted report."""
    report = Report(tmp_path_factory.mktemp("whole"))
    started = time.monotonic()
    process = report.start()
    output, _ = process.communicate()
    report.seconds = time.monotonic() - started
    assert process.returncode == 0, output
    return report


def test_killed_at_random_moments(whole, tmp_path):
    """`KILLS` times, at random times independent of what is happening.

    The times are spread evenly over a report's duration, in random order; once the report ends
    early, the remaining range is shorter.
    """
    report, rng = Report(tmp_path), random.Random(0)
    moments, longest = rng.sample(range(KILLS), KILLS), whole.seconds
    while True:
        process, started = report.start(), time.monotonic()
        moment = (moments[-1] + rng.random()) / KILLS * longest if moments else None
        try:
            output, _ = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            kill(process)
            moments.pop()
            continue
        assert process.returncode == 0, output
        if not moments:
            break
        longest = time.monotonic() - started
    assert report.models() == whole.models()
    assert report.results() == whole.results()
    leftovers = [
        path
        for pattern in (f"{storage.TEMPORARY}*", "checkpoint*", "*.damaged", "*.failed.ipynb")
        for path in tmp_path.rglob(pattern)
    ]
    assert leftovers == []


def test_ctrl_c_says_where_it_stopped_and_how_to_continue(tmp_path):
    arguments = ["train", "vae", "--profile", "smoke", "--set", "vae.steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dlcvlib", *arguments, "--runs-dir", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The bar of the training appears when interrupts are held back until a step is whole.
    assert any("vae:" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "vae stopped after step " in error
    assert "run it again to continue from there" in error
    (folder,) = tmp_path.glob("vae-*/")
    pointer = storage.read_sealed(folder / "checkpoint.json")
    assert f"stopped after step {pointer['step']} of 100000" in error
