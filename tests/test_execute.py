"""Running notebooks: which and why, in parallel or not, what fails, and what is reused."""

import json
import re
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import joblib
import nbformat
import pytest
from conftest import PROBLEMS, ROOT

from dlcvlib.config import profiles
from dlcvlib.methods import vae
from dlcvlib.report import execute, uptodate
from dlcvlib.report.cli import main
from dlcvlib.training.runs import train_or_load
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError

GOOD = "print('good')"


# --- up to date or not ------------------------------------------------------------------------


@pytest.mark.usefixtures("unrendered")
def test_only_what_changed_runs_again_and_why_is_said(small, capsys):
    """Imports are found among whatever else IPython understands."""
    magics = ["%matplotlib inline", "!true", "files = !ls", "%%bash\necho $((1 + 1))", "len?"]
    imports = "%%time\nfrom dlcvlib.evaluation import metrics"
    small.write(p1_1=[GOOD], p1_2=[*magics, imports])

    def explained(**changes):
        return [*uptodate.explain(small.plan(**changes))]

    assert explained() == ["1-1 runs: it has not been run yet", "1-2 runs: it has not been run yet"]
    assert small.make()
    assert explained() == ["1-1 is reused", "1-2 is reused"]
    assert explained(steps=13)[0] == "1-1 runs: parameters changed: steps"
    small.write(p1_2=[*magics, f"{imports}, significance"])
    reason = "notebook changed: text; code changed: evaluation/significance"
    assert explained() == ["1-1 is reused", f"1-2 runs: {reason}"]
    assert small.make()
    output = capsys.readouterr().out
    assert f"1-2 starts: {reason}" in output
    assert re.findall(r"(1-\d) unchanged", output) == ["1-1"]


@pytest.mark.usefixtures("unrendered")
def test_data_libraries_style_the_original_and_an_older_record_count_too(small, monkeypatch):
    small.write(p1_1=[GOOD])
    assert small.make()

    def reasons(data="f"):
        (task,) = uptodate.plan(small.chosen({}), {"vae": data}, [], small.out, small.folder)
        return task.reasons

    assert reasons() == []
    assert reasons("g") == ["data changed: embedded"]
    versions = fingerprints.versions
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "versions", lambda *names: versions(*names) | {"torch": "0"})
        patch.setattr(uptodate, "FILES", [])
        files = "columns.yaml, original_report.yaml, report.mplstyle"
        assert reasons() == [f"files changed: {files}", "versions changed: torch"]
    (task,) = small.plan()
    record = storage.sealed(task.record)
    del record["identity"]["code"]
    storage.write_sealed(task.record, record)
    assert reasons() == [uptodate.OLDER]


def test_explain_names_stale_and_older_models(params, faces, tmp_path, monkeypatch):
    def explained():
        return [*uptodate.stale(tmp_path)]

    run = train_or_load(vae.VAE, params("vae").settings, faces, tmp_path)
    assert explained() == []
    real, mark = fingerprints.hashes, run.folder / "provenance.json"
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "hashes", lambda paths: real(paths) | {"vae": "other"})
        assert explained() == [f"{run.name} is stale: code changed: vae"]
    record = storage.sealed(mark)
    for part, why in (("accelerate", "versions changed: accelerate"), ("code", uptodate.OLDER)):
        storage.write_sealed(mark, {name: record[name] for name in record if name != part})
        assert explained() == [f"{run.name} is stale: {why}"]


def test_parameters_of_another_chapter_count_too(small):
    """Chapter 4 shows chapter 3's runs: a different network there changes the notebook here."""
    small.write(p4_1=["1"])

    def identity(**changes):
        chosen = {"pixelda": profiles.load("smoke", "pixelda", changes)}
        (task,) = uptodate.plan(chosen, {"pixelda": "f"}, [], small.out, small.folder)
        return task.identity

    changed = identity(dann_changes={"channels": [4, 4]})
    assert identity() != changed
    assert changed["parameters"]["dann.channels"] == [4, 4]
    assert not any("runs_dir" in name for name in changed["parameters"])


