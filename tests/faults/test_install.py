"""`run_all.sh` is killed while it installs, and started twice at once; with a stand-in for pip."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import packaging
import pytest
import yaml
from conftest import ROOT, cases, poll

CASES = cases("install")


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose only dependency comes from the stand-in for pip; it prints the result."""
    shutil.copytree(Path(__file__).with_name("checkout"), tmp_path, dirs_exist_ok=True)
    for name in ("run_all.sh", "dlcvlib/utils/environment.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "stand-ins/packaging").symlink_to(Path(packaging.__file__).parent)
    # No conda, and this Python by whatever name it is looked for.
    (tmp_path / "stand-ins/bin").mkdir()
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        (tmp_path / "stand-ins/bin" / name).symlink_to(Path(sys._base_executable).resolve())
    return tmp_path


def start(checkout, *arguments, script="./run_all.sh", cwd=None, **variables):
    hidden = ("VIRTUAL_ENV", "CONDA_PREFIX", "DLCV_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    stand_ins = checkout / "stand-ins"
    environment |= {"PYTHONPATH": str(stand_ins), "PATH": f"{stand_ins / 'bin'}:/usr/bin:/bin"}
    options = {"cwd": cwd or checkout, "env": environment | variables, "start_new_session": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([script, *arguments], **options)


def run(*arguments, **options):
    """What a whole run says, to standard output and error, and its exit status."""
    process = start(*arguments, **options)
    return *process.communicate(timeout=120), process.returncode


@pytest.mark.parametrize("moment", [".venv.installing", ".venv/bin/python", "pip-runs"])
def test_killed_while_installing(checkout, moment):
    os.mkfifo(checkout / "go")  # the stand-in waits until something is written to it
    process = start(checkout)
    poll((checkout / moment).exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (checkout / "go").unlink()
    out, said, _ = run(checkout)
    assert "was interrupted; recreating it" in said
    assert out == "has 1.0\n"
    assert run(checkout) == ("has 1.0\n", "", 0)
    assert (checkout / "installed").read_text() == "installed\n"


def test_folders_of_others_are_never_removed(checkout):
    """Another folder is not an environment; another venv is installed into.

    An installation that fails ends the run, and the next begins it anew.
    """
    (checkout / "refused").write_text("install")
    elsewhere = checkout / "else where"
    _, said, status = run(checkout, DLCV_ENV=str(elsewhere))
    assert status == 1
    assert said.startswith(f"{elsewhere} is not a venv: ")
    assert [path.name for path in elsewhere.iterdir()] == ["thesis.txt"]
    (elsewhere / "pyvenv.cfg").touch()
    for _ in range(2):
        run(checkout, DLCV_ENV=str(elsewhere))
        assert (elsewhere / "thesis.txt").exists()
    # A relative name is of where it was typed; a new one is made, and anew if it is not whole.
    there = {"script": "../run_all.sh", "cwd": elsewhere, "DLCV_ENV": "new"}
    out, said, status = run(checkout, **there)
    assert (out, status) == ("", 1)
    assert said.endswith("no such package\n")
    (checkout / "refused").unlink()
    out, said, _ = run(checkout, **there)
    assert out == "has 1.0\n"
    assert "was interrupted; recreating it" in said
    assert (elsewhere / "new" / "pyvenv.cfg").is_file()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["typed"])
def test_from_anywhere_and_from_each_shell(checkout, case):
    here = checkout / "else where"
    out, said, status = run(checkout, "-c", case["typed"], script="bash", cwd=here)
    assert out.replace(str(here), "HERE").replace(str(checkout), "ROOT").startswith(case["out"])
    assert case.get("said", "") in said
    assert status == case.get("status", 0)
    assert (checkout / ".venv").exists() == out.startswith("has")


@pytest.mark.parametrize("driver", [False, True])
@pytest.mark.parametrize("conda", [None, "conda", "mamba"])
def test_without_an_nvidia_driver_torchs_cpu_build_is_tried_first(checkout, driver, conda):
    """With conda too, whose environment has what environment.yml names."""
    if conda:
        shutil.copy(checkout / "stand-ins/conda", checkout / "stand-ins/bin" / conda)
    if driver:
        (checkout / "stand-ins/bin/nvidia-smi").symlink_to("/bin/true")
    elif Path("/proc/driver/nvidia").exists() or Path("/dev/dxg").exists():
        pytest.skip("this machine has a driver")
    assert run(checkout)[0] == "has 1.0\n"
    asked = [path.read_text() for path in checkout.glob("torch")]
    assert asked == ([] if driver else ["torch==2.1+cpu torchvision==0.2+cpu"])
    assert run(checkout) == ("has 1.0\n", "", 0)
    assert (checkout / ".venv").exists() != bool(conda)
    if conda:
        whole = yaml.safe_load((ROOT / "environment.yml").read_text())
        made_of = [each for each in whole["dependencies"] if isinstance(each, str)]
        made = f"create -y -n {whole['name']} -c {whole['channels'][0]} {' '.join(made_of)}\n"
        assert (checkout / "conda").read_text() == made


def test_two_at_once_install_once(checkout):
    os.mkfifo(checkout / "go")
    first = start(checkout)
    poll((checkout / "pip-runs").exists, first)
    second = start(checkout)
    waiting = second.stderr.readline()
    assert waiting == "Another run_all.sh is installing into .venv; waiting for it.\n"
    (checkout / "go").write_text("go")
    assert first.communicate(timeout=120)[0] == "has 1.0\n"
    assert second.communicate(timeout=120) == ("has 1.0\n", "")
    assert (checkout / "installed").read_text() == "installed\n"
