"""The command line: help, errors, exit statuses, and that help is quick to come."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dlcvlib.utils.process
import pytest

from dlcvlib.report import cli
from dlcvlib.report.cli import main
from dlcvlib.training import loop
from dlcvlib.utils import environment, storage
from dlcvlib.utils.environment import ROOT


@pytest.mark.parametrize(
    "words", [["--help"], ["report", "--help"], ["train", "--help"], ["params", "--help"]]
)
def test_help(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert "usage: python -m dlcvlib" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from dlcvlib.report.cli import parser; parser().format_help(); "
        "assert not {'torch', 'numpy', 'pandas', 'pydantic', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "vae.kld_wieght=1"], "did you mean 'kld_weight'"),
        (["--set", "vae.steps=-1"], "'steps'"),
        (["--set", "steps=1"], "expected CHAPTER.NAME=VALUE"),
        (["--data", "folder:/nowhere"], "no folder /nowhere"),
        (["--data", "cats"], "none of embedded"),
    ],
)
def test_bad_arguments_give_one_line_and_status_2(words, message, capsys, tmp_path):
    assert main(["report", "--out", str(tmp_path / "report"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--jobs", "--cell-timeout"])
def test_jobs_and_seconds_are_one_or_more(option, capsys):
    with pytest.raises(SystemExit):
        main(["report", option, "0"])
    assert f"argument {option}: 0 is not 1 or more" in capsys.readouterr().err


def test_what_can_be_refused_is_before_any_data_are_prepared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dlcvlib.utils.process, "apart", lambda *_: pytest.fail("data are prepared"))
    words = ["report", "--profile", "smoke", "--out", str(tmp_path)]
    assert main([*words, "--only", "1-33"]) == 2
    assert "no problem 1-33" in capsys.readouterr().err
    (tmp_path / "report.pdf").touch()
    assert main(words) == 2
    assert "report.pdf is no report's" in capsys.readouterr().err


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_report", lambda arguments: seen.append(arguments) or 0)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in (tmp_path, ROOT):
        monkeypatch.chdir(folder)
        assert main(["report", "--data", "folder:~/mine", "--out", "~/made"]) == 0
    assert {arguments.data for arguments in seen} == {f"folder:{tmp_path / 'home' / 'mine'}"}
    assert {arguments.out for arguments in seen} == {tmp_path / "home" / "made"}


def test_paths_of_one_chapter_are_of_where_they_were_typed_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["params", "vae", "--set", "vae.data=folder:mine", "--set", "vae.runs_dir=made"]
    assert main([*words, "--set", "gan.data=embedded"]) == 0
    output = capsys.readouterr().out
    assert f"data: folder:{tmp_path / 'mine'}  #" in output
    assert f"runs_dir: {tmp_path / 'made'}  #" in output


@pytest.mark.parametrize("nothing", ["", ","])
def test_only_nothing_is_not_everything(nothing, capsys):
    assert main(["report", "--only", nothing]) == 2
    assert capsys.readouterr().err == (
        "error: --only names no problem: such as --only 1-1,1-3 or --only 2\n"
    )


def test_params_shows_values_and_meaning(capsys):
    assert main(["params", "vae", "--profile", "original"]) == 0
    output = capsys.readouterr().out
    assert "latent_dim: 1024  # length of the latent vector z" in output


def test_params_can_be_read_back(capsys):
    import yaml

    from dlcvlib.config import profiles

    main(["params", "vae", "--profile", "quick"])
    assert yaml.safe_load(capsys.readouterr().out) == profiles.load("quick", "vae").model_dump()


@pytest.mark.parametrize(("chapter", "kind"), [("vae", "vae"), ("gan", "dcgan")])
def test_train_twice_is_train_once(chapter, kind, tmp_path, monkeypatch):
    words = ["train", chapter, "--profile", "smoke", "--runs-dir", str(tmp_path)]
    assert main(words) == 0
    assert len(list(tmp_path.glob(f"{kind}-*/model.safetensors"))) == 1
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert main(words) == 0
    assert len(list(tmp_path.glob(f"{kind}-*/model.safetensors"))) == 1


@pytest.mark.parametrize(
    ("chapter", "kinds"),
    [("dann", {"classifier": 6, "dann": 6}), ("pixelda", {"pixelda": 6, "adamatch": 6})],
)
def test_a_chapter_of_digits_is_trained_over_its_pairs_and_seeds(chapter, kinds, tmp_path):
    words = ["train", chapter, "--profile", "smoke", "--runs-dir", str(tmp_path)]
    assert main(words) == 0
    found = [path.parent.name.split("-")[0] for path in tmp_path.glob("*/model.safetensors")]
    assert {kind: found.count(kind) for kind in kinds} == kinds


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
"""Several processes without GPUs, which `accelerate` takes for granted."""


@pytest.mark.parametrize("chapter", ["vae", "gan", "pixelda"])
def test_several_processes_train_one_run(chapter, tmp_path, monkeypatch):
    """As with `accelerate launch`; a single process finds what they have trained."""
    words = ["train", chapter, "--profile", "smoke", "--runs-dir", str(tmp_path)]
    words += ["--set", f"{chapter}.precision=fp32"]
    if chapter == "pixelda":  # with all methods of chapter 3
        words += ["--set", f'{chapter}.pairs=["usps->mnistm"]', "--set", f"{chapter}.seeds=[0]"]
    program = tmp_path / "on_cpu.py"
    program.write_text(ON_CPU)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["--local-addr=127.0.0.1"]  # the host's own name may lead nowhere
    done = subprocess.run(
        [*command, str(program), *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    records = [storage.read_sealed(path) for path in tmp_path.glob("*-*/provenance.json")]
    assert records
    assert {record["processes"] for record in records} == {2}
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert main(words) == 0


def chapters_of(words):
    arguments = cli.parser().parse_args(words)
    cli._go_to_the_project(arguments)
    return cli._parameters(arguments)


def test_what_is_changed_in_chapter_1_is_changed_where_2_4_compares():
    words = ["report", "--seed", "3", "--set", "vae.kld_weight=0.5", "--runs-dir", "elsewhere"]
    chapters = chapters_of(words)
    assert chapters["gan"].vae == chapters["vae"]
    assert chapters["gan"].vae_changes == {"seed": 3, "ablation_seeds": [3, 4], "kld_weight": 0.5}
    assert chapters["vae"].ablation_seeds == chapters["gan"].ablation_seeds == [3, 4]


def test_what_a_profile_changes_in_chapter_1_stays_changed(monkeypatch, tmp_path):
    from dlcvlib.config import paths

    shutil.copytree(paths.PARAMS, tmp_path / "params")
    profile = tmp_path / "params" / "smoke" / "gan.yaml"
    profile.write_text(profile.read_text() + "\nvae_changes: {kld_weight: 0.5}\n")
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params")
    words = ["report", "--profile", "smoke", "--set", "vae.latent_dim=7"]
    vae = chapters_of(words)["gan"].vae
    assert (vae.kld_weight, vae.latent_dim) == (0.5, 7)


def test_what_is_changed_in_chapter_3_is_changed_where_chapter_4_compares():
    words = ["report", "--seed", "3", "--set", "dann.channels=[4, 8]", "--data", "folder:x"]
    chapters = chapters_of(words)
    assert chapters["pixelda"].dann == chapters["dann"]
    assert chapters["pixelda"].seeds == [3, 4]
    assert chapters["pixelda"].settings(3).channels == [4, 8]


def test_papermill_refuses_an_unknown_parameter(tmp_path):
    """As the README has it: one notebook by itself; papermill would only warn."""
    from dlcvlib.config.paths import NOTEBOOKS, PARAMS

    (notebook,) = NOTEBOOKS.glob("1-3-*.ipynb")
    command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "out.ipynb")]
    command += ["-f", str(PARAMS / "smoke" / "vae.yaml"), "-p", "kld_wieght", "1e-2"]
    command += ["-p", "runs_dir", str(tmp_path / "runs"), "--no-progress-bar"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert "unknown parameter 'kld_wieght': did you mean 'kld_weight'?" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_environment_has_what_the_project_asks_for():
    assert environment.missing() == []
    assert environment.missing("test") == []


def test_what_is_missing_is_named(monkeypatch):
    versions = {"torch": "1.0"}
    real = environment.version
    monkeypatch.setattr(environment, "version", lambda name: versions.get(name) or real(name))
    (unmet,) = environment.missing()
    assert unmet.startswith("torch")


def test_a_version_that_was_not_tested_is_told(monkeypatch):
    assert not any(line.startswith("pandas ") for line in environment.deviations())
    real = environment.version
    versions = {"pandas": "0.1"}
    monkeypatch.setattr(environment, "version", lambda name: versions.get(name) or real(name))
    (line,) = [line for line in environment.deviations() if line.startswith("pandas ")]
    assert line.startswith("pandas 0.1 (tested with ==")


def test_run_all_passes_on():
    done = subprocess.run(["bash", "-n", str(ROOT / "run_all.sh")], check=True)
    assert done.returncode == 0
    text = subprocess.run(
        [str(ROOT / "run_all.sh"), "--help"], capture_output=True, text=True, check=True
    )
    assert "smoke|quick|full|original" in text.stdout


def test_paths_are_from_where_they_were_typed(tmp_path, monkeypatch):
    """The work is done in the project, as the notebooks' kernels do theirs."""
    seen = []
    monkeypatch.setattr(cli, "_report", lambda arguments: seen.append(arguments) or 0)
    monkeypatch.chdir(tmp_path)
    typed = ["report", "--data", "folder:mine", "--runs-dir", str(tmp_path / "models")]
    typed += ["--out", "made"]
    assert main(typed) == 0
    assert Path.cwd() == ROOT
    (arguments,) = seen
    assert arguments.data == f"folder:{tmp_path / 'mine'}"
    assert arguments.out == tmp_path / "made"
    assert Path(arguments.runs_dir) == tmp_path / "models"


def test_an_out_that_was_not_typed_is_the_projects(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_report", lambda arguments: seen.append(arguments) or 0)
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0
    assert seen[0].out == Path("report")


def test_paths_typed_in_the_project_are_left_as_they_are(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_report", lambda arguments: seen.append(arguments) or 0)
    monkeypatch.chdir(ROOT)
    assert main(["report", "--data", "folder:mine", "--out", "some/where"]) == 0
    assert (seen[0].data, seen[0].out, seen[0].runs_dir) == (
        "folder:mine",
        Path("some/where"),
        None,
    )
