"""Which notebooks must be run, and why; which trained models can still be used.

A notebook is run again if anything that decides its result has changed: its text, its parameters,
the data, the modules that it imports, or the versions of the libraries behind what it shows.
"""

import ast
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from dlcvlib.config.paths import NOTEBOOKS
from dlcvlib.config.schema import CHAPTERS, Chapter, load
from dlcvlib.report.exhibits import Exhibit, check
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError

DECIDING = (
    *("torch", "torchvision", "accelerate", "torchinfo"),
    *("numpy", "scipy", "pandas", "scikit-learn", "scikit-image"),
    *("matplotlib", "seaborn"),
)
"""Libraries whose version decides what a notebook shows."""
FILES = [
    fingerprints.PACKAGE / name
    for name in (
        "plots/report.mplstyle",
        "report/columns.yaml",
        "evaluation/original_report.yaml",
    )
]
"""How figures and tables look, and what the original reports."""
OLDER = "it was made by an older version of this project"


@dataclass(frozen=True)
class Task:
    """One notebook to run, and where its result goes.

    Attributes:
        identity: part -> what decides the result.
        unreadable: why the file is not a notebook; empty if it is one.
    """

    source: Path
    target: Path
    chapter: str
    title: str
    parameters: dict[str, Any]
    identity: dict[str, Any]
    unreadable: str = ""

    @property
    def problem(self) -> str:
        """Such as "1-3"."""
        return self.source.name[:3]

    @property
    def record(self) -> Path:
        return self.target.with_suffix(".json")

    @property
    def failed(self) -> Path:
        return self.target.with_suffix(".failed.ipynb")


def chosen(only: Sequence[str], notebooks: Path = NOTEBOOKS) -> dict[str, Path]:
    """The notebooks of problems, such as "1-3", and of whole chapters, such as "1"; else of all.

    Raises:
        UserError: naming a problem that is not there, or that several files claim.
    """
    files = sorted(notebooks.glob("[1-4]-[1-9]-*.ipynb"))
    count = Counter(path.name[:3] for path in files)
    if doubles := [path.name for path in files if count[path.name[:3]] > 1]:
        raise UserError(f"{notebooks}: more than one notebook of a problem: {', '.join(doubles)}")
    sources = {path.name[:3]: path for path in files}
    there = {*sources, *(problem[0] for problem in sources)}
    if unknown := [name for name in only if name not in there]:
        raise UserError(
            f"--only: unknown problem {', '.join(unknown)} (there are: {', '.join(sources)}; "
            "a chapter's number stands for all of it)"
        )
    return {p: path for p, path in sources.items() if not only or {p, p[0]} & set(only)}


def plan(
    params: Mapping[str, Chapter],
    fingerprints_of_data: Mapping[str, str],
    only: Sequence[str],
    out: Path,
    notebooks: Path = NOTEBOOKS,
) -> list[Task]:
    """The notebooks to run, in order, each with the identity of its result.

    Raises:
        UserError: as `chosen`.
    """
    tasks = []
    for source in chosen(only, notebooks).values():
        notebook, target = _read(source), out / "notebooks" / source.name
        chapter = list(CHAPTERS)[int(source.name[0]) - 1]
        if isinstance(notebook, str):
            task = Task(source, target, chapter, source.stem, {}, {}, unreadable=notebook)
        else:
            title = "".join(c.source for c in notebook.cells[:1]).partition("\n")[0].lstrip("# ")
            own, data = params[chapter], fingerprints_of_data[chapter]
            identity = _identity(notebook, chapter, own, data)
            task = Task(source, target, chapter, title, own.model_dump(), identity)
        tasks.append(task)
    return tasks


def declared(notebooks: Path = NOTEBOOKS) -> dict[str, Exhibit]:
    """The exhibits of all notebooks that can be read, in order, whichever of them are run.

    Raises:
        UserError: naming notebook and cell, if an exhibit is not declared as it should be.
    """
    read = {problem: _read(path) for problem, path in chosen([], notebooks).items()}
    return check({name: found for name, found in read.items() if not isinstance(found, str)})


