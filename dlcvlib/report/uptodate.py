"""Which notebooks must be run, and why; which trained models can still be used.

A notebook is run again if anything that decides its result has changed: its text, its parameters,
the data, the modules that it imports, or the versions of the libraries behind what it shows.
"""

import copy
import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from dlcvlib.config.paths import NOTEBOOKS
from dlcvlib.config.schema import CHAPTERS, Chapter, load
from dlcvlib.report.exhibits import Exhibit, check
from dlcvlib.report.provenance import PACKAGES
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError

DECIDING = (*PACKAGES, "scipy", "pandas", "scikit-image", "seaborn")
"""Libraries whose version decides what a notebook shows."""
FILES = [*fingerprints.PACKAGE.rglob("*.yaml"), *fingerprints.PACKAGE.rglob("*.mplstyle")]
"""How figures and tables look, and what the original reports."""
NUMBER = re.compile(r"(?<![\d-])([1-4]-[1-9])(?!\d)")
"""A problem's number in a file's name, also of a copy: "Copy of 1-3-…", "1-3-…-Copy1"."""
MAGIC = re.compile(r"\A\s*%%.*")
"""The line that hands a cell to a magic; `%%time` and others run it as Python."""
OLDER = "it was made by an older version of this project"


@dataclass(frozen=True)
class Task:
    """A notebook of the report, as it is before it runs, and where its result goes.

    Attributes:
        problem: such as "1-3".
        identity: part -> what decides the result.
        fault: why it cannot be run, if so; it stands in the report in the notebook's place.
    """

    problem: str
    notebook: NotebookNode
    target: Path
    parameters: dict[str, Any]
    identity: dict[str, Any]
    fault: str = ""

    @property
    def title(self) -> str:
        first = self.notebook.cells[0].source.partition("\n")[0] if self.notebook.cells else ""
        return first.lstrip("# ") if first.startswith("#") else self.target.stem

    def parameterized(self) -> NotebookNode:
        """The notebook with its parameters set, whatever kernel it names."""
        python = {"kernel_name": "python3", "language": "python"}
        own = copy.deepcopy(self.notebook)
        return parameterize_notebook(own, self.parameters, report_mode=True, **python)

    @property
    def trains(self) -> bool:
        """Whether it may request training runs."""
        return not self.fault and "training/runs" in self.identity["code"]

    @property
    def cells(self) -> tuple[str, ...]:
        """Sources of its code cells, with its parameters."""
        return tuple(c.source for c in self.parameterized().cells if c.cell_type == "code")

    @property
    def record(self) -> Path:
        return self.target.with_suffix(".json")

    @cached_property
    def reasons(self) -> list[str]:
        """Why it must be run; empty if the executed notebook is whole and still true."""
        if self.fault:
            return [self.fault]
        if not self.record.is_file():
            return ["it has not been run yet"]
        try:
            record = storage.read_sealed(self.record)
            storage.check(self.target, record["sha256"])
        except storage.DamagedFileError as error:
            return [str(error)]
        return _differences(record.get("identity", {}), self.identity)


def chapter_of(problem: str) -> str:
    """The chapter of a problem: "vae" of "1-3"."""
    return list(CHAPTERS)[int(problem[0]) - 1]


def chosen(only: Sequence[str], notebooks: Path = NOTEBOOKS) -> dict[str, Path]:
    """The notebooks of problems, such as "1-3", and of whole chapters, such as "1"; else of all.

    Raises:
        UserError: naming a problem that is not there, or that several files claim.
    """
    files = (path for path in notebooks.glob("[!.]*") if path.suffix.lower() == ".ipynb")
    claimed = sorted((found[1], path) for path in files if (found := NUMBER.search(path.stem)))
    count = Counter(problem for problem, _ in claimed)
    if doubles := [path.name for problem, path in claimed if count[problem] > 1]:
        raise UserError(
            f"{notebooks}: keep one and move the others elsewhere, since there is more than one "
            f"notebook of a problem: {', '.join(doubles)}"
        )
    sources = dict(claimed)
    there = {*sources, *(problem[0] for problem in sources)}
    if unknown := [name for name in only if name not in there]:
        raise UserError(
            f"--only: unknown problem {', '.join(map(repr, unknown))} "
            f"(there are: {', '.join(sources)}; a chapter's number stands for all of it)"
        )
    return {p: path for p, path in sources.items() if not only or {p, p[0]} & set(only)}


