"""Run the notebooks headless, keep what is still true, and have the report written.

An executed notebook is kept under `<out>/notebooks/` with a record beside it, written last, that
holds its content hash and all that decides it.
"""

import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from dlcvlib.config.paths import NOTEBOOKS, ROOT
from dlcvlib.config.schema import Parameters
from dlcvlib.report import uptodate
from dlcvlib.report.exhibits import MIME, check, options
from dlcvlib.report.uptodate import Task, plan
from dlcvlib.utils import memory, stopwatch, storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.process import apart, cores

MARK = ".dlcv-report"
"""Tells a folder that a report has been begun in from one that holds something else."""
KERNEL_STARTS = 3
MEMORY_SECONDS = 5.0
"""Between two looks at the memory in use, each of which takes some hundredths of a second."""
JOBS_MAX = 4
"""Notebooks run side by side unless asked for more: one a chapter."""

SIDE_BY_SIDE = ("pixelda", "vae", "dann", "gan")
"""Chapters in the order of their beginning, the longest first: the others then fill the time. The
last has nothing long, and wants a model of the second."""


@dataclass(frozen=True)
class Outcome:
    """What came of a task: `error` is empty if it succeeded; `reused` if nothing was run.

    `memory` is the most, in bytes, that had been found in use at the end of the run that made it.
    """

    task: Task
    seconds: float
    error: str = ""
    reused: bool = False
    memory: int = 0


