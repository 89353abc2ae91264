"""Run the notebooks headless, keep what is still true, and have the report written.

An executed notebook is kept under `<out>/notebooks/` with a record beside it, written last, that
holds its content hash and all that decides it.
"""

import functools
import os
import queue
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import joblib
import nbformat
import platformdirs
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

from dlcvlib.config.paths import NOTEBOOKS, ROOT
from dlcvlib.config.schema import Chapter
from dlcvlib.report import TITLE, progress, sweep, template
from dlcvlib.report.exhibits import MIME, Exhibit, options
from dlcvlib.report.standalone import make_readable
from dlcvlib.report.uptodate import Task, declared, plan
from dlcvlib.utils import stopwatch, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import run_in_subprocess

MARK = ".dlcv-report"
"""Tells a folder that a report has been begun in from one that holds something else."""
PRODUCTS = ("index.html", "report.html", "report.pdf", "results.json")
PAGE_SHARE = 0.2
"""Share of the time in which pages are written on the way, each of which takes some seconds."""
PROGRESS = re.compile(
    r"(?m)^(.*\r(?!\n))?(.*((\d%\|.*/\d+|\dit) \[\d\d:\d\d.*| is being .*; waiting for it)\n?)?"
)
"""What a line of a terminal no longer shows, a bar of tqdm, and that another process is awaited."""
WIDGET = "application/vnd.jupyter.widget-view+json"
JOBS_MAX = 4
"""Notebooks run side by side unless asked for more: one a chapter."""
FIRST = "4-3"
"""Begins first where several run: it trains only two models, which 4-1 uses too, so that the page
has something to read within minutes."""
SIDE_BY_SIDE = "4132"
"""Chapters in the order of their beginning, the longest first: the others then fill the time. The
last has nothing long, and uses a model of the second."""
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""glibc keeps what one training step frees for the next, where it would by itself give it back each
time and fetch it again: 55,000 page faults a step of the original's VAE, a tenth of its time."""
INTERACTIVE = ("JUPYTER_", "IPYTHON", "PYTHONSTARTUP", "MPLBACKEND", "MATPLOTLIBRC")
"""Beginnings of environment variables that are for work by hand, and would change a report."""


@dataclass(frozen=True)
class Outcome:
    """What came of a task: `error` is empty if it succeeded.

    Attributes:
        seconds: what that took, the training of its runs by other processes included.
        trained: seconds of such training, by kind of work.
    """

    task: Task
    seconds: float = 0.0
    trained: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


def make_report(
    params: Mapping[str, Chapter],
    fingerprints_of_data: Mapping[str, str],
    about: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    gpus: int = 0,
    scheduler: str = "",
    cell_timeout: int | None = None,
    out: Path = Path("report"),
    notebooks: Path = NOTEBOOKS,
) -> bool:
    """Run what has changed and write the report, its page and index also on the way.

    A notebook that fails does not keep the others from running; a notice stands in its place.

    Args:
        params: chapter -> its parameters.
        fingerprints_of_data: chapter -> fingerprint of its data.
        about: for the first page: profile, its name, command, what was typed, and authors.
        only: problems such as "1-3"; all if empty.
        jobs: notebooks run side by side, of different chapters as long as there are any, and runs
            trained side by side before them.
        gpus: how many this machine has.
        scheduler: of a Dask cluster that trains the runs (see `cluster.working`).
        cell_timeout: seconds after which a cell counts as hanging.
        out: where everything is written.
        notebooks: folder of the notebooks.

    Returns:
        Whether every notebook ran.

    Raises:
        UserError: as `plan`, or if `out` cannot be written, or holds what a report would replace
            and is no report's.
    """
    refuse(out, notebooks)
    exhibits = declared(notebooks)
    tasks = plan(params, fingerprints_of_data, only, out, notebooks)
    started = time.time()
    outcomes: dict[str, Outcome] = {}
    run = functools.partial(execute, exhibits=exhibits, cell_timeout=cell_timeout)

    def write_index(whole: bool) -> None:
        values = {"title": TITLE, "about": about, "out": out, "tasks": tasks, "whole": whole}
        text = template("index.html.j2").render(values, ended=outcomes)
        storage.write_text(out / "index.html", text)

    def render() -> None:
        ended = [outcomes[problem] for problem in sorted(outcomes)]
        trained = sum((Counter(o.trained) for o in ended), Counter())
        pending = {t.problem: t.title for t in tasks if t.problem not in outcomes}
        # In a process of its own, or this one would hold 200 MB more while notebooks run.
        run_in_subprocess(
            "dlcvlib.report.render:render",
            {o.task.problem: (o.task.target, o.seconds) for o in ended if not o.error},
            {o.task.problem: (o.task.title, o.error) for o in ended if o.error},
            params,
            {**about, "started": started, "spent": stopwatch.seconds, "trained": trained},
            exhibits,
            out,
            notebooks,
            pending=pending,
        )
        write_index(whole=not pending)

    shown, next_page = 0, 0.0

    def page_on_the_way() -> None:
        nonlocal shown, next_page
        began = time.monotonic()
        if shown < len(outcomes) and began >= next_page:
            shown = len(outcomes)
            try:
                render()
            except Exception as error:
                # It is a convenience: the notebooks continue.
                progress.say(f"no page yet: {error}")
            next_page = began + (time.monotonic() - began) / PAGE_SHARE

    with storage.exclusive_lock(storage.make_dir(out) / ".report", "made"):
        (out / MARK).touch()
        storage.sweep(out)
        storage.sweep(storage.make_dir(out / "notebooks"))
        write_index(whole=False)
        for outcome in _run(tasks, run, jobs, page_on_the_way, gpus, scheduler, cell_timeout):
            outcomes[outcome.task.problem] = outcome
        progress.say("writing the report")
        with progress.lines("writing the report"):
            render()
    failures = [o for o in outcomes.values() if o.error]
    for failure in failures:
        print(f"\n{failure.task.problem} failed: {failure.error}", file=sys.stderr)
    print(*(out / name for name in PRODUCTS), sep="\n")
    return not failures


