"""Running notebooks: which and why, in parallel or not, what fails, and what is reused."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import joblib
import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import PROBLEMS, ROOT

from dlcvlib.config import profiles, schema
from dlcvlib.methods import vae
from dlcvlib.report import execute, uptodate
from dlcvlib.training.runs import train_or_load
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import run_in_subprocess

GOOD = "print('good')"


# --- up to date or not ------------------------------------------------------------------------


@pytest.mark.usefixtures("unrendered")
def test_only_what_changed_runs_again_and_why_is_said(small, capsys):
    small.write(p1_1=[GOOD], p1_2=["from dlcvlib.evaluation import metrics"])

    def explained(**changes):
        return uptodate.explain(small.plan(**changes)).splitlines()

    assert explained() == ["1-1 runs: it has not been run yet", "1-2 runs: it has not been run yet"]
    assert small.make()
    assert explained() == ["1-1 is reused", "1-2 is reused"]
    assert explained(steps=13)[0] == "1-1 runs: parameters changed: steps"
    small.write(p1_2=["from dlcvlib.evaluation import metrics, significance"])
    reason = "notebook changed: text; code changed: evaluation/significance"
    assert explained() == ["1-1 is reused", f"1-2 runs: {reason}"]
    target = small.out / "notebooks" / "1-1-test.ipynb"
    whole = target.read_text()
    target.write_text(whole + " ")
    assert explained()[0] == f"1-1 runs: {target} is damaged"
    target.write_text(whole)
    capsys.readouterr()
    assert small.make()
    output = capsys.readouterr().out
    assert f"1-2 starts: {reason}" in output
    assert re.findall(r"(1-\d) unchanged", output) == ["1-1"]


@pytest.mark.usefixtures("unrendered")
def test_data_libraries_style_and_the_original_count_too(small, tmp_path, monkeypatch):
    small.write(p1_1=[GOOD])
    assert small.make()

    def reasons(data="f"):
        (task,) = uptodate.plan(small.chosen({}), {"vae": data}, [], small.out, small.folder)
        return uptodate.why(task)

    assert reasons() == []
    assert reasons("g") == ["data changed: embedded"]
    with monkeypatch.context() as patch:
        real = fingerprints.versions
        patch.setattr(fingerprints, "versions", lambda *names: real(*names) | {"torch": "0"})
        assert reasons() == ["versions changed: torch"]
    for n, path in enumerate(uptodate.FILES):
        (tmp_path / path.name).write_text("another")
        with monkeypatch.context() as patch:
            files = [*uptodate.FILES[:n], tmp_path / path.name, *uptodate.FILES[n + 1 :]]
            patch.setattr(uptodate, "FILES", files)
            assert reasons() == [f"files changed: {path.name}"]


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("part", ["identity", "code", "versions"])
def test_an_incomplete_record_is_from_an_older_version(small, part):
    small.write(p1_1=[GOOD])
    assert small.make()
    (task,) = small.plan()
    record = storage.sealed(task.record)
    (record if part == "identity" else record["identity"]).pop(part)
    storage.write_sealed(task.record, record)
    assert uptodate.why(task) == [uptodate.OLDER]


def test_explain_names_stale_unfinished_and_older_models(smoke, faces, tmp_path, monkeypatch):
    run = train_or_load(vae.VAE, smoke().settings, faces, tmp_path)
    assert uptodate.explain_runs(tmp_path) == f"trained models in {tmp_path} that can be used: 1"
    real = fingerprints.hashes
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "hashes", lambda paths: real(paths) | {"vae": "other"})
        first, second = uptodate.explain_runs(tmp_path).splitlines()
    assert first.endswith("that can be used: 0")
    assert second == f"{run.name} is stale: code changed: vae"
    mark = tmp_path / run.name / "provenance.json"
    record = storage.sealed(mark)
    for part in ("accelerate", "code"):
        storage.write_sealed(mark, {name: record[name] for name in record if name != part})
        stale = f"{run.name} is stale: {uptodate.OLDER}"
        assert uptodate.explain_runs(tmp_path).splitlines()[1] == stale
    mark.unlink()
    storage.write_sealed(tmp_path / run.name / "checkpoint.json", {"step": 7})
    assert uptodate.explain_runs(tmp_path).splitlines()[1] == f"{run.name} continues at step 7"


def test_parameters_of_another_chapter_count_too(small):
    """Chapter 4 shows chapter 3's runs: a different network there changes the notebook here."""
    identities = []
    for changes in ({}, {"dann_changes": {"channels": [4, 4]}}):
        chosen = {"pixelda": profiles.load("smoke", "pixelda", changes)}
        small.write(p4_1=["1"])
        (task,) = uptodate.plan(chosen, {"pixelda": "f"}, [], small.out, small.folder)
        assert "dann.channels" in task.identity["parameters"]
        assert not any("runs_dir" in name for name in task.identity["parameters"])
        identities.append(task.identity)
    assert identities[0] != identities[1]


