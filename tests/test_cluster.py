"""Runs side by side: planned as notebooks request them, trained by workers that may be lost."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from subprocess import PIPE, STDOUT

import dask
import nbformat
import psutil
import pytest
from conftest import ROOT, poll, start

from dlcvlib.report import cli, cluster, execute, progress, sweep, uptodate
from dlcvlib.report.exhibits import MIME
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import run_in_subprocess

PATIENCE = 300
"""Seconds until a test fails, on a machine that does much else; nothing takes a tenth of that."""
CELLS = (
    """
import os, signal, time
from pathlib import Path
from dlcvlib.config import profiles
from dlcvlib.data.faces import load_faces
from dlcvlib.methods.vae import VAE
from dlcvlib.training import loop
from dlcvlib.training.runs import train_or_load
from dlcvlib.utils import stopwatch
loop.CHECKPOINT_SECONDS = 0.0
folder = Path({folder!r})
params = profiles.load("smoke", "vae", {{"precision": "fp32", "runs_dir": str(folder / "runs")}})
VAE.plain = getattr(VAE, "plain", VAE.training_step)

def training_step(self, batch):
    before(self.settings.seed, self.step)
    with (folder / f"steps-{{self.settings.seed}}").open("a") as file:
        print(self.step, file=file)
    return self.plain(batch)

VAE.training_step = training_step
""",
    """
runs = [
    train_or_load(VAE, params.settings.replace(seed=seed), load_faces(params), params.runs_dir)
    for seed in {seeds}
]
""",
)
LOST = """
def before(seed, step):
    if (seed, step) == (1, 5) and not (folder / "lost").exists():
        (folder / "lost").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if (seed, step) == (2, 5):
        raise ValueError("of seed 2")
"""
HELD = """
def before(seed, step):
    until = time.monotonic() + 300
    while step == 5 and not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.05)
