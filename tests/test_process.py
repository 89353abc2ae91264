"""Time by kind of work; subprocesses: results, errors, end; how they use memory; kernels."""

import contextlib
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT, start

from dlcvlib.report import execute
from dlcvlib.utils import stopwatch, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import run_in_subprocess
from dlcvlib.utils.stopwatch import timed


def test_inner_work_counts_once_and_errors_count_too(monkeypatch):
    """With a clock that the test controls."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stopwatch.take()
    with timed("training"):
        now[0] += 3
        with contextlib.suppress(ValueError), timed("evaluation"):
            now[0] += 1
            with timed("training"):
                now[0] += 5
                raise ValueError
        now[0] += 4
    assert stopwatch.take() == {"training": 12, "evaluation": 1}
    assert stopwatch.take() == {}


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
    program = "from pathlib import Path; from dlcvlib.utils.process import run_in_subprocess as run"
    program += f"; run('work:begin', Path({str(pipe)!r}))"
    with start("-c", program) as parent:
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


# --- memory -----------------------------------------------------------------------------------


def test_kernels_keep_what_a_training_step_frees_unless_the_user_tuned_that(monkeypatch):
    for name in execute.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    assert execute.ALLOCATOR.items() <= execute.kernel_environment(1, "").items()
    for name in execute.ALLOCATOR:
        monkeypatch.setenv(name, "of the user")
        assert execute.kernel_environment(1, "")[name] == "of the user"


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
    jupyter, profile, mpl = (tmp_path / name for name in ("jupyter", "profile_default", "mpl"))
    rc, startup = mpl / "matplotlibrc", profile / "startup" / "0.py"
    spec = {"argv": ["/bin/false"], "display_name": "", "language": "python"}
    settings = "c.InlineBackend.rc = {'font.size': 50}\nc.InteractiveShellApp.extensions = ['no']\n"
    for path, text in {
        jupyter / "kernels" / "python3" / "kernel.json": json.dumps(spec),
        startup: "DATA = 1\nfrom matplotlib import pyplot\npyplot.xkcd()\n",
        profile / "ipython_kernel_config.py": settings,
        rc: "timezone: Asia/Tokyo\n\xff\n",
        mpl / "stylelib" / "mine.mplstyle": "\xff",
    }.items():
        storage.make_dir(path.parent)
        path.write_text(text, encoding="latin-1")
    variables = {"JUPYTER_PREFER_ENV_PATH": "0", "JUPYTER_DEFAULT_PROVISIONER_NAME": "other"}
    variables |= {"JUPYTER_PATH": jupyter, "JUPYTER_DATA_DIR": jupyter, "IPYTHONDIR": tmp_path}
    variables |= {"MATPLOTLIBRC": rc, "MPLCONFIGDIR": mpl, "PYTHONSTARTUP": startup}
    for name, value in (variables | {"MPLBACKEND": "none"}).items():
        monkeypatch.setenv(name, str(value))
    small.write(p1_1=[CHECKS.replace("EXECUTABLE", repr(sys.executable))])
    assert small.make()
