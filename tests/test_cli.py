"""The command line: help, errors, exit statuses, and that help is fast."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import start

import dlcvlib.utils.process
from dlcvlib.config import profiles
from dlcvlib.config.paths import NOTEBOOKS, PARAMS, ROOT
from dlcvlib.report import cli, provenance
from dlcvlib.report.cli import main
from dlcvlib.training import loop, tracking
from dlcvlib.utils import environment, storage


def python(*words, **options):
    """Run Python with some arguments: its exit status, and what it says on each stream."""
    with start(*words, **options) as process:
        said = process.communicate(timeout=300)
    return process.returncode, *said


@pytest.mark.parametrize("words", [[], ["report"], ["train"], ["params"]])
def test_help_imports_nothing_heavy(words):
    status, output, error = python("-X", "importtime", "-m", "dlcvlib", *words, "--help")
    assert status == 0
    assert output.startswith("usage: python -m dlcvlib")
    imported = set(re.findall(r"\| +(\w+)$", error, re.MULTILINE))
    assert "argparse" in imported
    assert not {"torch", "numpy", "pandas", "pydantic", "matplotlib"} & imported


def test_jobs_are_at_least_one(capsys):
    with pytest.raises(SystemExit):
        main(["report", "--jobs", "0"])
    assert "argument --jobs: 0 is not 1 or more" in capsys.readouterr().err


BAD = {
    "--set=vae.kld_wieght=1": "did you mean 'kld_weight'",
    "--log-with=tensorbord": "did you mean 'tensorboard'",
    "--log-with=mlflow": "mlflow is not installed: pip install mlflow",
    "--only=": "unknown problem '' (there are: 1-1, ",
    "--out={taken}": "report.pdf is no report's",
    "--out={taken}/report.pdf/new": "report.pdf is not a folder that can be written to",
}


@pytest.mark.parametrize(("option", "message"), BAD.items())
def test_bad_arguments_give_one_line_and_status_2(option, message, capsys, tmp_path, monkeypatch):
    """Before any data are prepared."""
    monkeypatch.setattr(dlcvlib.utils.process, "run_in_subprocess", None)
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    (tmp_path / "report.pdf").touch()
    assert main(["report", f"--out={tmp_path}/report", option.format(taken=tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


# --- parameters -------------------------------------------------------------------------------


def chapters_of(*words):
    return cli.chapters(cli.parser().parse_args(["report", *words]))


def test_paths_are_relative_to_where_they_were_typed(tmp_path, monkeypatch):
    """Kernels run in the project, and `~` is the home directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = ["--data=folder:mine", "--set=vae.data=torchvision:~/mine", "--set=gan.data=embedded"]
    found = chapters_of(*words, "--runs-dir=models", "--set=gan.runs_dir=made")
    assert found["dann"].data == found["pixelda"].dann.data == f"folder:{tmp_path / 'mine'}"
    assert found["vae"].data == f"torchvision:{tmp_path / 'home' / 'mine'}"
    assert found["gan"].vae.data == "embedded"
    assert Path(found["vae"].runs_dir) == tmp_path / "models"
    assert Path(found["gan"].runs_dir) == ROOT / "made"  # as in a notebook
    for typed, meant in (("made", tmp_path / "made"), ("~/made", tmp_path / "home" / "made")):
        assert Path(cli.parser().parse_args(["report", "--out", typed]).out) == meant
    assert Path(cli.parser().parse_args(["report"]).out) == ROOT / "report"


def test_params_shows_values_and_meaning_and_can_be_read_back(capsys):
    assert main(["params", "vae", "--profile", "original"]) == 0
    output = capsys.readouterr().out
    assert "latent_dim: 1024  # length of the latent vector z" in output
    assert yaml.safe_load(output) == profiles.load("original", "vae").model_dump()


def test_changes_to_a_chapter_reach_the_chapters_that_use_it():
    found = chapters_of("--seed=3", "--set=vae.kld_weight=0.5", "--set=dann.channels=[4, 8]")
    assert found["gan"].vae == found["vae"]
    assert found["gan"].vae_changes == {
        "seed": 3,
        "ablation_seeds": [3, 4, 5, 6, 7],
        "kld_weight": 0.5,
    }
    assert found["vae"].ablation_seeds == found["gan"].ablation_seeds == [3, 4, 5, 6, 7]
    assert found["pixelda"].dann == found["dann"]
    assert found["pixelda"].seeds == [3, 4, 5]
    assert found["pixelda"].settings(3).channels == [4, 8]


