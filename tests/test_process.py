"""Subprocesses: results, errors and end; what they load; how they use memory; kernels."""

import json
import os
import platform
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT

from dlcvlib.report import execute
from dlcvlib.utils import stopwatch
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import run_in_subprocess


def test_it_answers_from_another_process_whose_time_counts():
    stopwatch.seconds.update({"data": 100.0})
    assert run_in_subprocess("work:spend", "data") != os.getpid()
    assert stopwatch.take()["data"] > 100.0


@pytest.mark.parametrize(
    ("function", "message"),
    [("work:refuse", "^no luck$"), ("work:die", r"'work:die' ended without an answer")],
)
def test_errors_and_death_are_reported(function, message):
    with pytest.raises(UserError, match=message):
        run_in_subprocess(function, "luck")


def test_it_ends_with_a_parent_that_is_killed(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    program = (
        "from pathlib import Path; from dlcvlib.utils.process import run_in_subprocess; "
        f"run_in_subprocess('work:begin', Path({str(pipe)!r}))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as parent:
        pipe.open().close()  # until the work has begun
        started = psutil.Process(parent.pid).children()
        parent.kill()
    assert started
    assert not psutil.wait_procs(started, timeout=60)[1]


@pytest.mark.parametrize("output", ["| head -1", "2>&1 | true", ">/dev/full", ">&-"])
def test_what_nobody_reads_stops_nothing(output):
    """In this process and in those that it starts; nor does what the encoding lacks."""
    say = "from dlcvlib.utils import process; process.outlive_readers(); print('é\\n' * 10**5)"
    program = f"{say}; process.run_in_subprocess('builtins:print', '→' * 10**5)"
    script = f'set -o pipefail; "{sys.executable}" -c "{program}" {output}'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_chapters_do_not_load_torchvision():
    program = (
        "import sys; from dlcvlib.evaluation import features; from dlcvlib.methods import dcgan; "
        "features.inception(); assert 'torchvision' not in sys.modules"
    )
    environment = os.environ | {"TORCH_HOME": "/nowhere", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


# --- memory -----------------------------------------------------------------------------------

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
STEPS = """
import ctypes, resource

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: a fault would be of 512 pages
for step in range(25):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [b"x" * (50 << 20) for _ in range(3)]  # 12,800 pages each
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@glibc
@pytest.mark.parametrize(
    ("tuned", "faults"),
    [({}, range(5_000)), ({"MALLOC_TRIM_THRESHOLD_": "0"}, range(500_000, 10**7))],
    ids=["kept", "unless the user has tuned it"],
)
def test_kernels_keep_what_a_training_step_frees(monkeypatch, tmp_path, tuned, faults):
    for name in execute.TUNED:
        monkeypatch.delenv(name, raising=False)
    for name, value in tuned.items():
        monkeypatch.setenv(name, value)
    environment = execute.kernel_environment(1, str(tmp_path))
    counted = subprocess.check_output([sys.executable, "-c", STEPS], text=True, env=environment)
    assert int(counted) in faults


# --- kernels ----------------------------------------------------------------------------------

CHECKS = """
import sys
import matplotlib as mpl
from dlcvlib.plots import style
assert sys.executable == EXECUTABLE
assert "DATA" not in globals()
assert "inline" in mpl.get_backend()
style.use()
expected = {**mpl.rcParamsDefault, **style.SHEET}
others = {name for name, value in expected.items() if mpl.rcParams[name] != value}
assert others <= {"backend", "backend_fallback", "interactive"}, others
"""


@pytest.mark.usefixtures("unrendered")
def test_kernels_are_this_pythons_and_start_without_the_users_settings(
    small, tmp_path, monkeypatch
):
    """Foreign kernels, start-up files, a matplotlibrc and styles, broken ones too."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    for folder in (kernel, startup, styles := tmp_path / "mpl" / "stylelib"):
        folder.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    (startup / "0.py").write_text("DATA = 1\nfrom matplotlib import pyplot\npyplot.xkcd()\n")
    settings = "c.InlineBackend.rc = {'font.size': 50}\nc.InteractiveShellApp.extensions = ['no']\n"
    (startup.parent / "ipython_kernel_config.py").write_text(settings)
    (rc := tmp_path / "mpl" / "matplotlibrc").write_bytes(b"timezone: Asia/Tokyo\n\xff\n")
    (styles / "mine.mplstyle").write_bytes(b"\xff")
    variables = {"JUPYTER_PREFER_ENV_PATH": "0", "JUPYTER_DATA_DIR": kernel.parents[1]}
    variables |= {"JUPYTER_PATH": kernel.parents[1], "JUPYTER_DEFAULT_PROVISIONER_NAME": "other"}
    variables |= {"IPYTHONDIR": startup.parents[1], "PYTHONSTARTUP": startup / "0.py"}
    variables |= {"MPLBACKEND": "none", "MATPLOTLIBRC": rc, "MPLCONFIGDIR": rc.parent}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    small.write(p1_1=[CHECKS.replace("EXECUTABLE", repr(sys.executable))])
    assert small.make()
