"""Which runs notebooks need: their cells are executed to find out, and nothing is trained.

Only a notebook says which runs it needs. Its cells are executed in order within
`training.runs.planning`; one that needs a trained network fails, and the next ones go on, as far as
they can without it.
"""

import io
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from dlcvlib.report.sweep import Needed
from dlcvlib.training import rates
from dlcvlib.training.runs import MARK, planning, train_or_load
from dlcvlib.utils import stopwatch
from dlcvlib.utils.errors import UserError


@lru_cache(maxsize=1)  # a worker often trains several runs of a notebook; its data stay in memory
def requested(
    cells: tuple[str, ...], cell_timeout: int | None = None
) -> dict[str, tuple[Any, ...]]:
    """The runs that a notebook requests: name -> the arguments of `train_or_load`.

    Args:
        cells: sources of its code cells, those that set parameters among them.
        cell_timeout: seconds after which a cell is interrupted; only in a process's main thread.

    Raises:
        UserError: if a cell does, or is interrupted.
    """
    quiet = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, planning() as jobs, quiet[0], quiet[1]:
        config = Config({"HistoryManager": {"enabled": False}})
        # Not in the place of this process's own main module.
        own = {"user_module": ModuleType("planned_notebook"), "ipython_dir": folder}
        shell = InteractiveShell.instance(config=config, **own)
        # It has no windows; figures and tracebacks, which take longer than all else, are not shown.
        shell.enable_gui = shell.showtraceback = lambda *_, **__: None
        shell.display_formatter.format = lambda *_, **__: ({}, {})
        try:
            for cell in cells:
                with _limited(cell_timeout):
                    result = shell.run_cell(cell, store_history=True)
                if isinstance(error := result.error_before_exec or result.error_in_exec, UserError):
                    raise error
        finally:
            InteractiveShell.clear_instance()
    return jobs


@contextmanager
def _limited(seconds: int | None) -> Iterator[None]:
    """Interrupt what takes longer, where the system has such an alarm."""

    def interrupt(*_: Any) -> None:
        raise UserError(f"a cell ran longer than {seconds} s (--cell-timeout)")

    if not seconds or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def train(cells: tuple[str, ...], name: str) -> dict[str, float]:
    """Train one of the runs that a notebook requests, or load it.

    What the run is, is found out here, so that nothing but text needs to be sent to the process
    that trains. Processes meet in `runs_dir` alone, where `train_or_load` locks and resumes; for
    several machines, it is on a shared folder.

    Returns:
        Seconds spent, by kind of work.

    Raises:
        UserError: if the notebook, as this machine has it, does not request that run.
    """
    jobs = requested(cells)
    if name not in jobs:
        raise UserError(
            f"{name} is not what this machine would train: the code of dlcvlib, the versions of "
            "torch and accelerate and the data must be the same everywhere"
        )
    train_or_load(*jobs[name])
    return stopwatch.take()


def plan(
    notebooks: Mapping[str, tuple[str, ...]], timed: bool, cell_timeout: int | None
) -> tuple[dict[str, Needed], dict[str, str]]:
    """The runs that notebooks need, and what keeps some from being planned.

    Args:
        notebooks: problem -> its cells.
        timed: whether to measure how long those take that are not done.
        cell_timeout: seconds after which a cell counts as hanging.

    Returns:
        The runs by name, and problem -> message of a UserError.
    """
    needed, faults = {}, {}
    for problem, cells in notebooks.items():
        try:
            jobs = requested(cells, cell_timeout)
        except UserError as error:
            faults[problem] = str(error)
            continue
        for name, (method, settings, data, runs_dir) in jobs.items():
            if name in needed:
                needed[name].problems.append(problem)
                continue
            done = Path(runs_dir, name, MARK).is_file()
            run = needed[name] = Needed([problem], method.__name__, settings.steps, done)
            if timed and not done:
                run.seconds = run.steps * rates.seconds_per_step(method, settings, data)
    return needed, faults