@pytest.fixture
def made(smoke_report, tmp_path):
    """The smoke report, copied since a second report would overwrite its results; and its runs."""
    return Path(shutil.copytree(smoke_report[0], tmp_path / "report")), smoke_report[1]


def test_the_second_report_runs_nothing(made, capsys, monkeypatch):
    """And `--explain` says so, without running what would be run."""
    from dlcvlib.report.cli import main

    out, runs = made
    files = [*runs.glob("*/model.safetensors"), *(out / "notebooks").glob("*.ipynb")]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    arguments = ["report", "--profile", "smoke", "--out", str(out), "--runs-dir", str(runs)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("unchanged") == len(PROBLEMS)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    monkeypatch.setattr(execute, "make_report", lambda *_, **__: pytest.fail("it runs"))
    assert main([*arguments, "--explain"]) == 0
    assert capsys.readouterr().out.count(" is reused") == len(PROBLEMS)


def test_the_reports_own_process_loads_nothing_large(made):
    """It lives as long as the notebooks run; torch alone would take 400 MB."""
    out, runs = made
    arguments = ["report", "--profile=smoke", f"--out={out}", f"--runs-dir={runs}"]
    program = (
        f"import sys; from dlcvlib.report.cli import main; assert main({arguments}) == 0; "
        "large = {'torch', 'pandas', 'PIL', 'matplotlib', 'nbconvert', 'typst'}; "
        "assert not large & set(sys.modules), large & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


# --- which notebooks --------------------------------------------------------------------------


def test_a_chapter_selects_all_of_its_problems():
    assert [name[0] for name in uptodate.chosen(["2"])] == ["2"] * 4
    assert list(uptodate.chosen(["3-1", "4"])) == ["3-1", "4-1", "4-2", "4-3", "4-4"]
    assert list(uptodate.chosen([])) == PROBLEMS


def test_missing_or_repeated_problems_are_named(small):
    small.write(p1_1=[GOOD], p1_2=[GOOD])
    with pytest.raises(UserError, match=r"unknown problem 9-9 \(there are: 1-1, 1-2;"):
        uptodate.chosen(["9-9"], small.folder)
    (small.folder / "1-2-copy.ipynb").touch()
    with pytest.raises(UserError, match=r"of a problem: 1-2-copy\.ipynb, 1-2-test\.ipynb$"):
        small.plan()


MAGICS = ["%matplotlib inline", "!ls", "files = !ls", "%%bash\necho $(x", "len?", "x = = 1"]


def test_magics_do_not_end_the_search_for_imports(small):
    """A cell that is not Python even then imports nothing; the others count."""
    small.write(p1_1=[*MAGICS, "%matplotlib inline\nfrom dlcvlib.evaluation import metrics"])
    (task,) = small.plan()
    assert "evaluation/metrics" in task.identity["code"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"cells": 1}', "<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> theirs\n"]
)
def test_an_unreadable_notebook_is_a_notice_and_the_others_run(small, text, capsys):
    small.write(p1_1=[GOOD], p1_2=[GOOD])
    broken = small.folder / "1-1-test.ipynb"
    broken.write_text(text)
    assert f"1-1 runs: {broken} is not a readable notebook: " in uptodate.explain(small.plan())
    if text == "":  # the report itself is the same for all of them
        assert not small.make()
        output = capsys.readouterr()
        assert f"1-1 failed: {broken} is not a readable notebook" in output.err
        assert "1-2 failed" not in output.err
        assert "is not a readable notebook" in small.results()["1-1"]["failed"]
        page = BeautifulSoup((small.out / "report.html").read_text(), "html.parser")
        assert len(page.select(".failed")) == 2  # on the first page and in its place


# --- what fails -------------------------------------------------------------------------------


@pytest.mark.usefixtures("unrendered")
def test_each_way_to_fail_names_the_cell_and_the_others_run(small, capsys):
    hangs, magics = "import threading; threading.Event().wait()", "%matplotlib inline"
    small.write(
        p1_1=["1", "import sys; sys.exit(0)", "2"],
        p1_2=["1", "import os; os._exit(1)", "2"],
        p1_3=["1", hangs],
        p1_4=["raise ValueError('<b>')"],
        p1_5=[magics, "found = !echo 7", "assert found == ['7']"],
    )
    assert not small.make(cell_timeout=5)
    error = capsys.readouterr().err
    assert "1-1 failed: the cell 'import sys; sys.exit(0)' ended with SystemExit: 0" in error
    assert "1-2 failed: the cell 'import os; os._exit(1)' ended with the kernel's death" in error
    assert f"1-3 failed: the cell {hangs!r} ran longer than 5 s (--cell-timeout)" in error
    assert "1-4 failed: the cell \"raise ValueError('<b>')\" ended with ValueError: <b>" in error
    assert "1-5 failed" not in error
    for problem in ("1-1", "1-2", "1-3", "1-4"):
        kept = small.out / "notebooks" / f"{problem}-test.failed.ipynb"
        assert str(kept) in error
        assert nbformat.read(kept, as_version=4).cells
    never = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    assert execute.unfinished(never) == "the cell '1' was never run"
    small.write(p1_4=[GOOD])
    small.make(only=["1-4"])
    assert not (small.out / "notebooks" / "1-4-test.failed.ipynb").exists()


@pytest.mark.usefixtures("unrendered")
def test_a_kernel_that_does_not_start_is_tried_again(small, monkeypatch, capsys):
    real, tried = execute.papermill.execute_notebook, []

    def colliding(*arguments, **options):
        tried.append(1)
        if len(tried) < 3:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return real(*arguments, **options)

    monkeypatch.setattr(execute.papermill, "execute_notebook", colliding)
    small.write(p1_1=[GOOD])
    assert small.make()
    assert len(tried) == 3
    (small.out / "notebooks" / "1-1-test.json").unlink()
    monkeypatch.setattr(execute, "KERNEL_STARTS", 1)
    tried.clear()
    assert not small.make()
    assert "was not run: RuntimeError: Kernel died" in capsys.readouterr().err

    def full_disk(source, target, **_):
        Path(target).write_text('{"cells": [')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(execute.papermill, "execute_notebook", full_disk)
    assert not small.make()
    assert "was not run: OSError: [Errno 28] No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["notebooks/mine", "figures/mine", "report.html", "report.pdf", "results.json"]
)
def test_files_that_no_report_created_are_not_overwritten(small, name):
    small.write(p1_1=[GOOD])
    mine = small.out / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"version": 1}')
    with pytest.raises(UserError, match=f"{name.removesuffix('/mine')} is no report's"):
        small.make()
    assert [path for path in small.out.rglob("*") if path.is_file()] == [mine]