"""


def requests(folder, before, seeds):
    """Cells of a notebook that requests a VAE for each seed; `before` runs before their steps."""
    first, last = (cell.format(folder=str(folder), seeds=list(seeds)) for cell in CELLS)
    return first, before, last


def steps(folder, seed):
    """The steps that were trained, in order, by whichever process."""
    return [int(line) for line in (folder / f"steps-{seed}").read_text().split()]


def trained(folder):
    return len([*(folder / "runs").glob("*/provenance.json")])


def test_the_plan_is_what_the_notebooks_request(smoke_report):
    out, runs = smoke_report
    words = ["sweep", "--profile=smoke", f"--runs-dir={runs}"]
    params = cli.chapters(cli.parser().parse_args(words))
    tasks = uptodate.plan(params, dict.fromkeys(params, "f"), [], out)
    needed, faults = sweep.plan({task.problem: task.cells for task in tasks})
    assert faults == {}
    for task in tasks:
        cells = nbformat.read(task.target, as_version=4).cells
        shown = [o.get("data", {}).get(MIME, {}) for c in cells for o in c.get("outputs", [])]
        requested = {name for payload in shown for name in payload.get("runs", [])}
        planned = {name for name, run in needed.items() if task.problem in run.problems}
        assert planned == requested, task.problem
    assert all(run.done for run in needed.values())


def test_a_cell_that_hangs_keeps_no_other_notebook_from_being_planned():
    notebooks = {"1-1": ("while True:\n    pass",), "1-2": ("1",)}
    fault = "a cell ran longer than 1 s (--cell-timeout)"
    assert sweep.plan(notebooks, cell_timeout=1) == ({}, {"1-1": fault})


def test_a_lost_worker_costs_no_run_and_a_failed_run_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.2)
    notebooks = {"1-1": requests(tmp_path, LOST, range(4)), "1-2": ("1 / 0",)}
    runs, faults = sweep.plan(notebooks)
    assert all(run.problems == ["1-1"] for run in runs.values())
    assert (faults, trained(tmp_path)) == ({}, 0)
    environment = partial(execute.kernel_environment, 2)
    where = {"workers": 2, "gpus": 0, "scheduler": ""}
    failed = sweep.train(runs, notebooks, environment, **where)
    assert failed == {[*runs][2]: "of seed 2"}
    assert steps(tmp_path, 0) == [*range(12)]
    assert steps(tmp_path, 1) == [*range(5), *range(5, 12)]
    assert trained(tmp_path) == 3
    output = capsys.readouterr().out
    assert Counter(re.findall("is trained|failed", output)) == {"is trained": 3, "failed": 1}
    assert re.search(r"\[\d\d:\d\d\] \d of 4 runs, .*; vae-\w+", output)
    assert [run.done for run in sweep.plan(notebooks)[0].values()] == [True, True, False, True]


def test_other_code_or_data_on_a_worker_are_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="vae-0 is not what this machine would train"):
        run_in_subprocess("dlcvlib.report.planning:train", requests(tmp_path, "", [0]), "vae-0")


def test_a_scheduler_that_does_not_answer_is_named():
    address = "tcp://127.0.0.1:1"
    quick = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with quick, pytest.raises(UserError, match=f"--scheduler {address}: no scheduler answers"):
        cluster.working({}, print, 1, 0, {}, address).__enter__()


INTERRUPTED = """
import os, signal, sys
from dlcvlib.report import cli, uptodate
os.setsid()  # a terminal's Ctrl-C reaches all processes of a group
# A shell has what it starts in the background ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
uptodate.Task.cells = {cells!r}
sys.exit(cli.main(["sweep", "--profile=smoke", "--only=1-1", "--workers=2"]))
"""


def test_ctrl_c_ends_all_and_the_same_command_continues(tmp_path):
    program = INTERRUPTED.format(cells=requests(tmp_path, HELD, range(3)))
    with start("-c", program) as process:
        poll(lambda: all((tmp_path / f"steps-{seed}").exists() for seed in (0, 1)), process)
        poll(lambda: steps(tmp_path, 0)[-1] == steps(tmp_path, 1)[-1] == 4, process)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert error == "\nstopped: run the same command again to continue\n"
    assert not psutil.wait_procs(children, timeout=PATIENCE)[1]
    (tmp_path / "go").touch()
    with start("-c", program) as process:
        output, error = process.communicate(timeout=PATIENCE)
    assert (process.returncode, error, trained(tmp_path)) == (0, "", 3)
    assert "runs: 3 needed, 0 done" in output
    assert [steps(tmp_path, seed) for seed in range(3)] == [[*range(12)]] * 3


def test_a_dry_run_trains_nothing_and_a_task_of_slurm_one_run(tmp_path, capsys):
    words = ["sweep", "--profile=smoke", "--only=1-1,1-4", f"--runs-dir={tmp_path / 'runs'}"]

    def said(*more):
        assert cli.main([*words, *more]) == 0
        return capsys.readouterr().out

    table = said("--dry-run")
    assert "runs: 2 needed, 0 done\n" in table
    rows = [line.split() for line in table.splitlines()[-3:]]
    found = [" ".join(row[:-1]) for row in rows]
    assert found == ["1-1 VAE 1 0 12", "1-4 AttributeClassifier 1 0 8", "all 2 0 20"]
    script, _ = said("--export=slurm", f"--out={tmp_path / 'a job'}").splitlines()[-2:]
    assert trained(tmp_path) == 0
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2"}
    subprocess.run(
        ["bash", script], env=environment, check=True, capture_output=True, timeout=PATIENCE
    )
    (record,) = (tmp_path / "runs").glob("*/provenance.json")
    listed = (tmp_path / "a job" / "runs.txt").read_text().splitlines()
    assert listed[1] == f"1-4 {record.parent.name}"
    assert "runs: 2 needed, 1 done\n" in said("--dry-run")
    assert cli.main([*words, "--run=vae-0"]) == 2
    assert "no notebook needs vae-0" in capsys.readouterr().err


@pytest.mark.usefixtures("unrendered")
def test_a_report_trains_the_runs_of_its_notebooks_first(small, tmp_path, capsys):
    """Each once, by workers, under the notebook that comes first; one that fails is left to it."""
    untrained = "assert not [work for work in stopwatch.seconds if work.startswith('training')]"
    cells = [*requests(tmp_path, "def before(*_): pass", [0, 1]), untrained]
    small.write(p1_1=cells, p1_2=cells, p1_3=requests(tmp_path, LOST, [2]))
    assert not small.make(jobs=2)
    error = capsys.readouterr().err
    assert re.search(r"1-3 failed: .*ValueError: of seed 2", error)
    assert (error.count(" failed: "), trained(tmp_path)) == (1, 2)
    assert steps(tmp_path, 0) == steps(tmp_path, 1) == [*range(12)]
    first, second = (storage.sealed(task.record)["trained"] for task in small.plan()[:2])
    assert first["training: vae"] > 0
    assert second == {}


@contextmanager
def machines(*addresses):
    """A network namespace for each address, that only sees the others: names, in this order."""
    if not shutil.which("ip") or subprocess.run(["unshare", "-n", "true"]).returncode:
        pytest.skip("no network namespaces here")
    one, other = names = [f"dlcv{os.getpid()}{end}" for end in "ab"]
    make = [f"netns add {one}", f"netns add {other}"]
    make.append(f"-n {one} link add {one} type veth peer name {other} netns {other}")
    for name, address in zip(names, addresses, strict=True):
        make += [f"-n {name} addr add {address}/24 dev {name}"]
        make += [f"-n {name} link set {link} up" for link in (name, "lo")]
    try:
        for words in make:
            subprocess.run(["ip", *words.split()], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name])


def test_two_machines_meet_in_a_shared_folder_alone(tmp_path):
    """The scheduler and the command on one, a worker on the other."""
    here, there = "10.207.0.1", "10.207.0.2"
    with machines(here, there) as (one, other), ExitStack() as stack:

        def on(name, *words):
            command = ["ip", "netns", "exec", name, sys.executable, "-m", *words]
            process = subprocess.Popen(command, cwd=ROOT, stdout=PIPE, stderr=STDOUT, text=True)
            stack.callback(process.kill)
            return process

        options = ["--no-dashboard", f"--host={here}", "--port=8786"]
        on(one, "distributed.cli.dask_scheduler", *options)
        options = ["--no-dashboard", "--nthreads=1", "--memory-limit=0"]
        on(other, "distributed.cli.dask_worker", f"tcp://{here}:8786", *options)
        words = ["--profile=smoke", "--only=1-1", f"--runs-dir={tmp_path / 'runs'}"]
        words += ["--log-with=tensorboard"]
        process = on(one, "dlcvlib", "sweep", *words, f"--scheduler=tcp://{here}:8786")
        output, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, trained(tmp_path)) == (0, 1), output
        assert len([*tmp_path.glob("runs/tensorboard/vae-*")]) == 1
