"""Run the notebooks headless, keep what is still true, and have the report written.

An executed notebook is kept under `<out>/notebooks/` with a record beside it, written last, that
holds its content hash and all that decides it.
"""

import functools
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from papermill.parameterize import parameterize_notebook
from tqdm import tqdm

from dlcvlib.config.paths import NOTEBOOKS, ROOT
from dlcvlib.config.schema import Chapter
from dlcvlib.report.exhibits import MIME, options
from dlcvlib.report.uptodate import Task, declared, plan
from dlcvlib.utils import stopwatch, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import run_in_subprocess

MARK = ".dlcv-report"
"""Tells a folder that a report has been begun in from one that holds something else."""
PAGE_SECONDS = 300.0
"""Time between two pages on the way, each of which takes some seconds to write."""
PROGRESS = re.compile(
    r"(?m)^(.*\r(?!\n))?(.*((\d%\|.*/\d+|\dit) \[\d\d:\d\d.*| is being .*; waiting for it)\n?)?"
)
"""What a line of a terminal no longer shows, a bar of tqdm, and that another process is awaited."""
WIDGET = "application/vnd.jupyter.widget-view+json"
JOBS_MAX = 4
"""Notebooks run side by side unless asked for more: one a chapter."""
SIDE_BY_SIDE = "4132"
"""Chapters in the order of their beginning, the longest first: the others then fill the time. The
last has nothing long, and uses a model of the second."""
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""glibc keeps what one training step frees for the next, where it would by itself give it back each
time and fetch it again: 55,000 page faults a step of the original's VAE, a tenth of its time."""
TUNED = {*ALLOCATOR, "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}
"""Environment variables with which a user has tuned the allocator."""
INTERACTIVE = ("JUPYTER_", "IPYTHON", "PYTHONSTARTUP", "MPLBACKEND", "MATPLOTLIBRC")
"""Beginnings of environment variables that are for work by hand, and would change a report."""


@dataclass(frozen=True)
class Outcome:
    """What came of a task: `error` is empty if it succeeded, `seconds` is what that took."""

    task: Task
    seconds: float = 0.0
    error: str = ""


def make_report(
    params: Mapping[str, Chapter],
    fingerprints_of_data: Mapping[str, str],
    about: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    cell_timeout: int | None = None,
    out: Path = Path("report"),
    notebooks: Path = NOTEBOOKS,
) -> bool:
    """Run what has changed and write the report, its page also every few minutes on the way.

    A notebook that fails does not keep the others from running; a notice stands in its place.

    Args:
        params: chapter -> its parameters.
        fingerprints_of_data: chapter -> fingerprint of its data.
        about: for the first page: profile, its name, command, what was typed, and authors.
        only: problems such as "1-3"; all if empty.
        jobs: notebooks run side by side, of different chapters as long as there are any.
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
    outcomes: list[Outcome] = []

    def render(whole: bool) -> None:
        ended = sorted(outcomes, key=lambda outcome: outcome.task.problem)
        # In a process of its own, or this one would hold 200 MB more while notebooks run.
        run_in_subprocess(
            "dlcvlib.report.render:render",
            {o.task.problem: (o.task.target, o.seconds) for o in ended if not o.error},
            {o.task.problem: (o.task.title, o.error) for o in ended if o.error},
            params,
            {**about, "started": started, "spent": stopwatch.seconds},
            exhibits,
            out,
            notebooks,
            whole=whole,
        )

    with storage.exclusive_lock(storage.make_dir(out) / ".report", "made"):
        (out / MARK).touch()
        storage.sweep(out)
        storage.sweep(storage.make_dir(out / "notebooks"))
        written = time.monotonic()
        for outcome in _run(tasks, jobs, cell_timeout):
            outcomes.append(outcome)
            if time.monotonic() - written >= PAGE_SECONDS and len(outcomes) < len(tasks):
                try:
                    render(whole=False)
                except Exception as error:
                    # A page on the way is a convenience: the notebooks continue.
                    _say(f"no page yet: {error}")
                written = time.monotonic()
        _say("writing the report")
        render(whole=True)
    failures = [o for o in outcomes if o.error]
    for failure in failures:
        print(f"\n{failure.task.problem} failed: {failure.error}", file=sys.stderr)
    print(*(out / name for name in ("report.html", "report.pdf", "results.json")), sep="\n")
    return not failures


def refuse(out: Path, notebooks: Path = NOTEBOOKS) -> None:
    """Raise a UserError where a report would overwrite what it has not made."""
    there = next(path for path in (out, *out.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"--out: {there} is not a folder that can be written to; name another")
    ours = (out / MARK).exists()
    for name in ("notebooks", "figures", "report.html", "report.pdf", "results.json"):
        if (out / name).resolve() == notebooks.resolve() or ((out / name).exists() and not ours):
            raise UserError(
                f"--out: {out / name} is no report's and would be overwritten; name another folder"
            )


def side_by_side(gpu: bool) -> int:
    """How many notebooks to run at once: one a core, at most `JOBS_MAX`; one with a GPU."""
    # A small network gains less from a second thread than two of them from one each; more of a
    # chapter's notebooks would mostly wait for each other's training, and each takes memory.
    return 1 if gpu else min(joblib.cpu_count(), JOBS_MAX)


def kernel_environment(jobs: int, status: str) -> dict[str, str]:
    """Environment variables of the kernels: where to report, how many threads, malloc.

    A user's start-up files, style files and matplotlibrc stay out of the report.
    """
    environment = {n: value for n, value in os.environ.items() if not n.startswith(INTERACTIVE)}
    environment |= {
        "DLCV_STATUS": status,
        "IPYTHONDIR": str(Path(status, "ipython")),
        "MPLCONFIGDIR": str(platformdirs.user_cache_path("dlcv-report") / "matplotlib"),
    }
    if not TUNED & environment.keys():
        environment |= ALLOCATOR
    if jobs > 1:
        asked, share = environment.get("OMP_NUM_THREADS", ""), max(1, joblib.cpu_count() // jobs)
        environment["OMP_NUM_THREADS"] = str(min(int(asked), share) if asked.isdigit() else share)
    return environment


# --- all notebooks ----------------------------------------------------------------------------


def _run(tasks: Sequence[Task], jobs: int, cell_timeout: int | None) -> Iterator[Outcome]:
    """Outcomes as they come, with a line for each and, on a terminal, a bar under the lines."""
    # However many of them are reused: a run that continues keeps its number of threads.
    jobs = min(jobs, len(tasks))
    order = list(tasks)
    if jobs > 1:
        # Notebooks of different chapters rarely wait for the same model.
        order.sort(key=lambda task: (task.problem[2:], SIDE_BY_SIDE.index(task.problem[0])))
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as status,
        tqdm(total=len(tasks), desc="report", unit="notebook", disable=None) as bar,
        # Of daemons: after Ctrl-C nothing is waited for, and kernels end with their parent.
        ThreadPool(jobs) as pool,
    ):
        environment = kernel_environment(jobs, status)
        attempt = functools.partial(_attempt, environment=environment, cell_timeout=cell_timeout)
        ended = pool.imap_unordered(attempt, order)
        left = len(tasks)
        while left:
            bar.set_postfix_str(_trained(Path(status)))
            try:
                outcome = ended.next(timeout=1)
            except multiprocessing.TimeoutError:
                continue
            how = f"{outcome.seconds:.0f} s" if outcome.task.reasons else "unchanged"
            _say(f"{outcome.task.problem} {'failed' if outcome.error else how}")
            bar.update()
            left -= 1
            yield outcome


def _say(text: str) -> None:
    """Print a line above the bar; several threads do."""
    with tqdm.external_write_mode():
        print(text, flush=True)


def _trained(status: Path) -> str:
    """What the kernels last reported of their training."""
    texts = []
    for path in sorted(status.iterdir()):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < 10:
                texts.append(path.read_text(encoding="utf-8"))
    return " | ".join(texts)


def _attempt(task: Task, environment: Mapping[str, str], cell_timeout: int | None) -> Outcome:
    try:
        if task.reasons:
            return Outcome(task, execute(task, environment, cell_timeout))
        return Outcome(task, storage.read_sealed(task.record)["seconds"])
    except Exception as error:
        return Outcome(task, error=str(error) or type(error).__name__)


# --- a notebook -------------------------------------------------------------------------------


class _OwnKernel(KernelSpecManager):
    """Finds the kernel of this Python, whatever is registered under its name and wherever."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        started_by = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
        return KernelSpec(**get_kernel_dict() | {"metadata": started_by})


def execute(task: Task, environment: Mapping[str, str], cell_timeout: int | None) -> float:
    """Run a notebook, and keep it under its name only if every cell ran; the seconds it took.

    Raises:
        UserError: naming the cell that failed, or if the disk is full, or the task has a fault.
    """
    if task.fault:
        raise UserError(task.fault)
    _say(f"{task.problem} starts: {'; '.join(task.reasons)}")
    task.record.unlink(missing_ok=True)
    started = time.monotonic()
    # Whatever kernel it names: this environment's runs it.
    python = {"kernel_name": "python3", "language": "python"}
    notebook = parameterize_notebook(task.notebook, task.parameters, **python)
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
    seconds = time.monotonic() - started
    storage.write_text(task.target, _cleaned(notebook))
    record = {"identity": task.identity, "sha256": storage.sha256(task.target)}
    storage.write_sealed(task.record, record | {"seconds": seconds})
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