def plan(
    params: Mapping[str, Chapter],
    fingerprints_of_data: Mapping[str, str],
    only: Sequence[str],
    out: Path,
    notebooks: Path = NOTEBOOKS,
) -> list[Task]:
    """The notebooks of the report, in order, each with the identity of its result.

    Raises:
        UserError: as `chosen`.
    """
    tasks = []
    for problem, source in chosen(only, notebooks).items():
        chapter, (notebook, fault) = chapter_of(problem), _read(source)
        own, target = params[chapter], out / "notebooks" / source.name
        identity = _identity(notebook, chapter, own, fingerprints_of_data[chapter])
        tasks.append(Task(problem, notebook, target, own.model_dump(), identity, fault))
    return tasks


def declared(notebooks: Path = NOTEBOOKS) -> dict[str, Exhibit]:
    """The exhibits of all notebooks, in order, whichever of them are run.

    Raises:
        UserError: naming notebook and cell, if an exhibit is not declared as it should be.
    """
    found = {problem: _read(path) for problem, path in chosen([], notebooks).items()}
    whole = not any(fault for _, fault in found.values())
    return check({problem: notebook for problem, (notebook, _) in found.items()}, whole=whole)


def _identity(notebook: NotebookNode, chapter: str, params: Chapter, data: str) -> dict[str, Any]:
    return {
        "notebook": {"text": fingerprints.json_hash({"": [c.source for c in notebook.cells]})},
        "parameters": _deciding(params),
        "original": _deciding(load("original", chapter)),
        "data": {params.data: data},
        "code": _code(notebook),
        "files": {path.name: storage.sha256(path) for path in FILES},
        "versions": fingerprints.versions(*DECIDING) | {"python": platform.python_version()},
    }


def _read(path: Path) -> tuple[NotebookNode, str]:
    """A notebook, or an empty one and why it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        notebook = load_notebook_node(nbformat.from_dict(nbformat.reads(text, as_version=4)))
        nbformat.validate(notebook)
    except Exception as error:  # broken JSON, a merge's marks, an empty file, another format
        reason = str(error).partition("\n")[0] or type(error).__name__
        return nbformat.v4.new_notebook(), f"{path} is not a readable notebook: {reason}"
    return notebook, ""


def _deciding(params: Chapter) -> dict[str, Any]:
    """A chapter's parameters and those of the chapters that it uses, by name."""
    named = params.model_dump()
    for chapter, theirs in params.uses.items():
        named |= {f"{chapter}.{name}": value for name, value in theirs.model_dump().items()}
    return {n: value for n, value in named.items() if not n.endswith(("runs_dir", "_changes"))}


def _code(notebook: NotebookNode) -> dict[str, str]:
    """Hash of every module that a notebook imports, directly or through others."""
    modules: set[Path] = set()
    for cell in notebook.cells:
        # Another language, or what is half typed, imports nothing.
        with suppress(SyntaxError, ValueError, RecursionError, RuntimeError):
            source = MAGIC.sub("", cell.source) if cell.cell_type == "code" else ""
            modules |= fingerprints.imported(TransformerManager().transform_cell(source))
    return fingerprints.hashes(modules)


def explain(tasks: Sequence[Task]) -> Iterator[str]:
    """What a report would run and why, and what it would use again, a line a notebook."""
    for task in tasks:
        how = f"runs: {'; '.join(task.reasons)}" if task.reasons else "is reused"
        yield f"{task.problem} {task.fault or how}"


def stale(runs_dir: Path) -> Iterator[str]:
    """Which trained models do not fit today's code, and why, a line a model."""
    versions = fingerprints.versions("torch", "accelerate")
    for folder in sorted(runs_dir.glob("*-*/")):
        if record := storage.sealed(folder / "provenance.json"):
            modules = (fingerprints.PACKAGE / f"{name}.py" for name in record.get("code", {}))
            now = {"code": fingerprints.hashes(filter(Path.is_file, modules)), "versions": versions}
            record["versions"] = {name: record.get(name) for name in versions}
            if reasons := _differences(record, now):
                yield f"{folder.name} is stale: {'; '.join(reasons)}"


def _differences(before: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is no longer as it was, in words, part by part of what is known now."""
    reasons = []
    for part, values in now.items():
        if not isinstance(was := before.get(part), dict):
            return [OLDER]
        if names := [n for n in sorted({*was, *values}) if was.get(n) != values.get(n)]:
            reasons.append(f"{part} changed: {', '.join(names)}")
    return reasons
