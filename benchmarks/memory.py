"""Memory: over a training run, and while a set as large as CelebA is prepared."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import torch
from matplotlib import pyplot as plt

from benchmarks.contenders import contenders, train
from dlcvlib.plots.images import to_png
from dlcvlib.utils.process import run_in_subprocess

EARLY, LATE = 200, 2_000
CELEBA = 162_770
"""Training images of CelebA."""
LINKS = 10_000
"""Hard links per file; file systems allow some tens of thousands."""
PREPARE = """
import sys
from dlcvlib.config import profiles
from dlcvlib.data.faces import load_faces
print("loaded", flush=True)
sys.stdin.readline()
changes = {"data": f"folder:{sys.argv[1]}", "runs_dir": sys.argv[1], "validation_size": 10}
load_faces(profiles.load("quick", "vae", changes))
"""


def measure() -> pd.DataFrame:
    """One row per measurement: what, megabytes, the megabytes it is compared with, their ratio."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for method in [one.name for one in contenders("auto", Path(name))]:
            # Each in its own process: growth could hide in memory that another one has freed.
            early, late = run_in_subprocess("benchmarks.memory:training_mb", method, Path(name))
            what = f"{method}, step {LATE:,} against step {EARLY}"
            rows.append({"what": what, "mb": late, "against_mb": early})
            print(f"{what}: {late:,.0f} and {early:,.0f} MB", flush=True)
    tensor = CELEBA * 3 * 64 * 64 / 1e6
    what = f"{CELEBA:,} faces prepared, against their tensor"
    everything, added = prepared_mb(CELEBA)
    rows.append({"what": what, "mb": everything, "against_mb": tensor})
    rows.append({"what": f"{what}, without libraries", "mb": added, "against_mb": tensor})
    frame = pd.DataFrame(rows)
    return frame.assign(ratio=frame["mb"] / frame["against_mb"])


def training_mb(name: str, folder: Path) -> list[float]:
    """Resident megabytes at the steps EARLY and LATE of a method's training.

    Args:
        name: of one of the `contenders`.
        folder: for the contenders' files.
    """
    one = next(one for one in contenders("auto", folder) if one.name == name)
    seen = []

    def watch(step: int) -> None:
        if step in (EARLY, LATE):
            seen.append(psutil.Process().memory_info().rss / 1e6)

    train(one.kind, one.settings.replace(steps=LATE + 1), one.data, folder / "run", watch)
    return seen


def prepared_mb(count: int) -> tuple[float, float]:
    """Peak memory while a process decodes that many faces from a folder and keeps them.

    Returns:
        Megabytes of the process and its workers: all, and what was added since the libraries were
        loaded. On Linux shared pages count once.
    """
    with tempfile.TemporaryDirectory() as name:
        faces = Path(name) / "face"
        for split, size in (("train", count), ("test", 10)):
            folder = faces / split
            folder.mkdir(parents=True)
            picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
            lines = []
            for number in range(size):
                path = folder / f"{number}.png"
                if number % LINKS == 0:
                    (first := path).write_bytes(to_png(picture, scale=1))
                else:
                    os.link(first, path)
                lines.append(f"{path.name},{number % 2}")
            (faces / f"{split}.csv").write_text("\n".join(["image_name,Male", *lines]) + "\n")
        command = [sys.executable, "-c", PREPARE, name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            before = peak = resident_bytes(process.pid) / 1e6
            process.stdin.write(b"\n")
            process.stdin.close()
            while process.poll() is None:
                peak = max(peak, resident_bytes(process.pid) / 1e6)
                time.sleep(0.02)
        if process.returncode:
            raise RuntimeError(f"preparing {count} faces failed ({process.returncode})")
    return peak, peak - before


def plot(frame: pd.DataFrame) -> plt.Figure:
    """Ratios as bars."""
    figure, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
    ax.barh(frame["what"], frame["ratio"])
    ax.invert_yaxis()
    ax.axvline(1, color="black", linewidth=0.7)
    ax.set_xlabel("ratio")
    return figure


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and of all that it has started.

    On Linux a page that several of them share counts once; elsewhere, for each.
    """
    total = 0
    with suppress(psutil.Error):  # one of them may just have ended
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            memory = one.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total
