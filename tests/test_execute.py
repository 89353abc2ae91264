"""Running notebooks: which and why, in parallel or not, what fails, and what is reused."""

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
    assert explained()[0].startswith(f"1-1 runs: {target} is damaged")
    target.write_text(whole)
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
    with monkeypatch.context() as patch:
        real = fingerprints.versions
        patch.setattr(fingerprints, "versions", lambda *names: real(*names) | {"torch": "0"})
        assert reasons() == ["versions changed: torch"]
    real = storage.sha256
    for name in ("report.mplstyle", "columns.yaml", "original_report.yaml"):
        monkeypatch.setattr(
            storage, "sha256", lambda path, n=name: "another" if path.name == n else real(path)
        )
        assert reasons() == [f"files changed: {name}"]
    (task,) = small.plan()
    record = storage.sealed(task.record)
    del record["identity"]["code"]
    storage.write_sealed(task.record, record)
    assert reasons() == [uptodate.OLDER]


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
    for part, why in (("accelerate", "versions changed: accelerate"), ("code", uptodate.OLDER)):
        storage.write_sealed(mark, {name: record[name] for name in record if name != part})
        assert uptodate.explain_runs(tmp_path).splitlines()[1] == f"{run.name} is stale: {why}"
    mark.unlink()
    storage.write_sealed(tmp_path / run.name / "checkpoint.json", {"step": 7})
    assert uptodate.explain_runs(tmp_path).splitlines()[1] == f"{run.name} continues at step 7"


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


def test_missing_or_repeated_problems_are_named(small):
    small.write(p1_1=[GOOD], p1_2=[GOOD])
    with pytest.raises(UserError, match=r"unknown problem '9-9' \(there are: 1-1, 1-2;"):
        uptodate.chosen(["9-9"], small.folder)


@pytest.mark.parametrize(
    "name",
    [
        *("1-2-test-Copy1", "1-2-test_old", "1-2-test2", "1-2", "1-2_x", "1-2 x"),
        *("Copy of 1-2-test", "1-2-test (1)", "old_1-2", "1-2-test (conflicted copy)"),
    ],
)
def test_two_files_that_claim_a_problem_are_named(small, name):
    small.write(p1_2=[GOOD])
    (small.folder / f"{name}.ipynb").touch()
    with pytest.raises(UserError, match="more than one notebook of a problem: ") as error:
        small.plan()
    assert {f"{name}.ipynb", "1-2-test.ipynb"} == {
        *str(error.value).rpartition(": ")[2].split(", ")
    }
    (small.folder / "1-2-test.ipynb").unlink()
    assert [task.problem for task in small.plan()] == ["1-2"]


def test_notebooks_of_no_problem_are_left_alone(small):
    small.write(p1_1=[GOOD])
    for name in ["Untitled", "1-10-x", "5-1-x", "notes-2024-1-2", "12-3", ".1-1-x"]:
        (small.folder / f"{name}.ipynb").touch()
    (small.folder / ".ipynb_checkpoints").mkdir()
    assert [task.problem for task in small.plan()] == ["1-1"]


def test_magics_do_not_end_the_search_for_imports(small):
    magics = ["%matplotlib inline", "!ls", "files = !ls", "%%bash\necho $(x", "len?"]
    small.write(
        p1_1=[*magics, "%matplotlib inline\nfrom dlcvlib.evaluation import metrics"],
        p1_2=["x = = 1", "%%time\nfrom dlcvlib.evaluation import latent", "s = '\0"],
    )
    first, second = small.plan()
    assert "evaluation/metrics" in first.identity["code"]
    assert "evaluation/latent" in second.identity["code"]


CONFLICT = "<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> theirs\n"


@pytest.mark.usefixtures("unrendered")
def test_an_unreadable_notebook_costs_only_itself(small, capsys):
    small.write(p1_1=[GOOD, "'refers to @fig-that-may-be-there'"])
    texts = ["", "{", "[]", '{"cells": 1}', CONFLICT, '{"nbformat": 9}', "\xff"]
    for number, text in enumerate(texts, 2):
        (small.folder / f"1-{number}-x.ipynb").write_text(text, encoding="latin-1")
    (small.folder / "2-1-x.ipynb").mkdir()
    (small.folder / "2-2-x.ipynb").symlink_to("gone")
    chosen = small.chosen({})
    chosen |= {"gan": profiles.load("smoke", "gan")}
    plan = uptodate.plan(chosen, {"vae": "f", "gan": "f"}, [], small.out, small.folder)
    assert [task.title for task in plan[1:]] == [task.target.stem for task in plan[1:]]
    for number in (1, 2):
        (small.folder / f"2-{number}-x.ipynb").rename(small.folder / f"1-{number}-y")
    assert not small.make()
    output = capsys.readouterr()
    failed = re.findall(r"(1-\d) failed: \S+ is not a readable notebook: \S", output.err)
    assert failed == [f"1-{number}" for number in range(2, 2 + len(texts))]
    assert "1-1 failed" not in output.out
    assert "is not a readable notebook" in uptodate.explain(small.plan())


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


