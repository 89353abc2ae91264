"""The runs that a report's notebooks need, planned and trained side by side without them."""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dlcvlib.config.paths import ROOT
from dlcvlib.report import progress, template
from dlcvlib.report.uptodate import Cells, Needed, Task
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import run_in_subprocess

if TYPE_CHECKING:
    from distributed import Future


@dataclass(frozen=True)
class Training:
    """Runs that other processes train, and the notebooks that wait for them.

    Attributes:
        needed: problem -> its runs.
        missing: name -> one that is trained, under the first problem that needs it.
        futures: name -> what becomes of it.
    """

    needed: Mapping[str, Sequence[Needed]] = field(default_factory=dict)
    missing: Mapping[str, Needed] = field(default_factory=dict)
    futures: Mapping[str, "Future"] = field(default_factory=dict)

    def ready(self, problem: str) -> bool:
        """Whether all runs of a notebook are trained, or have failed."""
        names = {run.name for run in self.needed.get(problem, ())} & self.futures.keys()
        return all(self.futures[name].done() for name in names)

    def spent(self, problem: str) -> Counter[str]:
        """Seconds, by kind of work, that the runs under a problem have taken."""
        own = (self.futures[n] for n, run in self.missing.items() if run.problem == problem)
        return sum((Counter(f.result()) for f in own if f.status == "finished"), Counter())


@contextmanager
def training(
    tasks: Sequence[Task],
    environment: Mapping[str, str],
    begin: Callable[[str], object],
    **where: Any,
) -> Iterator[Training]:
    """Train the missing runs of notebooks, in their order, for as long as the context lasts.

    A run that fails, or that cannot be planned, is left to its notebook.

    Args:
        tasks: the notebooks.
        environment: variables of the processes that train.
        begin: called with the problem under which a run begins.
        where: see `cluster.connected`.
    """
    notebooks = {task.problem: task.cells for task in tasks if task.trains}
    try:
        needed, _ = plan(notebooks)
    except UserError as error:
        print(f"the notebooks train their runs themselves: {error}", flush=True)
        needed = {}
    missing = {name: run for name, run in once(needed).items() if not run.done}
    if not missing:
        yield Training()
        return
    from dlcvlib.report import cluster  # loads slowly

    with cluster.training(
        *(list(missing.values()), notebooks, lambda name: begin(missing[name].problem)),
        lambda run: storage.make_dir(Path(environment["DLCV_STATUS"], run.problem)),
        environment=environment,
        **where,
    ) as futures:
        yield Training(needed, missing, futures)


def plan(
    notebooks: Mapping[str, Cells], *, timed: bool = False
) -> tuple[dict[str, list[Needed]], dict[str, str]]:
    """As `planning.plan`, in a process of its own: torch and data take memory."""
    if not notebooks:
        return {}, {}
    return run_in_subprocess("dlcvlib.report.planning:plan", notebooks, timed=timed)


def once(needed: Mapping[str, Sequence[Needed]]) -> dict[str, Needed]:
    """Each run by its name, under the first problem that needs it."""
    runs: dict[str, Needed] = {}
    for run in (run for each in needed.values() for run in each):
        runs.setdefault(run.name, run)
    return runs


# --- the command ------------------------------------------------------------------------------


def table(runs: Sequence[Needed]) -> str:
    """Runs by problem and method, how many are done, and how long the others take one by one."""
    form = "{:8} {:20} {:>6} {:>6} {:>9} {:>12}".format
    lines = [form("problem", "method", "runs", "done", "steps", "time left")]
    groups: dict[tuple[str, str], list[Needed]] = {}
    for run in runs:
        groups.setdefault((run.problem, run.method), []).append(run)
    for (problem, method), own in {**groups, ("all", ""): list(runs)}.items():
        steps = sum(run.steps for run in own if not run.done)
        left = tqdm.format_interval(sum(run.seconds for run in own))
        done = sum(run.done for run in own)
        lines.append(form(problem, method, len(own), done, f"{steps:,}", left))
    return "\n".join(lines)


def export(runs: Sequence[Needed], words: Sequence[str], folder: Path) -> list[Path]:
    """Write a Slurm array job that trains runs, a task each, and their list.

    Args:
        runs: those that are missing.
        words: arguments of `python -m dlcvlib sweep` that choose parameters and data.
        folder: where the two files are written.
    """
    files = [folder / "sweep.sbatch", folder / "runs.txt"]
    own = {"runs": len(runs), "list": shlex.quote(str(files[1])), "root": shlex.quote(str(ROOT))}
    own |= {"here": shlex.quote(str(Path.cwd())), "words": shlex.join(words)}
    script = template("sweep.sbatch.j2").render(own, python=shlex.quote(sys.executable))
    storage.write_text(files[1], "".join(f"{run.problem} {run.name}\n" for run in runs))
    storage.write_text(files[0], script)
    return files


def train(
    runs: Mapping[str, Needed],
    notebooks: Mapping[str, Cells],
    environment: Callable[[Path], Mapping[str, str]],
    log_seconds: float = progress.LINE_SECONDS,
    **where: Any,
) -> dict[str, str]:
    """Train runs side by side, with a live table on a terminal, otherwise lines.

    Args:
        runs: those that are missing, by name.
        notebooks: problem -> its cells.
        environment: the folder for what is reported -> variables of the processes that train.
        log_seconds: between two lines.
        where: see `cluster.connected`.

    Returns:
        Name -> error of each run that failed; the others are trained.
    """
    import distributed

    from dlcvlib.report import cluster

    running: dict[str, None] = {}
    failed: dict[str, str] = {}
    left, began = list(runs), time.monotonic()

    def rows(status: Path) -> list[str]:
        return [f"{n} ({t})" if (t := progress.training(status / n)) else n for n in [*running]]

    def line(status: Path) -> str:
        done = len(runs) - len(left)
        rest = (time.monotonic() - began) * len(left) / done if done else None
        about = f"about {tqdm.format_interval(rest)} left" if rest else "time left not known yet"
        return f"{done} of {len(runs)} runs, {about}"

    with (
        progress.lines(lambda s: ": ".join([line(s), ", ".join(rows(s))]), log_seconds) as status,
        progress.table() as show,
        cluster.training(
            *(list(runs.values()), notebooks, lambda name: running.setdefault(name)),
            lambda run: storage.make_dir(status / run.name),
            environment=environment(status),
            **where,
        ) as futures,
    ):
        while left:
            show([line(status), *rows(status)])
            with suppress(TimeoutError):
                waited = [futures[name] for name in left]
                distributed.wait(waited, timeout=1, return_when="FIRST_COMPLETED")
            for name in [name for name in left if futures[name].done()]:
                left.remove(name)
                running.pop(name, None)
                if error := futures[name].exception():
                    failed[name] = str(error) or type(error).__name__
                progress.say(f"{runs[name].problem} {name} {'failed' if error else 'is trained'}")
    return failed
