"""Two at once: all is computed once; the second waits, says for whom, and uses the result."""

from conftest import start

from dlcvlib.utils import storage

MAKE = """
import os, sys
from pathlib import Path
from dlcvlib.utils import storage

def make():
    print("making", flush=True)
    sys.stdin.readline()
    return {}, {"by": os.getpid()}

print(storage.cached(Path(sys.argv[1]), make)[1]["by"])
"""
"""Creates a file as soon as it is told to on standard input."""


def line_with(text, stream):
    """The first line of a process's output that contains a text."""
    return next(line for line in stream if text in line)


def test_the_second_waits_for_a_living_first_and_uses_its_result(tmp_path):
    path = tmp_path / "thing.safetensors"
    dead = start("-c", MAKE, path)
    line_with("making", dead.stdout)
    dead.kill()
    dead.communicate()
    first = start("-c", MAKE, path)
    line_with("making", first.stdout)
    second = start("-c", MAKE, path)
    waiting = line_with("waiting for it", second.stderr)
    assert f"is being made by process {first.pid} since " in waiting
    told = [process.communicate("go\n", timeout=120) for process in (first, second)]
    assert told == [(f"{first.pid}\n", "")] * 2


def test_two_reports_in_one_checkout(tmp_path):
    """Both wait for a lock that the test holds; after its release both succeed and run once."""
    out, runs = tmp_path / "report", tmp_path / "runs"
    words = ["report", "--out", out, "--only", "1-2", "--profile", "smoke", "--runs-dir", runs]
    words += ["--set=vae.drawn_train=70", "--set=vae.drawn_test=32", "--set=vae.steps=4"]
    with storage.exclusive_lock(storage.make_dir(out) / ".report", "held"):
        both = [start("-m", "dlcvlib", *words) for _ in range(2)]
        for process in both:
            assert "waiting for it" in line_with(f"{out}/.report is being ", process.stderr)
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("1-2 unchanged" in output for output in told) == 1
    (run,) = (path for path in runs.glob("vae-*") if path.is_dir())
    storage.read_sealed(run / "provenance.json")
    assert not list(tmp_path.rglob(f"{storage.TEMPORARY}*"))
