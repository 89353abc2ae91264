"""Which notebooks must be run, and why; which trained models can still be used.

A notebook of which all that decides it is unchanged is not run again: its text, its parameters, the
data, the modules that it imports, and the versions of the libraries that decide what it shows.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from dlcvlib.config.paths import NOTEBOOKS
from dlcvlib.config.profiles import CHAPTERS, load
from dlcvlib.config.schema import Parameters
from dlcvlib.evaluation import original
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError

DECIDING = (
    "torch",
    "torchvision",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "matplotlib",
    "pandas",
    "seaborn",
    "torchinfo",
)
"""Libraries whose version decides what a notebook shows."""
STYLE = fingerprints.PACKAGE / "plots" / "report.mplstyle"
"""How every figure looks."""


@dataclass(frozen=True)
class Task:
    """One notebook to run, and where its result goes."""

    source: Path
    target: Path
    chapter: str
    parameters: dict[str, Any]
    identity: dict[str, Any]

    @property
    def title(self) -> str:
        """The notebook's heading."""
        cells = nbformat.read(self.source, as_version=4).cells
        return cells[0].source.partition("\n")[0].lstrip("# ")

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
        UserError: naming a problem that is not there.
    """
    sources = {path.name[:3]: path for path in sorted(notebooks.glob("[1-4]-[1-9]-*.ipynb"))}
    there = {*sources, *(problem[0] for problem in sources)}
    if unknown := [name for name in only if name not in there]:
        raise UserError(
            f"--only: there is no problem {', '.join(unknown)} (there are: {', '.join(sources)}; "
            "a chapter's number stands for all of it)"
        )
    return {p: path for p, path in sources.items() if not only or {p, p[0]} & set(only)}


def plan(
    params: Mapping[str, Parameters],
    fingerprints_of_data: Mapping[str, str],
    only: Sequence[str],
    out: Path,
    notebooks: Path = NOTEBOOKS,
) -> list[Task]:
    """The notebooks to run, in order, each with the key of all that decides its result."""
    sources = chosen(only, notebooks)
    chapters = list(CHAPTERS)
    versions = fingerprints.versions(*DECIDING) | {"python": sys.version.split()[0]}
    tasks = []
    for problem, source in sources.items():
        chapter = chapters[int(problem[0]) - 1]
        parameters = params[chapter].model_dump()
        cells = nbformat.read(source, as_version=4).cells
        program = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        identity = {
            "text": fingerprints.json_hash({"cells": [cell.source for cell in cells]}),
            "parameters": _deciding(params[chapter]),
            "original": fingerprints.json_hash(
                original.report() | {"parameters": _deciding(load("original", chapter))}
            ),
            "data": {parameters["data"]: fingerprints_of_data[chapter]},
            "code": {
                path.relative_to(fingerprints.PACKAGE).as_posix(): fingerprints.source_hash([path])
                for path in fingerprints.imported(program)
            }
            | {STYLE.name: storage.sha256(STYLE)},
            "versions": versions,
        }
        target = out / "notebooks" / source.name
        tasks.append(Task(source, target, chapter, parameters, identity))
    return tasks


def _deciding(params: Parameters) -> dict[str, Any]:
    """A chapter's parameters and those of the chapters that it uses, by name."""
    named = params.model_dump()
    for chapter, theirs in params.uses.items():
        named |= {f"{chapter}.{name}": value for name, value in theirs.model_dump().items()}
    return {name: value for name, value in named.items() if not name.endswith("runs_dir")}


def explain(tasks: Sequence[Task]) -> str:
    """What a report would run and why, and what it would use again, a line a notebook."""
    lines = []
    for task in tasks:
        reasons = why(task)
        lines.append(
            f"{task.problem} " + (f"runs: {'; '.join(reasons)}" if reasons else "is reused")
        )
    return "\n".join(lines)


def explain_runs(runs_dir: Path) -> str:
    """Which trained models fit today's code, which are stale and why, and which are half done."""
    versions = fingerprints.versions("torch", "accelerate")
    fit, stale, halves = 0, [], []
    for folder in sorted(path for path in runs_dir.glob("*-*") if path.is_dir()):
        if (record := storage.sealed(folder / "provenance.json")) is None:
            if pointer := storage.sealed(folder / "checkpoint.json"):
                halves.append(f"{folder.name} goes on at step {pointer['step']}")
            continue
        there = [name for name in record["code"] if fingerprints.modules(name)[0].is_file()]
        if reasons := _differences(record, {"code": fingerprints.module_hashes(there), **versions}):
            stale.append(f"{folder.name} is stale: {'; '.join(reasons)}")
        else:
            fit += 1
    return "\n".join([f"trained models in {runs_dir} that can be used: {fit}", *halves, *stale])


def why(task: Task) -> list[str]:
    """The reasons to run a notebook; none if the executed one is whole and still true."""
    if not task.record.is_file() or not task.target.is_file():
        return ["it has not been run yet"]
    record = storage.sealed(task.record)
    if record is None:
        return [f"{task.record} is damaged"]
    if storage.sha256(task.target) != record["sha256"]:
        return [f"{task.target} is damaged"]
    return _differences(record["identity"], task.identity)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is no longer as it was, in words, part by part of what is known now."""
    return [
        f"{part} changed: {', '.join(names)}" if names != [part] else f"its {part} changed"
        for part, value in now.items()
        if (names := _changed(part, before[part], value))
    ]


def _changed(part: str, before: Any, now: Any) -> list[str]:
    if not isinstance(now, dict):
        return [part] * (before != now)
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