def refuse(out: Path, notebooks: Path = NOTEBOOKS) -> None:
    """Raise a UserError where a report would overwrite what it has not made."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"--out: {there} is not a folder that can be written to; name another")
    ours = (out / MARK).exists()
    for name in ("notebooks", "figures", *PRODUCTS):
        if (out / name).resolve() == notebooks.resolve() or ((out / name).exists() and not ours):
            raise UserError(
                f"--out: {out / name} is no report's and would be overwritten; name another folder"
            )


def side_by_side(gpus: int) -> int:
    """How many runs or notebooks at once: one a GPU, else one a core, at most `JOBS_MAX`."""
    # A small network gains less from a second thread than two of them from one each; and each
    # takes memory.
    return gpus or min(joblib.cpu_count(), JOBS_MAX)


def kernel_environment(jobs: int, status: Path | str) -> dict[str, str]:
    """Environment variables of the kernels: where to report, how many threads, malloc.

    A user's start-up files, style files and matplotlibrc stay out of the report.
    """
    kept = {n: value for n, value in os.environ.items() if not n.startswith(INTERACTIVE)}
    environment = {
        **ALLOCATOR,
        **kept,
        "DLCV_STATUS": str(status),
        "IPYTHONDIR": str(Path(status, "ipython")),
        "MPLCONFIGDIR": str(platformdirs.user_cache_path("dlcv-report") / "matplotlib"),
    }
    if jobs > 1:
        asked, share = environment.get("OMP_NUM_THREADS", ""), max(1, joblib.cpu_count() // jobs)
        environment["OMP_NUM_THREADS"] = str(min(int(asked), share) if asked.isdigit() else share)
    return environment


# --- all notebooks ----------------------------------------------------------------------------


def _run(
    tasks: Sequence[Task],
    run: Callable[..., float],
    jobs: int,
    meanwhile: Callable[[], None],
    gpus: int = 0,
    scheduler: str = "",
    cell_timeout: int | None = None,
) -> Iterator[Outcome]:
    """Outcomes as they come, with a line for each; a table on a terminal, otherwise more lines.

    A notebook begins when its runs are trained, by a cluster; a single notebook without one trains
    them itself. While no outcome comes, `meanwhile` is called each second.
    """
    # However many of them are reused: a run that continues keeps its number of threads.
    jobs = jobs if gpus else min(jobs, len(tasks))
    order = list(tasks)
    if jobs > 1:
        # Notebooks of different chapters rarely wait for the same model.
        place = SIDE_BY_SIDE.index
        order.sort(key=lambda t: (t.problem != FIRST, t.problem[2:], place(t.problem[0])))
    changed = [task for task in order if task.reasons]
    now = progress.Progress("notebooks", len(tasks), [task.problem for task in changed], jobs)
    with ExitStack() as stack:
        status, show = stack.enter_context(progress.shown(now))
        environment = kernel_environment(jobs, status)
        by_cluster = [task for task in changed if task.trains and (jobs > 1 or scheduler)]
        cells = {task.problem: task.cells for task in by_cluster}
        where = {"workers": jobs, "gpus": gpus, "scheduler": scheduler}
        training = sweep.training(cells, environment, now.begin, cell_timeout, **where)
        runs = stack.enter_context(training)
        # Of daemons: after Ctrl-C nothing is waited for, and kernels end with their parent.
        pool = stack.enter_context(ThreadPool(jobs))
        ended: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

        def attempt(task: Task, trained: Mapping[str, float]) -> Outcome:
            try:
                if not task.reasons:
                    record = storage.read_sealed(task.record)
                    return Outcome(task, record["seconds"], record.get("trained", {}))
                own = storage.make_dir(status / task.problem)
                now.begin(task.problem)
                seconds = run(task, {**environment, "DLCV_STATUS": str(own)}, trained)
                return Outcome(task, seconds, trained)
            except Exception as error:
                return Outcome(task, error=str(error) or type(error).__name__)

        left = len(tasks)
        while left:
            awaited = {p for run, future in runs if not future.done() for p in run.problems}
            for task in [task for task in order if task.problem not in awaited]:
                order.remove(task)
                own = (future for run, future in runs if run.problems[0] == task.problem)
                results = (future.result() for future in own if future.status == "finished")
                trained = sum(map(Counter, results), Counter())
                pool.apply_async(attempt, (task, trained), callback=ended.put)
            show()
            try:
                outcome = ended.get(timeout=1)
            except queue.Empty:
                meanwhile()
                continue
            now.end(outcome.task.problem, outcome.seconds)
            how = f"{outcome.seconds:.0f} s" if outcome.task.reasons else "unchanged"
            progress.say(f"{outcome.task.problem} {'failed' if outcome.error else how}")
            left -= 1
            yield outcome


# --- a notebook -------------------------------------------------------------------------------


class _OwnKernel(KernelSpecManager):
    """Finds the kernel of this Python, whatever is registered under its name and wherever."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        started_by = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
        return KernelSpec(**get_kernel_dict() | {"metadata": started_by})