PAPERMILL = [("kld_wieght", "1e-2", "unknown parameter 'kld_wieght': did you mean 'kld_weight'?")]
PAPERMILL += [("data", "folder:../mine", "there is no folder {}/mine")]


@pytest.mark.parametrize(("name", "value", "message"), PAPERMILL)
def test_papermill_runs_a_notebook_by_itself(tmp_path, name, value, message):
    """Paths of data are of where it was typed, but runs lie where the project keeps them.

    Of an unknown parameter papermill would only warn.
    """
    (notebook,) = NOTEBOOKS.glob("1-3-*.ipynb")
    words = [notebook, "out.ipynb", "-f", PARAMS / "smoke" / "vae.yaml", "-p", name, value]
    status, _, error = python("-m", "papermill", *words, cwd=tmp_path)
    assert status != 0
    assert message.format(tmp_path.parent) in error
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


# --- train ------------------------------------------------------------------------------------

# Chapter -> method -> models that `train` trains per pair and seed.
MODELS = {
    "gan": {"dcgan": 1},
    "dann": {"dann": 1, "classifier": 2},
    "pixelda": {"dann": 1, "classifier": 2, "pixelda": 1, "adamatch": 1},
}


# Several processes without GPUs, which `accelerate` assumes.
ON_CPU = """
import sys
from pathlib import Path

from accelerate import PartialState

from dlcvlib.training import device
from dlcvlib.report.cli import main

PartialState(cpu=True)
status = main()
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), f"{threads} may abort this process at its end"
sys.exit(status)
"""


@pytest.mark.parametrize(("chapter", "processes"), [("gan", 2), ("dann", 1), ("pixelda", 2)])
def test_train_trains_a_chapters_main_runs_once(chapter, processes, tmp_path, monkeypatch, capsys):
    """Also with `accelerate launch`; a single process then loads what several have trained."""
    program = tmp_path / "on_cpu.py"
    program.write_text(ON_CPU)
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words += ["--local-addr=127.0.0.1", program]  # the host's own name may lead nowhere
    train = ["train", chapter, "--profile=smoke", f"--runs-dir={tmp_path}"]
    train.append(f"--set={chapter}.precision=fp32")
    if chapter != "gan":
        train += [f"--set={chapter}.pairs=[usps->mnistm]", f"--set={chapter}.seeds=[0]"]
    status, _, error = python(*words, *train, ACCELERATE_USE_CPU="true")
    assert status == 0, error
    records = {path.parent.name: storage.read_sealed(path) for path in tmp_path.glob("*-*/prov*")}
    assert {record["processes"] for record in records.values()} == {processes}
    kinds = Counter(name.split("-")[0] for name in records)
    assert MODELS[chapter].items() <= kinds.items()
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert main(train) == 0
    assert capsys.readouterr().out.count(" steps in ") == sum(MODELS[chapter].values())


# --- the environment --------------------------------------------------------------------------


def test_missing_or_untested_packages_are_named(monkeypatch):
    assert environment.missing() == environment.missing("test") == []
    assert not any(line.startswith("pandas ") for line in environment.deviations())
    real, versions = environment.version, {"torch": "1.0", "pandas": "99.1"}
    monkeypatch.setattr(environment, "version", lambda name: versions.get(name) or real(name))
    (unmet,) = environment.missing()
    assert unmet.startswith("torch>=")
    (line,) = [line for line in environment.deviations() if line.startswith("pandas ")]
    assert line.startswith("pandas 99.1 (tested with ==")


def test_a_python_without_the_packages_says_how_to_get_them():
    status, _, error = python("-S", "-m", "dlcvlib", "--help", PYTHONPATH="")
    assert (status, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: {sys.executable} lacks ")
    assert "use ./run_all.sh" in error


def test_the_commit_is_of_the_project_itself(tmp_path, monkeypatch):
    """Not of a repository around it, or of one that a hook's environment names."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.setattr(provenance, "ROOT", root)

    def git(folder, *words):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", folder, *words]
        return subprocess.check_output(command, text=True).strip()

    for folder, known in ((tmp_path, "not under version control"), (root, "")):
        git(folder, "init")
        git(folder, "commit", "--allow-empty", "--message", folder.name)
        assert provenance._commit().startswith(known)
    own = git(root, "rev-parse", "--short=12", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert provenance._commit() == own
    (root / "new").touch()
    assert provenance._commit() == f"{own} with local changes"
    monkeypatch.setenv("PATH", "")
    assert provenance._commit().startswith("unknown")
