"""Run the notebooks headless, keep what is still true, and have the report written.

An executed notebook is kept under `<out>/notebooks/` with a record beside it, written last, that
holds its content hash and all that decides it.
"""

import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import joblib
import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from dlcvlib.config.paths import NOTEBOOKS, ROOT
from dlcvlib.config.schema import Chapter
from dlcvlib.report.exhibits import MIME, options
from dlcvlib.report.uptodate import Task, declared, plan, why
from dlcvlib.utils import stopwatch, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import resident_bytes, run_in_subprocess

MARK = ".dlcv-report"
"""Tells a folder that a report has been begun in from one that holds something else."""
KERNEL_STARTS = 3
WIDGET = "application/vnd.jupyter.widget-view+json"
JOBS_MAX = 4
"""Notebooks run side by side unless asked for more: one a chapter."""
SIDE_BY_SIDE = ("pixelda", "vae", "dann", "gan")
"""Chapters in the order of their beginning, the longest first: the others then fill the time. The
last has nothing long, and uses a model of the second."""
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""glibc keeps what one training step frees for the next, where it would by itself give it back each
time and fetch it again: 55,000 page faults a step of the original's VAE, a tenth of its time."""
TUNED = {*ALLOCATOR, "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}
"""Environment variables with which a user has tuned the allocator."""


@dataclass(frozen=True)
class Outcome:
    """What came of a task: `error` is empty if it succeeded; `reused` if nothing was run.

    `memory` is the most, in bytes, that had been in use by the end of the run that made it.
    """

    task: Task
    seconds: float
    error: str = ""
    reused: bool = False
    memory: int = 0


def make_report(
    params: Mapping[str, Chapter],
    fingerprints_of_data: Mapping[str, str],
    *,
    profile: str,
    only: Sequence[str] = (),
    jobs: int = 1,
    cell_timeout: int | None = None,
    out: Path = Path("report"),
    command: str = "",
    notebooks: Path = NOTEBOOKS,
) -> bool:
    """Run what has changed and write the report.

    A notebook that fails does not keep the others from running; a notice stands in its place.

    Args:
        params: chapter -> its parameters.
        fingerprints_of_data: chapter -> fingerprint of its data.
        profile: its name, for the first page.
        only: problems such as "1-3"; all if empty.
        jobs: notebooks run side by side, of different chapters as long as there are any.
        cell_timeout: seconds after which a cell counts as hanging.
        out: where everything is written.
        command: what was typed, for the first page.
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
    about = {"profile": profile, "command": command, "started": time.time()}
    outcomes: list[Outcome] = []

    def render(whole: bool) -> None:
        ended = sorted(outcomes, key=lambda o: o.task.problem)
        good = [o for o in ended if not o.error]
        memory = max([board.memory, *(o.memory for o in ended)])
        # In a process of its own, or this one would hold 200 MB more while notebooks run.
        run_in_subprocess(
            "dlcvlib.report.render:render",
            {o.task.problem: o.task.target for o in good},
            {o.task.problem: (o.task.title, o.error) for o in ended if o.error},
            {o.task.problem: o.seconds for o in good},
            params,
            about | {"memory": memory, "spent": stopwatch.seconds},
            exhibits,
            out,
            whole=whole,
        )

    with storage.exclusive_lock(storage.make_dir(out) / ".report", "made"):
        (out / MARK).touch()
        storage.sweep(out)
        storage.sweep(storage.make_dir(out / "notebooks"))
        with _board(len(tasks), out) as board:
            for outcome in _run(tasks, min(jobs, len(tasks)), cell_timeout, board):
                outcomes.append(outcome)
                ended = {o.task.problem for o in outcomes}
                left = {task.chapter for task in tasks if task.problem not in ended}
                new = not all(o.reused for o in outcomes)
                if new and left and outcome.task.chapter not in left:
                    try:
                        render(whole=False)
                    except Exception as error:
                        # A page on the way is a convenience: the notebooks continue.
                        board(f"no page yet: {error}")
            board("writing the report")
            render(whole=True)
    failures = [o for o in outcomes if o.error]
    for failure in failures:
        print(f"\n{failure.task.problem} failed: {failure.error}", file=sys.stderr)
    print(*(out / name for name in ("report.html", "report.pdf", "results.json")), sep="\n")
    return not failures


def refuse(out: Path, notebooks: Path = NOTEBOOKS) -> None:
    """Raise a UserError where a report would overwrite what it has not made."""
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


def _run(
    tasks: Sequence[Task], jobs: int, cell_timeout: int | None, board: "_Board"
) -> Iterator[Outcome]:
    """Outcomes as they come: chapters side by side, a chapter's notebooks one after another.

    Where no chapter is left to begin, another's last notebooks are taken: nothing that two of them
    need is trained twice.
    """
    waiting: dict[str, list[Task]] = {}
    for task in tasks:
        waiting.setdefault(task.chapter, []).append(task)
    untouched = list(waiting) if jobs == 1 else sorted(waiting, key=SIDE_BY_SIDE.index)
    choosing = threading.Lock()
    finished: queue.Queue[Outcome] = queue.Queue()

    def claim(own: str) -> Task | None:
        with choosing:
            if not waiting.get(own) and untouched:
                own = untouched.pop(0)
            if waiting.get(own):
                return waiting[own].pop(0)
            most = max(waiting.values(), key=len)
            return most.pop() if most else None

    def work() -> None:
        chapter = ""
        while task := claim(chapter):
            chapter = task.chapter
            try:
                finished.put(reuse(task) or execute(task, board, cell_timeout))
            except Exception as error:
                # Or the main thread would wait for ever.
                finished.put(Outcome(task, 0.0, str(error) or type(error).__name__))

    with _kernel_environment(jobs, board.folder):
        # Daemons: after Ctrl-C nothing is waited for, and kernels end with their parent.
        for _ in range(jobs):
            threading.Thread(target=work, daemon=True).start()
        ended = 0
        while ended < len(tasks):
            board.look()
            with suppress(queue.Empty):
                outcome = finished.get(timeout=1)
                ended += 1
                board.finished(outcome)
                yield outcome


def reuse(task: Task) -> Outcome | None:
    """The outcome of an earlier run of the same notebook, if it is whole and still true."""
    if why(task):
        return None
    record = storage.read_sealed(task.record)
    return Outcome(task, record["seconds"], reused=True, memory=record.get("memory", 0))


def execute(task: Task, board: "_Board", cell_timeout: int | None = None) -> Outcome:
    """Run a notebook to a temporary file; keep it under its name only if every cell ran."""
    if task.unreadable:
        return Outcome(task, 0.0, task.unreadable)
    board(f"{task.problem} starts: {'; '.join(why(task))}")
    task.record.unlink(missing_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=task.target.parent, prefix=storage.TEMPORARY) as folder:
        temporary = Path(folder) / task.target.name
        cut_short = _papermill(task, temporary, cell_timeout)
        try:
            notebook = nbformat.read(temporary, as_version=4)
        except (OSError, ValueError):  # papermill could not write all of it: none of it counts
            notebook = nbformat.read(task.source, as_version=4)
    seconds = time.monotonic() - started
    error = unfinished(notebook, cut_short)
    clean(notebook)
    text = nbformat.writes(notebook)
    if error:
        storage.write_text(task.failed, text)
        return Outcome(task, seconds, f"{error}\nThe notebook is kept in {task.failed}")
    storage.write_text(task.target, text)
    record = {"identity": task.identity, "sha256": storage.sha256(task.target)}
    storage.write_sealed(task.record, record | {"seconds": seconds, "memory": board.memory})
    task.failed.unlink(missing_ok=True)
    return Outcome(task, seconds)


def _papermill(task: Task, target: Path, cell_timeout: int | None) -> str:
    """Execute to the end or a cell's error; what else cut it short, as said of a cell, or nothing.

    A kernel that does not start is tried again.
    """
    for left in reversed(range(KERNEL_STARTS)):
        try:
            papermill.execute_notebook(
                _literal(task.source),
                _literal(target),
                parameters=task.parameters,
                kernel_name="python3",
                cwd=str(ROOT),
                progress_bar=False,
                start_timeout=120,
                execution_timeout=cell_timeout,
                # Else each kernel warns on the terminal that its local ports are not encrypted, and
                # some that they are interrupted, which is how they are ended.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                # What it wrote is whole by now; a kernel with torch in it takes seconds to end.
                shutdown_kernel="immediate",
            )
        except PapermillExecutionError:
            return ""  # the notebook holds it
        except CellTimeoutError:
            return f"ran longer than {cell_timeout} s (--cell-timeout)"
        except DeadKernelError:
            return "ended with the kernel's death"
        except Exception as error:
            # A RuntimeError of the kernel's start: ports collide at times.
            starting = isinstance(error, RuntimeError) and "Kernel" in str(error)
            if not starting or not left:
                return f"was not run: {type(error).__name__}: {error}"
        else:
            break
    return ""


def _literal(path: Path) -> str:
    """A path for papermill, which would fill in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def unfinished(notebook: nbformat.NotebookNode, cut_short: str = "") -> str:
    """Which cell failed, was running when the notebook was cut short, or was never run, if any.

    papermill takes a cell that calls `sys.exit(0)` for success: here every cell must have run.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error":
                return f"{_name(cell)} ended with {output.ename}: {output.evalue}"
        shown = {output.get("data", {}).get(MIME, {}).get("kind") for output in cell.outputs}
        labelled = "label" in options(cell.source)
        if cell.execution_count and labelled and not {"figure", "table"} & shown:
            return f"{_name(cell)} shows no figure or table: its value must be one"
    if cut_short:
        begun = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
        return f"{_name(begun[-1]) if begun else 'the first cell'} {cut_short}"
    never = [cell for cell in cells if cell.execution_count is None]
    return f"{_name(never[0])} was never run" if never else ""


def _name(cell: nbformat.NotebookNode) -> str:
    return f"the cell {cell.source.splitlines()[0]!r}"


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop what is litter in a still page: progress bars and widgets without their kernel."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" and WIDGET not in output.get("data", {})
            ]


@contextmanager
def _kernel_environment(jobs: int, folder: Path) -> Iterator[None]:
    """Environment variables that the kernels inherit: where to report, how many threads, malloc."""
    before = dict(os.environ)
    os.environ["DLCV_STATUS"] = str(folder.resolve())
    if not TUNED & before.keys():
        os.environ.update(ALLOCATOR)
    if jobs > 1:
        asked, share = before.get("OMP_NUM_THREADS", ""), max(1, joblib.cpu_count() // jobs)
        os.environ["OMP_NUM_THREADS"] = str(min(int(asked), share) if asked.isdigit() else share)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Board:
    """The overall progress: a line a notebook, under them on a terminal a bar.

    Attributes:
        folder: where the kernels report.
        memory: the most that was seen in use at once, in bytes.
    """

    def __init__(self, bar: tqdm, folder: Path) -> None:
        self.bar = bar
        self.folder = folder
        self.memory = 0

    def __call__(self, text: str) -> None:
        self.bar.write(text)  # above the bar; several threads write here
        sys.stdout.flush()

    def look(self) -> None:
        """Measure the memory in use, and show what the kernels last reported of their training."""
        self.memory = max(self.memory, resident_bytes())
        texts = []
        for path in sorted(self.folder.glob("*")):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime < 10:
                    texts.append(path.read_text(encoding="utf-8"))
        self.bar.set_postfix_str(" | ".join(texts))

    def finished(self, outcome: Outcome) -> None:
        how = "unchanged" if outcome.reused else f"{outcome.seconds:.0f} s"
        self(f"{outcome.task.problem} {'failed' if outcome.error else how}")
        self.bar.update()


@contextmanager
def _board(total: int, out: Path) -> Iterator[_Board]:
    # Were this process killed, the next report's sweep would take the folder away.
    folder = storage.make_dir(out / f"{storage.TEMPORARY}status")
    plain = not sys.stderr.isatty()
    try:
        with tqdm(total=total, desc="report", unit="notebook", disable=plain) as bar:
            yield _Board(bar, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
