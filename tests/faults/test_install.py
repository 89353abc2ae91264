"""`run_all.sh` is killed while it installs, and started twice at once; with a stand-in for pip."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import packaging
import pytest
import yaml

from dlcvlib.config.paths import ROOT

PIP = """
import pathlib, sys, sysconfig
if "-e" not in sys.argv:
    pathlib.Path("torch").write_text(" ".join(sys.argv[-2:]))
    sys.exit("no such versions")
if pathlib.Path("broken").exists():
    sys.exit("no such package")
if pathlib.Path("other-versions").exists() and "-c" in sys.argv:
    sys.exit("no such versions")
if pathlib.Path("go").exists():
    pathlib.Path("pip-runs").touch()
    pathlib.Path("go").read_text()
with open("installed", "a") as log:
    log.write("installed\\n")
package = pathlib.Path(sysconfig.get_path("purelib"), "needed-1.0.dist-info")
package.mkdir()
package.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: needed\\nVersion: 1.0\\n")
"""
VENV = """
import pathlib, sys
sys.path = [path for path in sys.path if path != str(pathlib.Path(__file__).parent)]
import venv
venv.EnvBuilder(symlinks=True, with_pip=False).create(sys.argv[1])
"""
"""Creates a venv without installing the real pip, which would take seconds."""
CONDA = """#!/bin/sh
case "$1" in
    create) echo "$@" >conda && exec python3 -m venv env ;;
    run) [ -x env/bin/python ] && shift 3 && PATH="env/bin:$PATH" exec "$@" ;;
