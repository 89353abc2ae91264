"""One run on several processes: what one process would compute, and what becomes of lost ones."""

import os
from unittest.mock import Mock

import pytest
import torch
from accelerate import PartialState
from conftest import METHODS, before_step, cases, digits_of, interrupt, settings_of, start

from dlcvlib.data import types
from dlcvlib.report import cli
from dlcvlib.training import loop
from dlcvlib.training.runs import train_or_load
from dlcvlib.utils import storage

CASES = [(name, {"steps": 3, "batch_size": 8} | changes) for name, changes in cases("processes")]


def join(rank, folder):
    """Become one of two processes without GPUs."""
    os.environ |= dict.fromkeys(["RANK", "LOCAL_RANK"], str(rank))
    os.environ |= dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], "2")
    PartialState(cpu=True, init_method=f"file://{folder}/meeting")
    torch.set_num_threads(1)


# --- the same numbers -------------------------------------------------------------------------


def train_case(number, folder, data):
    name, changes = CASES[number]
    settings = settings_of(name, **changes)
    return train_or_load(METHODS[name], settings, data[name], folder / str(number))


def train_together(rank, folder, data):
    join(rank, folder)
    for number in range(len(CASES)):
        train_case(number, folder, data)
    PartialState().destroy_process_group()


@pytest.fixture(scope="module")
def together(faces, tmp_path_factory):
    """Folder of each case's run by two processes, one of them begun by a single process; data."""
    pair = types.Pair(digits_of("usps"), digits_of("mnistm", shift=80, seed=1))
    data = {"vae": faces, "features": faces, "classifier": pair.source}
    data["dcgan"] = types.MeasuredFaces(faces, 0, None, "f")
    data |= dict.fromkeys(("dann", "pixelda", "adamatch"), pair.adaptation())
    folder = tmp_path_factory.mktemp("together")
    with before_step(METHODS["vae"], 2, interrupt), pytest.raises(KeyboardInterrupt):
        train_case(0, folder, data)
    torch.multiprocessing.spawn(train_together, (folder, data), nprocs=2)
    return folder, data


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{n}-{CASES[n][0]}")
def test_two_processes_compute_what_one_would(number, together, tmp_path):
    """Losses and gradients within rounding, which Adam makes more of from step to step."""
    folder, data = together
    two, one = (train_case(number, place, data) for place in (folder, tmp_path))
    assert (two.provenance["processes"], one.provenance["processes"]) == (2, 1)
    columns = [name for name in one.history if not name.startswith("validation_")]
    found, expected = (torch.tensor(run.history[columns].to_numpy()) for run in (two, one))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=1e-5)


# --- lost processes, and notebooks ------------------------------------------------------------

LOSES = """
import os, signal, sys
from conftest import METHODS, before_step
from dlcvlib.report.cli import main

lost = os.environ["RANK"] == "{lost}"
with before_step(METHODS["vae"], 5, lambda: lost and os.kill(os.getpid(), signal.SIGKILL)):
    sys.exit(main())
"""
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
LAUNCH += ["--local-addr=127.0.0.1"]  # the host's own name may lead nowhere


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_all_and_the_run_resumes(lost, tmp_path, monkeypatch):
    """With one message, besides the launcher's own; a single process then continues."""
    program = tmp_path / "loses.py"
    program.write_text(LOSES.format(lost=lost))
    train = [
        "train",
        "vae",
        "--profile=smoke",
        f"--runs-dir={tmp_path}",
        "--set=vae.precision=fp32",
    ]
    with start(*LAUNCH, program, *train) as process:
        _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "run the same command again to continue from the last checkpoint" in lines[0]
    assert error.count("Traceback") == 1, "the launcher's"
    begun = Mock(side_effect=loop.seed_step)
    monkeypatch.setattr(loop, "seed_step", begun)
    assert cli.main(train) == 0
    assert begun.call_args_list[0].args[1] == 5


NOTEBOOK = """
import accelerate, re, sys
from pathlib import Path

# Without GPUs, `notebook_launcher` would start a single process.
def launch(function, num_processes):
    def on_cpu():
        accelerate.PartialState(cpu=True)
        function("smoke", runs_dir=sys.argv[1], precision="fp32")

    accelerate.debug_launcher(on_cpu, num_processes=num_processes)

accelerate.notebook_launcher = launch
text = Path("docs/several-devices.md").read_text("utf-8")
exec(re.search("```python\\n(.*?)```", text, re.DOTALL)[1])
"""


def test_the_worked_example_for_notebooks(tmp_path):
    with start("-c", NOTEBOOK, tmp_path) as process:
        _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    (record,) = map(storage.read_sealed, tmp_path.glob("vae-*/provenance.json"))
    assert record["processes"] == 2