def execute(
    task: Task,
    environment: Mapping[str, str],
    trained: Mapping[str, float],
    exhibits: Mapping[str, Exhibit],
    cell_timeout: int | None,
) -> float:
    """Run a notebook, and keep it under its name only if every cell ran; the seconds it took.

    Those that others have `trained` its runs for count too.

    Raises:
        UserError: naming the cell that failed, or if the disk is full, or the task has a fault.
    """
    if task.fault:
        raise UserError(task.fault)
    progress.say(f"{task.problem} starts: {'; '.join(task.reasons)}")
    task.record.unlink(missing_ok=True)
    started = time.monotonic()
    notebook = task.parameterized()
    client = NotebookClient(
        notebook,
        timeout=cell_timeout,
        startup_timeout=120,
        # Outputs that come late, on a busy machine, are waited for, and none is lost in silence.
        iopub_timeout=60,
        raise_on_iopub_timeout=True,
        # Else each kernel warns on the terminal that its local ports are not encrypted, and
        # some that they are interrupted, which is how they are ended.
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        # What it wrote is whole by now; a kernel with torch in it takes seconds to end.
        shutdown_kernel="immediate",
    )
    client.km = AsyncKernelManager(kernel_spec_manager=_OwnKernel())
    where, failed = "the notebook", task.target.with_suffix(".failed.ipynb")
    try:
        with client.setup_kernel(cwd=str(ROOT), env=environment):
            for index, cell in enumerate(notebook.cells):
                first_line, *_ = cell.source.split("\n")
                where = f"the cell {first_line!r}"
                client.execute_cell(cell, index)
                _check(cell, task.parameters)
    except Exception as error:
        storage.write_text(failed, _cleaned(notebook))
        reason = _reason(error, cell_timeout)
        raise UserError(f"{where}: {reason}\nThe notebook is kept in {failed}") from error
    seconds = time.monotonic() - started + sum(trained.values())
    make_readable(notebook, task.problem, exhibits)
    storage.write_text(task.target, _cleaned(notebook))
    record = {"identity": task.identity, "sha256": storage.sha256(task.target)}
    storage.write_sealed(task.record, record | {"seconds": seconds, "trained": dict(trained)})
    failed.unlink(missing_ok=True)
    return seconds


def _check(cell: NotebookNode, asked: Mapping[str, Any]) -> None:
    """Raise a UserError if an executed cell does not show the exhibit that it declares.

    Likewise if the notebook has begun with other parameters than those asked for.
    """
    payloads = [output.get("data", {}).get(MIME, {}) for output in cell.get("outputs", [])]
    declared = cell.cell_type == "code" and "label" in options(cell.source)
    if declared and not any(payload.get("kind") in ("figure", "table") for payload in payloads):
        raise UserError("shows no figure or table: its value must be one")
    for used in (payload.get("parameters", asked) for payload in payloads):
        if names := [n for n in sorted({*used, *asked}) if used.get(n) != asked.get(n)]:
            raise UserError(
                f"the notebook uses another {', '.join(names)} than the report was asked for: only "
                "its cell tagged `parameters`, before `begin`, may set parameters"
            )


def _reason(error: Exception, cell_timeout: int | None) -> str:
    if isinstance(error, CellTimeoutError):
        return f"ran longer than {cell_timeout} s (--cell-timeout)"
    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {error.evalue}"
    return str(error) or type(error).__name__


def _cleaned(notebook: NotebookNode) -> str:
    """A notebook as text, without what is litter in a still page: progress bars and widgets."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = PROGRESS.sub("", output.text)
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("text", "-").strip() and WIDGET not in output.get("data", {})
            ]
    return nbformat.writes(notebook)
