"""Two at once: all is computed once; the second waits, says for whom, and uses the result."""

import subprocess
import sys

from conftest import ROOT

from dlcvlib.utils import storage

MAKE = """
import sys
from pathlib import Path
from dlcvlib.utils import storage
path = Path(sys.argv[1])
def make():
    (path.parent / f"made-by-{sys.argv[2]}").touch()
    print("making", flush=True)
    sys.stdin.readline()
    import torch
    return {"a": torch.zeros(3)}, {}
print(storage.cached(path, make)[0]["a"].tolist())
"""
"""Creates a file as soon as it is told to on standard input."""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(stream, text):
    """The output of a process up to the line that contains a text."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"{text!r} was never printed: {lines}")


def test_the_second_waits_for_a_living_first_and_uses_its_result(tmp_path):
    path = tmp_path / "thing.safetensors"
    dead = start("-c", MAKE, path, "dead")
    read_until(dead.stdout, "making")
    dead.kill()
    dead.communicate()
    first = start("-c", MAKE, path, "first")
    read_until(first.stdout, "making")
    second = start("-c", MAKE, path, "second")
    waiting = read_until(second.stderr, "waiting for it")
    assert f"is being made by process {first.pid} since " in waiting
    told = [process.communicate("go\n", timeout=120) for process in (first, second)]
    assert told == [("[0.0, 0.0, 0.0]\n", "")] * 2
    assert {mark.name for mark in tmp_path.glob("made-by-*")} == {"made-by-dead", "made-by-first"}


def test_two_reports_in_one_checkout(tmp_path):
    """Both wait for a lock that the test holds; after its release both succeed and run once."""
    out, runs = tmp_path / "report", tmp_path / "runs"
    words = ["report", "--out", out, "--only", "1-2", "--profile", "smoke", "--runs-dir", runs]
    with storage.exclusive_lock(storage.make_dir(out) / ".report", "held"):
        both = [start("-m", "dlcvlib", *words) for _ in range(2)]
        for process in both:
            assert "waiting for it" in read_until(process.stderr, f"{out}/.report is being ")
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("1-2 unchanged" in output for output in told) == 1
    (run,) = (path for path in runs.glob("vae-*") if path.is_dir())
    storage.read_sealed(run / "provenance.json")
    assert not list(tmp_path.rglob(f"{storage.TEMPORARY}*"))
