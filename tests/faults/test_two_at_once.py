"""Two at once: each thing is made once, the other waits, says for whom, and takes it."""

import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT

from dlcvlib import storage

SLOW = """
import sys, time
from pathlib import Path
from dlcvlib import storage
path = Path(sys.argv[1])
def make():
    (path.parent / f"made-by-{sys.argv[2]}").touch()
    time.sleep(2)
    import torch
    return {"a": torch.zeros(3)}, {}
print(storage.kept(path, make)[0]["a"].tolist())
"""


def start(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None


def test_the_second_waits_says_for_whom_and_takes_the_result(tmp_path):
    path = tmp_path / "thing.safetensors"
    first = start(SLOW, path, "first")
    wait_for(tmp_path / "made-by-first", first)
    second = start(SLOW, path, "second")
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert outputs[0] == "[0.0, 0.0, 0.0]\n"
    assert f"is being made by process {first.pid} since " in outputs[1]
    assert outputs[1].endswith("[0.0, 0.0, 0.0]\n")
    assert not (tmp_path / "made-by-second").exists()


def test_a_dead_holders_lock_is_free(tmp_path):
    path = tmp_path / "thing.safetensors"
    dead = start(SLOW, path, "dead")
    wait_for(tmp_path / "made-by-dead", dead)
    dead.kill()
    dead.wait()
    heir = start(SLOW, path, "heir")
    output, _ = heir.communicate(timeout=120)
    assert heir.returncode == 0
    assert "waiting" not in output
    assert (tmp_path / "made-by-heir").exists()


@pytest.mark.parametrize("command", ["train", "report"])
def test_two_commands_in_one_checkout(tmp_path, command):
    """Both succeed, and every run is trained once."""
    out = ["--out", tmp_path / "report", "--only", "1-2"] if command == "report" else ["vae"]
    arguments = [command, *out, "--profile", "smoke", "--runs-dir", tmp_path / "runs"]
    program = [sys.executable, "-m", "dlcvlib", *map(str, arguments)]
    both = [
        subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    waited = [output for output in outputs if "waiting for it" in output]
    assert waited
    if command == "report":
        assert sum("1-2 unchanged" in output for output in outputs) == 1
    runs = [path for path in (tmp_path / "runs").glob("vae-*") if path.is_dir()]
    assert len(runs) == 1
    storage.read_sealed(runs[0] / "provenance.json")
    assert not list(tmp_path.rglob(f"{storage.TEMPORARY}*"))