def test_the_second_report_runs_nothing_and_loads_nothing_large(smoke_report, tmp_path, capsys):
    """Its own process lives as long as the notebooks run; torch alone would take 400 MB."""
    runs = smoke_report[1]
    # A copy, since a second report overwrites its results.
    out = shutil.copytree(smoke_report[0], tmp_path / "report")
    files = [*runs.glob("*/model.safetensors"), *(out / "notebooks").glob("*.ipynb")]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    arguments = ["report", "--profile=smoke", f"--out={out}", f"--runs-dir={runs}"]
    assert main([*arguments, "--explain"]) == 0
    assert capsys.readouterr().out.count(" is reused") == len(PROBLEMS)
    program = (
        f"import sys; from dlcvlib.report.cli import main; assert main({arguments}) == 0; "
        "large = {'torch', 'pandas', 'skimage', 'matplotlib', 'nbconvert', 'typst'}; "
        "assert not large & set(sys.modules), large & set(sys.modules)"
    )
    output = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert output.count(" unchanged") == len(PROBLEMS)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# --- which notebooks --------------------------------------------------------------------------


def test_a_chapter_selects_all_of_its_problems():
    assert [name[0] for name in uptodate.chosen(["2"])] == ["2"] * 4
    assert list(uptodate.chosen(["3-1", "4"])) == ["3-1", "4-1", "4-2", "4-3", "4-4"]
    assert list(uptodate.chosen([])) == PROBLEMS


COPIES = ["1-2-test-Copy1", "1-2-test_old", "1-2-test2", "1-2", "Copy of 1-2-test", "1-2 (1)"]


def test_two_files_that_claim_a_problem_are_named_and_others_left_alone(small):
    small.write(p1_2=[GOOD])
    for name in ["Untitled", "1-10-x", "5-1-x", "notes-2024-1-2", "12-3", ".1-1-x"]:
        (small.folder / f"{name}.ipynb").touch()
    (small.folder / ".ipynb_checkpoints").mkdir()
    assert [task.problem for task in small.plan()] == ["1-2"]
    for name in COPIES:
        copy = small.folder / f"{name}.ipynb"
        copy.touch()
        with pytest.raises(UserError, match="more than one notebook of a problem: ") as error:
            small.plan()
        named = str(error.value).rpartition(": ")[2].split(", ")
        assert sorted(named) == sorted(["1-2-test.ipynb", copy.name])
        copy.unlink()


@pytest.mark.usefixtures("unrendered")
def test_an_unreadable_notebook_costs_only_itself(small, capsys):
    small.write(p1_1=[GOOD, "'refers to @fig-that-may-be-there'"])
    conflict = "<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> theirs\n"
    texts = ["", "{", '{"cells": 1}', conflict, '{"nbformat": 9}', "\xff"]
    for number, text in enumerate(texts, 2):
        (small.folder / f"1-{number}-x.ipynb").write_text(text, encoding="latin-1")
    (small.folder / "1-8-x.ipynb").mkdir()
    assert "".join(uptodate.explain(small.plan())).count("is not a readable notebook: ") == 7
    assert not small.make()
    output = capsys.readouterr().err
    failed = re.findall(r"(1-\d) failed: \S+ is not a readable notebook: \S", output)
    assert failed == [f"1-{number}" for number in range(2, 9)]
    assert "1-1 failed" not in output


@pytest.mark.usefixtures("unrendered")
def test_notebooks_of_other_programs_are_read(small):
    """With a byte-order mark, in an older format, for another kernel, or without any."""
    small.write(p1_1=[GOOD], p1_2=[GOOD], p1_3=[GOOD])
    first, second, third = (nbformat.read(p, 4) for p in sorted(small.folder.iterdir()))
    del first.metadata["kernelspec"]
    second.metadata.kernelspec.name = "conda-env-mine"
    (small.folder / "1-1-test.ipynb").write_text(nbformat.writes(first), encoding="utf-8-sig")
    nbformat.write(second, small.folder / "1-2-test.ipynb")
    nbformat.write(nbformat.convert(third, 3), small.folder / "1-3-test.ipynb", version=3)
    assert small.make()


# --- what fails -------------------------------------------------------------------------------


FAILING = {
    "import sys; sys.exit(0)": "SystemExit: 0",
    "import os; os._exit(1)": "Kernel died",
    "import threading; threading.Event().wait()": "ran longer than 5 s (--cell-timeout)",
    "x = = 1": "SyntaxError: ",
    "#| label: fig-a\n#| fig-cap: A\n#| fig-alt: A\n1": "shows no figure or table",
}