def test_invalid_output_folders(small):
    small.write(p1_1=[GOOD])
    small.out.write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write to"):
        small.make()
    small.out = small.folder.parent  # the project's own
    (small.out / execute.MARK).touch()
    before = {path: path.read_bytes() for path in small.folder.iterdir()}
    with pytest.raises(UserError, match="name another folder"):
        small.make()
    assert {path: path.read_bytes() for path in small.folder.iterdir()} == before


@pytest.mark.usefixtures("unrendered")
def test_braces_in_a_path_are_literal(small):
    small.out = small.out.parent / "{seed} {x}" / "report"
    small.folder = small.folder.parent / "{y}"
    small.write(p1_1=[GOOD])
    assert small.make()


# --- pages on the way, side by side -----------------------------------------------------------


@pytest.fixture
def two_chapters(monkeypatch):
    """A second chapter with the first one's parameters."""
    chapters = {"vae": schema.VAEParams, "gan": schema.VAEParams}
    monkeypatch.setattr(uptodate, "CHAPTERS", chapters)


def make_two(small, smoke, tmp_path, **arguments):
    chosen = smoke(runs_dir=str(tmp_path / "runs"))
    return execute.make_report(
        {"vae": chosen, "gan": chosen},
        {"vae": "f", "gan": "f"},
        profile="smoke",
        out=small.out,
        notebooks=small.folder,
        **arguments,
    )


def test_the_page_is_readable_as_chapters_finish(small, smoke, tmp_path, two_chapters, monkeypatch):
    """The second chapter's notebook waits until the first chapter's page has been written."""
    os.mkfifo(written := tmp_path / "written")
    pipe = os.open(written, os.O_RDWR)  # so that neither side waits for the other to open it

    def noted(*arguments, **options):
        run_in_subprocess(*arguments, **options)
        os.write(pipe, b"\n")

    monkeypatch.setattr(execute, "run_in_subprocess", noted)
    waiting = f"""\
from pathlib import Path
open({str(written)!r}).readline()
assert "p1_1" in Path({str(small.out / "report.html")!r}).read_text()
"""
    small.write(p1_1=[GOOD], p2_1=[waiting])
    assert make_two(small, smoke, tmp_path, cell_timeout=60)
    os.close(pipe)
    text = (small.out / "report.html").read_text()
    assert "p1_1" in text
    assert "p2_1" in text


