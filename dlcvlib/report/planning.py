"""Which runs notebooks need: their cells are executed to find out, and nothing is trained.

Only a notebook says which runs it needs. Its cells are executed in order within
`training.runs.planning`; one that needs a trained network fails, and the next ones go on, as far as
they can without it.
"""

import io
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from dlcvlib.report.uptodate import Cells, Needed
from dlcvlib.training import rates
from dlcvlib.training.runs import MARK, planning
from dlcvlib.utils.errors import UserError


class _Undisplayed(DisplayFormatter):
    """Shows nothing, and so draws no figure."""

    def format(self, obj: Any, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        return {}, {}


class _Shell(InteractiveShell):
    """Has neither windows nor tracebacks, which take longer than all else."""

    def init_display_formatter(self) -> None:
        self.display_formatter = _Undisplayed(parent=self)

    def enable_gui(self, gui: Any = None) -> None:
        pass

    def showtraceback(self, *_: Any, **__: Any) -> None:
        pass


def requested(cells: Cells) -> dict[str, tuple[Any, ...]]:
    """The runs that a notebook requests: name -> the arguments of `train_or_load`.

    Args:
        cells: sources of its code cells, those that set parameters among them.

    Raises:
        UserError: if a cell does.
    """
    quiet = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, planning() as jobs, quiet[0], quiet[1]:
        config = Config({"HistoryManager": {"enabled": False}})
        # Not in the place of this process's own main module.
        own = {"user_module": ModuleType("planned_notebook"), "ipython_dir": folder}
        shell = _Shell.instance(config=config, **own)
        try:
            for cell in cells:
                result = shell.run_cell(cell, store_history=True)
                if isinstance(error := result.error_before_exec or result.error_in_exec, UserError):
                    raise error
        finally:
            _Shell.clear_instance()
    return jobs


def plan(
    notebooks: Mapping[str, Cells], *, timed: bool = False
) -> tuple[dict[str, list[Needed]], dict[str, str]]:
    """The runs that notebooks need, and what is wrong with those that cannot be planned.

    Args:
        notebooks: problem -> its cells.
        timed: whether to measure how long those take that are not done.

    Returns:
        Problem -> its runs, and problem -> message of a UserError.
    """
    needed, faults = {}, {}
    for problem, cells in notebooks.items():
        try:
            jobs = requested(cells)
        except UserError as error:
            faults[problem] = str(error)
            continue
        needed[problem] = []
        for name, (method, settings, data, runs_dir) in jobs.items():
            done = Path(runs_dir, name, MARK).is_file()
            seconds = 0.0
            if timed and not done:
                seconds = settings.steps * rates.seconds_per_step(method, settings, data)
            own = name, problem, method.__name__, settings.steps, str(runs_dir)
            needed[problem].append(Needed(*own, done, seconds))
    return needed, faults