@pytest.mark.usefixtures("unrendered")
def test_each_way_to_fail_names_the_cell_and_the_others_run(small, capsys):
    hangs, magics = "import threading; threading.Event().wait()", "%matplotlib inline"
    small.write(
        p1_1=["1", "import sys; sys.exit(0)", "2"],
        p1_2=["1", "import os; os._exit(1)", "2"],
        p1_3=["1", hangs],
        p1_4=["raise ValueError('<b>')"],
        p1_5=[magics, "found = !echo 7", "assert found == ['7']"],
        p1_6=["#| label: fig-a\n#| fig-cap: A\n#| fig-alt: A\n1"],
    )
    assert not small.make(cell_timeout=5)
    error = capsys.readouterr().err
    assert "1-1 failed: the cell 'import sys; sys.exit(0)': SystemExit: 0" in error
    assert "1-2 failed: the cell 'import os; os._exit(1)': Kernel died" in error
    assert f"1-3 failed: the cell {hangs!r}: ran longer than 5 s (--cell-timeout)" in error
    assert "1-4 failed: the cell \"raise ValueError('<b>')\": ValueError: <b>" in error
    assert "1-5 failed" not in error
    assert "1-6 failed: the cell '#| label: fig-a': shows no figure or table" in error
    for problem in ("1-1", "1-2", "1-3", "1-4", "1-6"):
        kept = small.out / "notebooks" / f"{problem}-test.failed.ipynb"
        assert str(kept) in error
        assert nbformat.read(kept, as_version=4).cells


@pytest.mark.usefixtures("unrendered")
def test_what_a_notebook_used_is_what_was_asked_or_it_fails(small, capsys, smoke):
    own = "\n".join(f"{k}: object = {v!r}" for k, v in smoke().model_dump().items())
    begin = "from dlcvlib.config.schema import VAEParams\n"
    begin += "from dlcvlib.report.notebook import begin\nparams = begin(VAEParams, In)"
    stale = "# Parameters\nsteps = 999"
    small.write(p1_1=[own, begin], p1_2=[own, begin], p1_3=[own, begin], p1_4=[own, stale, begin])
    tagged = {"1-1": 2, "1-2": None, "1-3": 3, "1-4": 2}
    for problem, place in tagged.items():
        path = small.folder / f"{problem}-test.ipynb"
        book = nbformat.read(path, as_version=4)
        for number, cell in enumerate(book.cells):
            cell.metadata.tags = ["parameters"] if number == place else []
        del book.cells[1]  # the one of `small`
        nbformat.write(book, path)
    assert not small.make({"steps": 7})
    error = capsys.readouterr().err
    assert "1-1 failed" not in error
    assert re.search("1-2 failed: .* tag it `parameters`", error)
    assert re.search("1-3 failed: .* uses another runs_dir, steps than", error)
    assert re.search("1-4 failed: .* uses another steps than", error)


@pytest.mark.usefixtures("unrendered")
def test_neither_start_up_files_nor_the_backend_of_the_user_count(small, monkeypatch, tmp_path):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-mine.py").write_text("DATA = 1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    plot = "from matplotlib import pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    bar = "import sys, warnings\nfrom tqdm import tqdm\nfor _ in tqdm([1]): pass\n"
    warn = "print('1%\\r2%\\rdone')\nwarnings.warn('careful')"
    wait = "print('runs/x is being trained by process 1; waiting for it\\nafter', file=sys.stderr)"
    small.write(p1_1=["assert 'DATA' not in globals()", plot, bar + warn, wait])
    assert small.make()
    (path,) = (small.out / "notebooks").glob("*.ipynb")
    shown = [o for c in nbformat.read(path, 4).cells[1:] for o in c.outputs]
    assert [o.data.keys() & {"image/png"} for o in shown if "data" in o] == [{"image/png"}]
    text = "".join(o.text for o in shown if "text" in o)
    assert "careful" in text
    assert "done" in text
    assert text.endswith("after\n")
    assert "waiting" not in text
    assert "%" not in text.replace("%\\r", "")


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
    with pytest.raises(UserError, match="is not a folder that can be written to"):
        small.make()
    small.out = small.folder.parent  # the project's own
    (small.out / execute.MARK).touch()
    before = {path: path.read_bytes() for path in small.folder.iterdir()}
    with pytest.raises(UserError, match="name another folder"):
        small.make()
    assert {path: path.read_bytes() for path in small.folder.iterdir()} == before


# --- pages on the way, side by side -----------------------------------------------------------


def test_the_page_is_readable_as_notebooks_finish(small, monkeypatch, capsys):
    """And one that cannot be written stops nothing."""
    pages = []

    def noted(*arguments, whole):
        run_in_subprocess(*arguments, whole=whole)
        pages.append((small.out / "report.html").read_text())
        if not whole:
            raise UserError("no space left")

    monkeypatch.setattr(execute, "run_in_subprocess", noted)
    monkeypatch.setattr(execute, "PAGE_SECONDS", 0)
    small.write(p1_1=[GOOD], p1_2=[GOOD])
    assert small.make()
    assert [("p1_1" in page, "p1_2" in page) for page in pages] == [(True, False), (True, True)]
    assert "no page yet: no space left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("jobs", "order"),
    [(1, [{"1-1"}, {"1-2"}, {"4-1"}, {"4-2"}]), (2, [{"1-1", "4-1"}, {"1-2", "4-2"}])],
)
def test_side_by_side_are_notebooks_of_different_chapters(monkeypatch, jobs, order):
    started, together = [], threading.Barrier(jobs)

    def run(task, *_):
        started.append(task.problem)
        together.wait(60)
        return 0.0

    monkeypatch.setattr(execute, "execute", run)
    problems = ("1-1", "1-2", "4-1", "4-2")
    tasks = [SimpleNamespace(problem=problem, reasons=["new"]) for problem in problems]
    assert not any(outcome.error for outcome in execute._run(tasks, jobs, None))
    assert [{*started[n : n + jobs]} for n in range(0, 4, jobs)] == order


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
def test_several_notebooks_share_the_cores(monkeypatch, asked, had):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert execute.kernel_environment(2, "status")["OMP_NUM_THREADS"] == had