def test_a_failing_preview_page_stops_nothing(
    small, smoke, tmp_path, two_chapters, monkeypatch, capsys
):
    def failing(function, *arguments, whole):
        if not whole:
            raise UserError("no space left")

    monkeypatch.setattr(execute, "run_in_subprocess", failing)
    small.write(p1_1=[GOOD], p2_1=[GOOD])
    assert make_two(small, smoke, tmp_path)
    assert "no page yet: no space left" in capsys.readouterr().out


@pytest.mark.usefixtures("unrendered", "two_chapters")
@pytest.mark.parametrize("problems", [("p1_1", "p2_1"), ("p1_1", "p1_2")])
def test_notebooks_run_side_by_side(small, smoke, tmp_path, problems):
    """Of two chapters, or of one if no other is left: each waits until the other opens a pipe."""
    os.mkfifo(pipe := tmp_path / "pipe")
    ends = [[f"open({str(pipe)!r}, 'w').close()"], [f"open({str(pipe)!r}).close()"]]
    small.write(**dict(zip(problems, ends, strict=True)))
    assert make_two(small, smoke, tmp_path, jobs=2, cell_timeout=60)


def order_of_six(monkeypatch, tmp_path, jobs, held=None):
    """Two notebooks of each of three chapters; the one held ends when all others have."""
    started, others_done = [], threading.Event()

    def run(task, *_):
        started.append(task.problem)
        if task.problem == held:
            others_done.wait(60)
        return execute.Outcome(task, 0.0)

    monkeypatch.setattr(execute, "reuse", lambda task: None)
    monkeypatch.setattr(execute, "execute", run)
    chapters = {"a": "vae", "b": "gan", "c": "pixelda"}
    tasks = [SimpleNamespace(chapter=chapters[c], problem=c + n) for c in chapters for n in "12"]
    board = execute._Board(execute.tqdm(disable=True), tmp_path)
    for number, _ in enumerate(execute._run(tasks, jobs, None, board), 1):
        if number == 5:
            others_done.set()
    return started


def test_one_job_runs_notebooks_in_order(monkeypatch, tmp_path):
    assert order_of_six(monkeypatch, tmp_path, 1) == ["a1", "a2", "b1", "b2", "c1", "c2"]


def test_free_workers_start_a_chapter_and_finally_help_with_another(monkeypatch, tmp_path):
    order = order_of_six(monkeypatch, tmp_path, 2, held="c1")
    assert [problem for problem in order if problem != "c1"] == ["a1", "a2", "b1", "b2", "c2"]


@pytest.mark.parametrize(
    ("cores", "gpu", "jobs"), [(2, False, 2), (8, False, 4), (1, False, 1), (8, True, 1)]
)
def test_how_many_notebooks_at_once(monkeypatch, cores, gpu, jobs):
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    assert execute.side_by_side(gpu) == jobs


@pytest.mark.usefixtures("unrendered")
def test_a_single_notebook_uses_all_cores(small, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    small.write(p1_1=["import os", "assert os.environ['OMP_NUM_THREADS'] == '7'"])
    assert small.make(jobs=4)


@pytest.mark.parametrize(("asked", "had"), [("", "4"), ("1", "1"), ("7", "4")])
def test_several_notebooks_share_the_cores(monkeypatch, tmp_path, asked, had):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    with execute._kernel_environment(2, tmp_path):
        assert os.environ["OMP_NUM_THREADS"] == had
    assert os.environ["OMP_NUM_THREADS"] == asked


def test_peak_memory_is_that_of_the_run_that_made_the_notebook(small, monkeypatch):
    peaks = []
    monkeypatch.setattr(execute, "run_in_subprocess", lambda *a, **_: peaks.append(a[5]["memory"]))
    small.write(p1_1=[GOOD])
    for in_use in (5e9, 1e9):
        monkeypatch.setattr(execute, "resident_bytes", lambda in_use=in_use: in_use)
        assert small.make()
    small.write(p1_1=[GOOD], p1_2=[GOOD])
    assert small.make()
    assert peaks == [5e9, 5e9, 5e9]
    records = [json.loads(path.read_text()) for path in sorted(small.out.glob("notebooks/*.json"))]
    assert [record["memory"] for record in records] == [5e9, 1e9]