@pytest.mark.usefixtures("unrendered")
def test_each_way_to_fail_names_the_cell_and_the_others_run(small, capsys):
    cells = {f"p1_{n}": ["1", cell, "2"] for n, cell in enumerate(FAILING, 1)}
    small.write(**cells, p1_9=["found = !echo 7", "assert found == ['7']"])
    assert not small.make(cell_timeout=5)
    error = capsys.readouterr().err
    for number, (cell, reason) in enumerate(FAILING.items(), 1):
        kept = small.out / "notebooks" / f"1-{number}-test.failed.ipynb"
        assert f"1-{number} failed: the cell {cell.splitlines()[0]!r}: {reason}" in error
        assert str(kept) in error
        assert nbformat.read(kept, as_version=4).cells
    assert "1-9 failed" not in error


@pytest.mark.usefixtures("unrendered")
def test_what_a_notebook_used_is_what_was_asked_or_it_fails(small, capsys):
    own = "\n".join(f"{k}: object = {v!r}" for k, v in small.params("vae").model_dump().items())
    begin = "from dlcvlib.config.schema import VAEParams\n"
    begin += "from dlcvlib.report.notebook import begin\nparams = begin(VAEParams, In)"
    small.write(p1_1=[own, begin], p1_2=["# Parameters\nsteps = 999", begin])
    tagged = small.folder / "1-2-test.ipynb"
    tagged.write_text(tagged.read_text().replace("seed: int = 0", json.dumps(own)[1:-1]))
    assert not small.make({"steps": 7})
    error = capsys.readouterr().err
    assert re.search("1-1 failed: .* tag it `parameters`", error)
    assert re.search("1-2 failed: .* uses another steps than", error)


@pytest.mark.usefixtures("unrendered")
def test_plots_and_warnings_are_kept_and_progress_is_not(small):
    plot = "from matplotlib import pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    bar = "import sys, warnings\nfrom tqdm import tqdm\nfor _ in tqdm([1]): pass\n"
    warn = "print('1%\\r2%\\rdone')\nwarnings.warn('careful')"
    wait = "print('runs/x is being trained by process 1; waiting for it\\nafter', file=sys.stderr)"
    small.write(p1_1=[plot, bar + warn, wait])
    assert small.make()
    (path,) = (small.out / "notebooks").glob("*.ipynb")
    shown = [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])]
    assert ["image/png" in output.data for output in shown if "data" in output] == [True]
    text = "".join(output.get("text", "") for output in shown)
    assert all(kept in text for kept in ("careful", "done"))
    assert text.endswith("after\n")
    assert not re.search("waiting|%", text)


OTHERS = ["notebooks/mine", "figures/mine", *execute.PRODUCTS]


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_no_report_created_are_not_overwritten(small, name):
    small.write(p1_1=[GOOD])
    mine = small.out / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"version": 1}')
    with pytest.raises(UserError, match=f"{name.removesuffix('/mine')} is no report's"):
        small.make()
    assert [path for path in small.out.rglob("*") if path.is_file()] == [mine]


def test_the_projects_own_notebooks_are_not_overwritten(small):
    small.write(p1_1=[GOOD])
    small.out = small.folder.parent
    (small.out / execute.MARK).touch()
    with pytest.raises(UserError, match="name another folder"):
        small.make()
    assert [path.name for path in small.folder.iterdir()] == ["1-1-test.ipynb"]


# --- side by side -----------------------------------------------------------


FOUR = ["1-1", "1-2", "4-1", "4-2"]


@pytest.mark.parametrize(
    ("problems", "asked", "threads"),
    [(FOUR, "7", "4"), (FOUR, "1", "1"), (FOUR, "", "4"), (FOUR[:1], "7", "7")],
)
def test_side_by_side_are_notebooks_of_different_chapters(monkeypatch, problems, asked, threads):
    """They share the cores, unless fewer threads are asked for; a single one uses all."""
    started, together = [], threading.Barrier(min(2, len(problems)))

    def run(task, environment, trained):
        assert environment["OMP_NUM_THREADS"] == threads
        started.append(task.problem)
        together.wait(60)
        return 0.0

    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    new = {"reasons": ["new"], "trains": False}
    tasks = [SimpleNamespace(problem=problem, **new) for problem in problems]
    assert not any(outcome.error for outcome in execute._run(tasks, run, 2, print))
    assert {*started[:2]} == {*problems[::2]}


def test_how_many_notebooks_at_once(monkeypatch):
    for cores, gpus, jobs in ((2, 0, 2), (8, 0, 4), (8, 1, 1), (8, 6, 6)):
        monkeypatch.setattr(joblib, "cpu_count", lambda cores=cores: cores)
        assert execute.side_by_side(gpus) == jobs
