"""Killed at any moment, repeatedly, a report ends as if it had not been killed."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time

import psutil
from conftest import ROOT, poll, start

from dlcvlib.report.cli import CHAPTERS
from dlcvlib.utils import storage

KILLS = 3
PROBLEMS = "1-2,2-2,3-2,4-1"
"""One per method; their output contains no times."""
STEPS = ("vae.steps", "gan.steps", "dann.steps", "pixelda.steps", "pixelda.adamatch_steps")
CUSTOM = """
import signal
from importlib.machinery import SourceFileLoader

# As on a terminal: a shell has what it starts in the background ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
load = SourceFileLoader.exec_module

def exec_module(self, module):
    load(self, module)
    if module.__name__ == "dlcvlib.training.loop":
        module.CHECKPOINT_SECONDS = 0.0

SourceFileLoader.exec_module = exec_module
"""
"""Python's `sitecustomize`, for a checkpoint at every opportunity, in kernels as well."""


def begin(base, *words):
    """Start the command line, with `CUSTOM` and a folder of runs."""
    (storage.make_dir(base / "site") / "sitecustomize.py").write_text(CUSTOM)
    words += "--profile=smoke", f"--runs-dir={base}/runs"
    return start("-m", "dlcvlib", *words, PYTHONPATH=f"{base}/site{os.pathsep}{ROOT}")


def run(base, after=None, in_training=False):
    """Run a report; its duration, or None if it was killed.

    SIGKILL to the process, its workers and its kernels at once, as in a power failure: after some
    seconds, or, `in_training`, once a checkpoint has been written.
    """
    words = [f"--only={PROBLEMS}", f"--out={base}/report"]
    words += [f"--set={name}=30" for name in STEPS]
    words += [f"--set={chapter}.precision=fp32" for chapter in CHAPTERS]  # no trial decides it
    before, started = checkpoints(base), time.monotonic()
    process = begin(base, "report", *words)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            said = process.communicate(timeout=0.05)
            assert process.returncode == 0, said
            return time.monotonic() - started
        written = checkpoints(base)
        late = after is not None and time.monotonic() - started > after
        if late or (in_training and written and written != before):
            top = psutil.Process(process.pid)
            for one in [top, *top.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.communicate()
            return None


def checkpoints(base):
    """The runs in training, and what their last checkpoints say."""
    return {path: storage.sealed(path) for path in base.glob("runs/*/checkpoint.json")}


def made(base):
    """All models, and results.json without its provenance."""
    results = json.loads((base / "report" / "results.json").read_text())
    models = (base / "runs").glob("*/model.safetensors")
    return results | {"provenance": {p.parent.name: storage.sha256(p) for p in models}}


def test_killed_at_random_moments(tmp_path):
    """`KILLS` times at random, whatever is happening, and as often in training.

    The times are spread evenly over a report's duration, in random order; once the report ends
    early, the remaining range is shorter.
    """
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    longest, resumed = run(whole), 0
    for moment in rng.sample(range(KILLS), KILLS):
        resumed += run(killed, in_training=True) is None
        longest = run(killed, (moment + rng.random()) / KILLS * longest) or longest
    assert resumed
    run(killed)
    assert made(killed) == made(whole)
    patterns = (f"{storage.TEMPORARY}*", "checkpoint*", "*.damaged", "*.failed.ipynb")
    assert [path for pattern in patterns for path in killed.rglob(pattern)] == []


def test_ctrl_c_says_where_it_stopped_and_how_to_continue(tmp_path):
    process = begin(tmp_path, "train", "vae", "--set=vae.steps=100000")
    poll(lambda: list(tmp_path.glob("runs/vae-*/checkpoint.json")), process)
    process.send_signal(signal.SIGINT)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 130
    (pointer,) = tmp_path.glob("runs/vae-*/checkpoint.json")
    saved = storage.read_sealed(pointer)["step"]
    stopped = re.search(r"vae stopped after step (\d+) of 100000; run it again to continue", output)
    assert saved <= int(stopped[1]) <= saved + 1
