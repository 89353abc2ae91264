"""Two at once: all is computed once; the second waits, says for whom, and uses the result."""

import subprocess
import sys

import pytest
from conftest import ROOT

from dlcvlib.config import profiles
from dlcvlib.data.faces import load_faces
from dlcvlib.methods import vae
from dlcvlib.training.runs import train_or_load
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


def test_the_second_waits_names_the_first_and_uses_the_result(tmp_path):
    path = tmp_path / "thing.safetensors"
    first = start("-c", MAKE, path, "first")
    read_until(first.stdout, "making")
    second = start("-c", MAKE, path, "second")
    waiting = read_until(second.stderr, "waiting for it")
    assert f"is being made by process {first.pid} since " in waiting
    outputs = [process.communicate("go\n", timeout=120)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert outputs == ["[0.0, 0.0, 0.0]\n"] * 2
    assert not (tmp_path / "made-by-second").exists()


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    path = tmp_path / "thing.safetensors"
    dead = start("-c", MAKE, path, "dead")
    read_until(dead.stdout, "making")
    dead.kill()
    dead.communicate()
    heir = start("-c", MAKE, path, "heir")
    output, _ = heir.communicate("go\n", timeout=120)
    assert heir.returncode == 0
    assert "waiting" not in output
    assert (tmp_path / "made-by-heir").exists()


def run_name(tmp_path):
    """The folder of the VAE of profile smoke."""
    chosen = profiles.load("smoke", "vae", {"runs_dir": str(tmp_path / "elsewhere")})
    faces = load_faces(chosen)
    return train_or_load(vae.VAE, chosen.settings, faces, chosen.runs_dir).name


@pytest.mark.parametrize("command", ["train", "report"])
def test_two_commands_in_one_checkout(tmp_path, command):
    """Both wait for a lock that the test holds; after its release both succeed and train once."""
    out = ["--out", tmp_path / "report", "--only", "1-2"] if command == "report" else ["vae"]
    arguments = [command, *out, "--profile", "smoke", "--runs-dir", tmp_path / "runs"]
    wanted = tmp_path / "report" / ".report"
    if command == "train":
        wanted = tmp_path / "runs" / run_name(tmp_path)
    with storage.exclusive_lock(storage.make_dir(wanted.parent) / wanted.name, "held"):
        both = [start("-m", "dlcvlib", *arguments) for _ in range(2)]
        for process in both:
            assert "waiting for it" in read_until(process.stderr, f"{wanted} is being ")
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    if command == "report":
        assert sum("1-2 unchanged" in output for output, _ in told) == 1
    else:
        assert sum("vae:" in progress for _, progress in told) == 1
    runs = [path for path in (tmp_path / "runs").glob("vae-*") if path.is_dir()]
    assert len(runs) == 1
    storage.read_sealed(runs[0] / "provenance.json")
    assert not list(tmp_path.rglob(f"{storage.TEMPORARY}*"))