def _identity(
    notebook: nbformat.NotebookNode, chapter: str, params: Chapter, data: str
) -> dict[str, Any]:
    return {
        "notebook": {"text": fingerprints.json_hash({"": [c.source for c in notebook.cells]})},
        "parameters": _deciding(params),
        "original": _deciding(load("original", chapter)),
        "data": {params.data: data},
        "code": _code(notebook),
        "files": {path.name: storage.sha256(path) for path in FILES},
        "versions": fingerprints.versions(*DECIDING) | {"python": platform.python_version()},
    }


def _read(path: Path) -> nbformat.NotebookNode | str:
    """A notebook, or why it is none."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        return notebook
    except Exception as error:  # broken JSON, a merge's marks, an empty file, another format
        return f"{path} is not a readable notebook: {next(iter(str(error).splitlines()), error)}"


def _deciding(params: Chapter) -> dict[str, Any]:
    """A chapter's parameters and those of the chapters that it uses, by name."""
    named = params.model_dump()
    for chapter, theirs in params.uses.items():
        named |= {f"{chapter}.{name}": value for name, value in theirs.model_dump().items()}
    return {n: value for n, value in named.items() if not n.endswith(("runs_dir", "_changes"))}


def _code(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Hash of every module that a notebook imports, directly or through others."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return fingerprints.hashes(fingerprints.imported("\n".join(map(_python, cells))))


def _python(cell: str) -> str:
    """A cell without IPython's magics; nothing if it is not Python even so."""
    from IPython.core.inputtransformer2 import TransformerManager

    for source in (cell, TransformerManager().transform_cell(cell)):
        try:
            ast.parse(source)
        except SyntaxError:
            continue
        return source
    return ""


def explain(tasks: Sequence[Task]) -> str:
    """What a report would run and why, and what it would use again, a line a notebook."""
    reasons = {task.problem: "; ".join(why(task)) for task in tasks}
    return "\n".join(f"{p} runs: {why}" if why else f"{p} is reused" for p, why in reasons.items())


def explain_runs(runs_dir: Path) -> str:
    """Which trained models fit today's code, which are stale and why, and which are unfinished."""
    versions = fingerprints.versions("torch", "accelerate")
    fit, unfinished, stale = 0, [], []
    for folder in sorted(path for path in runs_dir.glob("*-*") if path.is_dir()):
        if (record := storage.sealed(folder / "provenance.json")) is None:
            if pointer := storage.sealed(folder / "checkpoint.json"):
                unfinished.append(f"{folder.name} continues at step {pointer['step']}")
            continue
        modules = [fingerprints.PACKAGE / f"{name}.py" for name in record.get("code", {})]
        code = fingerprints.hashes(path for path in modules if path.is_file())
        now = {"code": code, "versions": versions}
        if versions.keys() <= record.keys():
            record["versions"] = {name: record[name] for name in versions}
        if reasons := _differences(record, now):
            stale.append(f"{folder.name} is stale: {'; '.join(reasons)}")
        else:
            fit += 1
    return "\n".join([f"trained models in {runs_dir} that can be used: {fit}", *unfinished, *stale])


def why(task: Task) -> list[str]:
    """The reasons to run a notebook; none if the executed one is whole and still true."""
    if task.unreadable:
        return [task.unreadable]
    if not task.record.is_file() or not task.target.is_file():
        return ["it has not been run yet"]
    if (record := storage.sealed(task.record)) is None:
        return [f"{task.record} is damaged"]
    if storage.sha256(task.target) != record.get("sha256"):
        return [f"{task.target} is damaged"]
    return _differences(record.get("identity", {}), task.identity)


def _differences(before: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is no longer as it was, in words, part by part of what is known now."""
    reasons = []
    for part, values in now.items():
        if not isinstance(was := before.get(part), dict):
            return [OLDER]
        if names := [n for n in sorted({*was, *values}) if was.get(n) != values.get(n)]:
            reasons.append(f"{part} changed: {', '.join(names)}")
    return reasons