esac
"""
"""Has one environment, a venv, and notes how it was made."""
PROJECT = """
[project]
name = "stand-in"
requires-python = ">=3.11"
dependencies = ["needed>=1"]
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose only dependency comes from the stand-in for pip; it prints the result."""
    for name in ("run_all.sh", "dlcvlib/utils/environment.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text("torch==2.1\ntorchinfo==1.0\ntorchvision==0.2\n")
    (tmp_path / "dlcvlib" / "__main__.py").write_text(
        "import importlib.metadata, os, sys\n"
        "print('has', importlib.metadata.version('needed'))\n"
        "if sys.argv[2:]:\n    print(os.getcwd(), *sys.argv[1:])\n"
    )
    stand_ins = tmp_path / "stand-ins"
    (stand_ins / "pip").mkdir(parents=True)
    (stand_ins / "pip" / "__init__.py").touch()
    (stand_ins / "pip" / "__main__.py").write_text(PIP)
    (stand_ins / "venv.py").write_text(VENV)
    (stand_ins / "packaging").symlink_to(Path(packaging.__file__).parent)
    # No conda, and this Python by whatever name it is looked for.
    (stand_ins / "bin").mkdir()
    for version in ("3.13", "3.12", "3.11", "3"):
        python = stand_ins / "bin" / f"python{version}"
        python.symlink_to(Path(sys._base_executable).resolve())
    return tmp_path


def start(checkout, *arguments, script="./run_all.sh", cwd=None, **variables):
    hidden = ("VIRTUAL_ENV", "CONDA_PREFIX", "DLCV_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    stand_ins = checkout / "stand-ins"
    environment |= {"PYTHONPATH": str(stand_ins), "PATH": f"{stand_ins / 'bin'}:/usr/bin:/bin"}
    return subprocess.Popen(
        [script, *arguments],
        cwd=cwd or checkout,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments, **options):
    """What a whole run says, to standard output and error, and its exit status."""
    process = start(*arguments, **options)
    return *process.communicate(timeout=120), process.returncode


def wait_for(path, process):
    """Wait until the process has created the file; it must not end before."""
    while not path.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
        assert process.poll() is None, process.stderr.read()


@pytest.mark.parametrize("moment", [".venv.installing", ".venv/bin/python", "pip-runs"])
def test_killed_while_installing(checkout, moment):
    os.mkfifo(checkout / "go")  # the stand-in waits until something is written to it
    process = start(checkout)
    wait_for(checkout / moment, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (checkout / "go").unlink()
    out, said, _ = run(checkout)
    assert "was interrupted; recreating it" in said
    assert out == "has 1.0\n"
    assert run(checkout) == ("has 1.0\n", "", 0)
    assert (checkout / "installed").read_text() == "installed\n"
    assert not (checkout / ".venv.installing").exists()


def test_folders_of_others_are_never_removed(checkout):
    """Another folder is not an environment; another venv is installed into, repeatedly.

    An installation that fails ends the run, and the next begins it anew.
    """
    (checkout / "broken").touch()
    thesis = checkout / "else where" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.touch()
    for _ in range(2):
        _, said, status = run(checkout, DLCV_ENV=str(thesis.parent))
        assert status == 1
        assert said.startswith(f"{thesis.parent} is not a venv: ")
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis.txt"]
    (thesis.parent / "pyvenv.cfg").touch()
    for _ in range(2):
        run(checkout, DLCV_ENV=str(thesis.parent))
        assert thesis.exists()
    # A relative name is of where it was typed; a new one is made, and anew if it is not whole.
    there = {"script": "../run_all.sh", "cwd": thesis.parent, "DLCV_ENV": "new"}
    out, said, status = run(checkout, **there)
    assert (out, status) == ("", 1)
    assert said.endswith("no such package\n")
    (checkout / "broken").unlink()
    out, said, _ = run(checkout, **there)
    assert out == "has 1.0\n"
    assert "was interrupted; recreating it" in said
    assert (thesis.parent / "new" / "pyvenv.cfg").is_file()
    assert not (checkout / "new").exists()


def test_other_versions_are_installed_if_the_tested_ones_are_unavailable(checkout):
    """From another shell, which hands over to bash."""
    (checkout / "other-versions").touch()
    out, said, _ = run(checkout, "./run_all.sh", script="sh")
    assert out == "has 1.0\n"
    assert "Not all versions of constraints.txt are available here" in said


@pytest.mark.parametrize("driver", [False, True])
@pytest.mark.parametrize("conda", [None, "conda", "mamba"])
def test_without_an_nvidia_driver_torchs_cpu_build_is_tried_first(checkout, driver, conda):
    """With conda too, whose environment has what environment.yml names."""
    if conda:
        (checkout / "stand-ins" / "bin" / conda).write_text(CONDA)
        (checkout / "stand-ins" / "bin" / conda).chmod(0o755)
    if driver:
        (checkout / "stand-ins" / "bin" / "nvidia-smi").symlink_to("/bin/true")
    elif Path("/proc/driver/nvidia").exists() or Path("/dev/dxg").exists():
        pytest.skip("this machine has a driver")
    assert run(checkout)[0] == "has 1.0\n"
    asked = checkout / "torch"
    assert (asked.read_text() if asked.exists() else "") == (
        "" if driver else "torch==2.1+cpu torchvision==0.2+cpu"
    )
    assert run(checkout) == ("has 1.0\n", "", 0)
    assert (checkout / ".venv").exists() != bool(conda)
    if conda:
        whole = yaml.safe_load((ROOT / "environment.yml").read_text())
        made_of = [each for each in whole["dependencies"] if isinstance(each, str)]
        made = f"create -y -n {whole['name']} -c {whole['channels'][0]} {' '.join(made_of)}\n"
        assert (checkout / "conda").read_text() == made


def test_it_can_be_sourced_and_called_from_anywhere(checkout):
    """A sourced script must not end the shell; CDPATH must not lead elsewhere."""
    (checkout / "else where" / "else where").mkdir(parents=True)
    there = checkout / "else where"
    command = 'source ../run_all.sh params vae; echo "still here"'
    out = run(checkout, "-c", command, script="bash", cwd=there)[0]
    assert out == f"has 1.0\n{there} params vae\nstill here\n"
    outside = {"script": f"{checkout.name}/run_all.sh", "cwd": checkout.parent}
    assert run(checkout, "report", "-x", **outside, CDPATH=str(there))[0].endswith(" report -x\n")


def test_windows_shells_are_shown_the_way(checkout):
    (checkout / "stand-ins" / "bin" / "uname").write_text("#!/bin/sh\necho MINGW64_NT-10.0\n")
    (checkout / "stand-ins" / "bin" / "uname").chmod(0o755)
    _, said, status = run(checkout)
    assert (said.startswith("run_all.sh: on Windows, use it in WSL"), status) == (True, 2)


def test_arguments_are_passed_on_and_paths_are_relative_to_the_start(checkout):
    there = {"script": "../run_all.sh", "cwd": checkout / "else where"}
    there["cwd"].mkdir()
    assert "smoke|quick|full|original" in run(checkout, "--help", **there)[0]
    _, said, status = run(checkout, "quik", **there)
    assert said.startswith("run_all.sh: unknown command 'quik'; did you mean 'quick'? (commands: ")
    assert status == 2
    assert not (checkout / ".venv").exists()  # all this is said before anything is installed
    for typed, passed_on in (
        (["smoke", "--jobs", "1"], "report --profile smoke --jobs 1"),
        (["train", "vae"], "train vae"),
        (["params", "gan", "--seed=1"], "params gan --seed=1"),
    ):
        out = run(checkout, *typed, **there)[0]
        assert out == f"has 1.0\n{there['cwd']} {passed_on}\n"


def test_two_at_once_install_once(checkout):
    os.mkfifo(checkout / "go")
    first = start(checkout)
    wait_for(checkout / "pip-runs", first)
    second = start(checkout)
    waiting = second.stderr.readline()
    assert waiting == "Another run_all.sh is installing into .venv; waiting for it.\n"
    (checkout / "go").write_text("go")
    assert first.communicate(timeout=120)[0] == "has 1.0\n"
    assert second.communicate(timeout=120) == ("has 1.0\n", "")
    assert (checkout / "installed").read_text() == "installed\n"
