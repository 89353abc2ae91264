"""The runs that a report's notebooks need, planned and trained side by side without them."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dlcvlib.config.paths import ROOT
from dlcvlib.report import progress, template
from dlcvlib.utils import storage
from dlcvlib.utils.process import run_in_subprocess

if TYPE_CHECKING:
    from distributed import Future

Cells = tuple[str, ...]
"""Sources of a notebook's code cells, with its parameters."""


@dataclass
class Needed:
    """A run that notebooks need.

    Attributes:
        problems: theirs; it is trained under the first.
        method: name of its class.
        steps: how many it has.
        done: whether it is trained.
        seconds: what it takes, if that was measured and it is not done.
    """

    problems: list[str]
    method: str
    steps: int
    done: bool
    seconds: float = 0.0


@contextmanager
def training(
    notebooks: Mapping[str, Cells],
    environment: Mapping[str, str],
    begin: Callable[[str], object],
    cell_timeout: int | None,
    **where: Any,
) -> Iterator[list[tuple[Needed, "Future"]]]:
    """Train the missing runs of notebooks, in their order, for as long as the context lasts.

    A run that fails, or that cannot be planned, is left to its notebook.

    Args:
        notebooks: problem -> its cells.
        environment: variables of the processes that train.
        begin: called with the problem under which a run begins.
        cell_timeout: seconds after which a cell counts as hanging.
        where: see `cluster.working`.

    Yields:
        These runs, and what becomes of each.
    """
    needed, _ = plan(notebooks, cell_timeout=cell_timeout)
    missing = {name: run for name, run in needed.items() if not run.done}
    if not missing:
        yield []
        return
    from dlcvlib.report.cluster import working  # loads slowly

    folder = Path(environment["DLCV_STATUS"])
    first = {name: run.problems[0] for name, run in missing.items()}
    tasks = {n: (storage.make_dir(folder / p), notebooks[p]) for n, p in first.items()}
    where |= {"environment": environment}
    with working(tasks, lambda name: begin(first[name]), **where) as futures:
        yield [(missing[name], future) for name, future in futures.items()]


def plan(
    notebooks: Mapping[str, Cells], *, timed: bool = False, cell_timeout: int | None = None
) -> tuple[dict[str, Needed], dict[str, str]]:
    """As `planning.plan`, in a process of its own: torch and data take memory."""
    if not notebooks:
        return {}, {}
    return run_in_subprocess("dlcvlib.report.planning:plan", notebooks, timed, cell_timeout)


# --- the command ------------------------------------------------------------------------------


def table(runs: Mapping[str, Needed]) -> str:
    """Runs by problem and method, how many are done, and how long the others take one by one."""
    import pandas as pd  # takes memory, and only this needs it

    frame = pd.DataFrame([vars(run) | {"problem": run.problems[0]} for run in runs.values()])
    frame["steps"] *= ~frame["done"]
    columns = {"runs": ("done", "size"), "done": ("done", "sum")}
    columns |= {"steps": ("steps", "sum"), "time": ("seconds", "sum")}
    found = frame.groupby(["problem", "method"], sort=False).agg(**columns)
    found.loc[("all", ""), :] = found.sum()
    found[["runs", "done", "steps"]] = found[["runs", "done", "steps"]].astype(int)
    found["time"] = found["time"].map(tqdm.format_interval)
    return found.rename(columns={"steps": "steps left", "time": "time left"}).to_string()


def export(runs: Mapping[str, Needed], words: Sequence[str], folder: Path) -> list[Path]:
    """Write a Slurm array job that trains runs, a task each, and their list.

    Args:
        runs: those that are missing, by name.
        words: the arguments of `python -m dlcvlib`, of which a task adds which run it trains.
        folder: where the two files are written.
    """
    files = [folder / "sweep.sbatch", folder / "runs.txt"]
    paths = {"list": files[1], "root": ROOT, "here": Path.cwd(), "python": sys.executable}
    own = {name: shlex.quote(str(path)) for name, path in paths.items()}
    script = template("sweep.sbatch.j2").render(own, runs=len(runs), words=shlex.join(words))
    storage.write_text(files[1], "".join(f"{run.problems[0]} {n}\n" for n, run in runs.items()))
    storage.write_text(files[0], script)
    return files


def train(
    runs: Mapping[str, Needed],
    notebooks: Mapping[str, Cells],
    environment: Callable[[Path], Mapping[str, str]],
    **where: Any,
) -> dict[str, str]:
    """Train runs side by side, with a live table on a terminal, otherwise lines.

    Args:
        runs: those that are missing, by name.
        notebooks: problem -> its cells.
        environment: the folder for what is reported -> variables of the processes that train.
        where: see `cluster.working`.

    Returns:
        Name -> error of each run that failed; the others are trained.
    """
    from dlcvlib.report.cluster import working  # loads slowly

    failed: dict[str, str] = {}
    now = progress.Progress("runs", len(runs), list(runs), where["workers"])
    with ExitStack() as stack:
        status, show = stack.enter_context(progress.shown(now))
        tasks = {
            name: (storage.make_dir(status / name), notebooks[run.problems[0]])
            for name, run in runs.items()
        }
        where |= {"environment": environment(status)}
        futures = stack.enter_context(working(tasks, now.begin, **where))
        while now.left:
            show()
            time.sleep(1)
            for name in [name for name in now.left if futures[name].done()]:
                if error := futures[name].exception():
                    failed[name] = str(error) or type(error).__name__
                now.end(name, 0 if error else sum(futures[name].result().values()))
                how = "failed" if error else "is trained"
                progress.say(f"{runs[name].problems[0]} {name} {how}")
    return failed