def make_report(
    params: Mapping[str, Parameters],
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

    A notebook that fails is no reason for the others not to run; a notice stands in its place.

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
        UserError: if `only` names a problem that is not there, or `out` cannot be written, or holds
            what a report would replace and is no report's.
    """
    refuse(out, notebooks)
    tasks = plan(params, fingerprints_of_data, only, out, notebooks)
    sources = uptodate.chosen([], notebooks)
    exhibits = check({p: nbformat.read(path, as_version=4) for p, path in sources.items()})
    about = {"profile": profile, "command": command, "started": time.time()}

    def render(done: Iterable[Outcome], whole: bool) -> None:
        chosen = sorted((o for o in done), key=lambda o: o.task.problem)
        good = [o for o in chosen if not o.error]
        memory_peak = max([say.memory, *(o.memory for o in chosen)])
        # Apart, or this process would hold some 200 MB more for as long as notebooks run.
        apart(
            "dlcvlib.report.render:render",
            {o.task.problem: o.task.target for o in good},
            {o.task.problem: (o.task.title, o.error) for o in chosen if o.error},
            {o.task.problem: o.seconds for o in good},
            params,
            about | {"memory": memory_peak, "spent": stopwatch.so_far()},
            exhibits,
            out,
            whole=whole,
        )

    outcomes: list[Outcome] = []
    with storage.exclusive_lock(storage.make_dir(out) / ".report", "made"):
        (out / MARK).touch()
        storage.sweep(out)
        storage.sweep(storage.make_dir(out / "notebooks"))
        with _board(len(tasks), out) as say:
            for outcome in _run(tasks, min(jobs, len(tasks)), cell_timeout, say):
                outcomes.append(outcome)
                chapter = [t for t in tasks if t.chapter == outcome.task.chapter]
                ended = sum(o.task.chapter == outcome.task.chapter for o in outcomes)
                new = not all(o.reused for o in outcomes)
                if new and ended == len(chapter) and len(outcomes) < len(tasks):
                    try:
                        render(outcomes, whole=False)
                    except Exception as error:
                        # A page on the way is a convenience: the notebooks go on.
                        say(f"no page yet: {error}")
            say("writing the report")
            render(outcomes, whole=True)
    failures = [o for o in outcomes if o.error]
    for failure in failures:
        print(f"\n{failure.task.problem} failed: {failure.error}", file=sys.stderr)
    print(f"{out / 'report.html'}\n{out / 'report.pdf'}\n{out / 'results.json'}")
    return not failures


def refuse(out: Path, notebooks: Path = NOTEBOOKS) -> None:
    """Raise a UserError where a report would overwrite what it has not made."""
    ours = (out / MARK).exists() or _is_results(out / "results.json")
    for name in ("notebooks", "figures", "report.html", "report.pdf", "results.json"):
        if (out / name).resolve() == notebooks.resolve() or ((out / name).exists() and not ours):
            raise UserError(
                f"--out: {out / name} is no report's and would be overwritten; name another folder"
            )


def _is_results(path: Path) -> bool:
    """Whether a file is a report's results.json; older ones have left no mark beside it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"version", "provenance"} <= found.keys()


def _run(
    tasks: Sequence[Task], jobs: int, cell_timeout: int | None, say: "_Say"
) -> Iterable[Outcome]:
    """Outcomes as they come: chapters side by side, a chapter's notebooks one after another.

    Where no chapter is left to begin, another's last notebooks are taken: nothing that two of them
    need is trained twice.
    """
    chapters: dict[str, deque[Task]] = {}
    for task in tasks:
        chapters.setdefault(task.chapter, deque()).append(task)
    order = chapters if jobs == 1 else sorted(chapters, key=SIDE_BY_SIDE.index)
    untouched = deque(chapters[chapter] for chapter in order)
    choosing = threading.Lock()
    finished: queue.Queue[Outcome] = queue.Queue()

    def work() -> None:
        own: deque[Task] = deque()
        while True:
            with choosing:
                if not own and untouched:
                    own = untouched.popleft()
                others = max(chapters.values(), key=len)
                if not own and not others:
                    return
                task = own.popleft() if own else others.pop()
            try:
                outcome = reuse(task) or execute(task, say, cell_timeout)
            except Exception as error:
                # Or the main thread would wait for ever.
                outcome = Outcome(task, 0.0, str(error) or type(error).__name__)
            finished.put(outcome)

    with _kernel_environment(jobs, say.folder):
        # Daemons: after Ctrl-C nothing is waited for, and kernels end with their parent.
        for _ in range(jobs):
            threading.Thread(target=work, daemon=True).start()
        due = 0.0
        for _ in tasks:
            while True:
                if time.monotonic() > due:
                    say.memory = max(say.memory, memory.resident_bytes())
                    due = time.monotonic() + MEMORY_SECONDS
                try:
                    outcome = finished.get(timeout=0.5)
                    break
                except queue.Empty:
                    say.status()
            say.finished(outcome)
            yield outcome


def side_by_side(gpu: bool) -> int:
    """How many notebooks to run at once: one a core, at most `JOBS_MAX`; one with a GPU."""
    # A small network gains less from a second thread than two of them from one each; more of a
    # chapter's notebooks would mostly wait for each other's training, and each takes memory.
    return 1 if gpu else min(cores(), JOBS_MAX)


def reuse(task: Task) -> Outcome | None:
    """The outcome of an earlier run with the same key, if its notebook is whole."""
    if not task.record.is_file():
        return None
    try:
        record = storage.read_sealed(task.record)
        storage.check(task.target, record["sha256"])
    except storage.DamagedFileError as error:
        print(f"{error}; running it again")
        return None
    if record["identity"] != task.identity:
        return None
    return Outcome(task, record["seconds"], reused=True, memory=record.get("memory", 0))


def execute(task: Task, say: "_Say | None" = None, cell_timeout: int | None = None) -> Outcome:
    """Run a notebook to a temporary file; keep it under its name only if every cell ran."""
    if say:
        say(f"{task.problem} starts")
    task.record.unlink(missing_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=task.target.parent, prefix=storage.TEMPORARY) as folder:
        temporary = Path(folder) / task.target.name
        error = _papermill(task, temporary, cell_timeout)
        seconds = time.monotonic() - started
        if not temporary.is_file():
            return Outcome(task, seconds, error or "papermill wrote no notebook")
        notebook = nbformat.read(temporary, as_version=4)
    error = error or unfinished(notebook)
    clean(notebook)
    text = nbformat.writes(notebook)
    if error:
        storage.write_text(task.failed, text)
        return Outcome(task, seconds, f"{error}\nThe notebook is kept in {task.failed}")
    storage.write_text(task.target, text)
    record = {
        "identity": task.identity,
        "sha256": storage.sha256(task.target),
        "seconds": seconds,
        "memory": say.memory if say else 0,
    }
    storage.write_sealed(task.record, record)
    task.failed.unlink(missing_ok=True)
    return Outcome(task, seconds)


def _papermill(task: Task, target: Path, cell_timeout: int | None) -> str:
    """Execute; the error as text, or nothing. A kernel that does not start is tried again."""
    for attempt in range(KERNEL_STARTS):
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
                # some that they are interrupted, which is how they are told to end.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                # What it wrote is whole by now; a kernel with torch in it takes seconds to end.
                shutdown_kernel="immediate",
            )
        except PapermillExecutionError as error:
            first = next(iter(error.source.splitlines()), "")
            return f"cell {error.exec_count} ({first!r}): {error.ename}: {error.evalue}"
        except CellTimeoutError:
            return f"{_running(target)} ran longer than {cell_timeout} s (--cell-timeout)"
        except DeadKernelError:
            return f"{_running(target)} ended with the kernel's death"
        except RuntimeError as error:
            # Raised before the first cell if the kernel could not start: ports collide at times.
            if "Kernel" in str(error) and attempt + 1 < KERNEL_STARTS and not _began(target):
                continue
            return f"{type(error).__name__}: {error}"
        except OSError as error:
            return f"{target.name} cannot be written or read: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""
    return "the kernel did not start"


def _literal(path: Path) -> str:
    """A path as papermill wants it, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _began(path: Path) -> bool:
    if not path.is_file():
        return False
    cells = nbformat.read(path, as_version=4).cells
    return any(cell.get("execution_count") for cell in cells)


def _running(path: Path) -> str:
    """The cell of a half-executed notebook that papermill was in, in words."""
    cells = nbformat.read(path, as_version=4).cells if path.is_file() else []
    begun = [n for n, c in enumerate(cells) if c.metadata.get("papermill", {}).get("start_time")]
    if not begun:
        return "a cell"
    return f"cell {begun[-1] + 1} ({next(iter(cells[begun[-1]].source.splitlines()), '')!r})"


def unfinished(notebook: nbformat.NotebookNode) -> str:
    """Why an executed notebook does not count as run; nothing if it does.

    papermill takes a cell that calls `sys.exit(0)` for success: here every cell must have run.
    """
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        first = cell.source.splitlines()[0]
        for output in cell.outputs:
            if output.output_type == "error":
                return f"cell {number} ({first!r}) ended with {output.ename}: {output.evalue}"
        if cell.execution_count is None:
            return f"cell {number} ({first!r}) was never run"
        shown = [output.get("data", {}).get(MIME, {}).get("kind") for output in cell.outputs]
        if "label" in options(cell.source) and not {"figure", "table"} & set(shown):
            return f"cell {number} ({first!r}) shows no figure or table: its value must be one"
    return ""


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop what is litter in a still page: progress bars and widgets without their kernel."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _litter(output)]


def _litter(output: nbformat.NotebookNode) -> bool:
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return widget or (output.output_type == "stream" and output.name == "stderr")


@contextmanager
def _kernel_environment(jobs: int, folder: Path):
    """Environment variables that the kernels inherit: where to report, and how many threads."""
    changes = {"DLCV_STATUS": str(folder.resolve())}
    if jobs > 1:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        share = max(1, cores() // jobs)
        changes["OMP_NUM_THREADS"] = str(min(int(asked), share) if asked.isdigit() else share)
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Say:
    """The overall progress: one moving line on a terminal, plain lines elsewhere.

    Attributes:
        folder: where the kernels report.
        memory: the most that was found at once, in bytes.
    """

    def __init__(self, bar: tqdm, folder: Path) -> None:
        self.bar = bar
        self.folder = folder
        self.memory = 0

    def __call__(self, text: str) -> None:
        if self.bar.disable:
            print(f"{text}\n", end="", flush=True)  # in one piece: several threads have their say
        else:
            self.bar.set_postfix_str(text)

    def status(self) -> None:
        """Show what the kernels last reported of their training."""
        if self.bar.disable:
            return
        texts = []
        for path in sorted(self.folder.glob("*")):
            try:
                if time.time() - path.stat().st_mtime < 10:
                    texts.append(path.read_text(encoding="utf-8"))
            except OSError:
                continue
        if texts:
            self.bar.set_postfix_str(" | ".join(texts))

    def finished(self, outcome: Outcome) -> None:
        how = f"{outcome.seconds:.0f} s"
        if outcome.reused:
            how = "unchanged"
        if outcome.error:
            how = "failed"
        self(f"{outcome.task.problem} {how}")
        self.bar.update()


@contextmanager
def _board(total: int, out: Path):
    # Were this process killed, the next report's sweep would take the folder away.
    folder = storage.make_dir(out / f"{storage.TEMPORARY}status")
    plain = not sys.stderr.isatty()
    try:
        with tqdm(total=total, desc="report", unit="notebook", disable=plain) as bar:
            yield _Say(bar, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
