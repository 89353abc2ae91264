"""What a report was made with and of: for its first and last page and for results.json."""

import itertools
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import Any

from dlcvlib import __version__
from dlcvlib.config.paths import ROOT
from dlcvlib.config.schema import CHAPTERS, Parameters, load
from dlcvlib.utils import environment, fingerprints, storage

PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "scikit-learn", "matplotlib")
LEFT_OUT = {"data", "code", "torch", "accelerate", "parameters", "files"}
"""Of a run's record: what its name stands for, and how it is stored."""


def describe(
    pages: Mapping[str, Any],
    seconds: Mapping[str, float],
    params: Mapping[str, Parameters],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The provenance in results.json.

    Args:
        pages: problem -> its `render.Page`.
        seconds: problem -> how long its notebook took.
        params: chapter -> its parameters.
        about: profile, command, authors (if any are named) and start time of this report, and by
            kind of work (`stopwatch`) the seconds spent so far and those of training before
            the notebooks.
    """
    chapters = list(dict.fromkeys(list(CHAPTERS)[int(problem[0]) - 1] for problem in pages))
    names = list(dict.fromkeys(name for page in pages.values() for name in page.runs))
    runs = _records(names, {params[chapter].runs_dir for chapter in chapters})
    for run in runs:
        run["problems"] = [problem for problem, page in pages.items() if run["run"] in page.runs]
    own = {p: [run["seconds"] for run in runs if run["problems"] == [p]] for p in pages}
    devices = ", ".join(dict.fromkeys(map(_trained_on, runs)))
    inside = Counter(about.get("trained", {}))
    for page in pages.values():
        for payload in page.payloads:
            inside.update(payload["seconds"])
    spent = inside + Counter(about["spent"])
    spent["evaluation, figures, starting"] = sum(seconds.values()) - inside.total()
    return {
        "authors": list(about.get("authors", [])),
        "profile": about["profile"],
        "command": about["command"],
        "data": {chapter: params[chapter].data for chapter in chapters},
        "changed": {c: _changed(params[c], about["profile"], c) for c in chapters},
        "seeds": "; ".join(f"{chapter}: {_seeds(params[chapter])}" for chapter in chapters),
        "device": devices or f"not known (training runs without a record: {len(names)})",
        "seconds_training": sum(run["seconds"] for run in runs),
        "seconds_notebooks": sum(seconds.values()),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | fingerprints.versions(*PACKAGES),
        "untested_versions": environment.deviations(),
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(about["started"])),
        "notebooks": dict(seconds),
        "own_runs": {p: {"runs": len(each), "seconds": sum(each)} for p, each in own.items()},
        "seconds_by_work": dict(spent.most_common()),
        "runs": runs,
    }


def _records(names: Iterable[str], folders: Iterable[str]) -> list[dict[str, Any]]:
    """What the runs' records say, as far as they are there and whole."""
    found = {}
    for name, folder in itertools.product(names, folders):
        if record := storage.sealed(Path(folder, name, "provenance.json")):
            found[name] = {"run": name} | {k: v for k, v in record.items() if k not in LEFT_OUT}
    return list(found.values())


def _trained_on(run: Mapping[str, Any]) -> str:
    several = f"{run['processes']} processes, " if (run["processes"] or 1) > 1 else ""
    return f"{run['device']} ({several}threads: {run['threads']}, {run['precision']})"


def _changed(params: Parameters, profile: str, chapter: str) -> list[str]:
    """Names of the parameters that have another value than their profile's."""
    of_profile = load(profile, chapter).model_dump()
    return [name for name, value in params.model_dump().items() if value != of_profile[name]]


def _seeds(params: Parameters) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {str(value).strip('[]')}"
        for name, value in params.model_dump().items()
        if name.endswith(("seed", "seeds"))
    )


def _commit() -> str:
    """The commit that the code is at, with a word if it has local changes."""
    if not (ROOT / ".git").exists():
        return f"not under version control (version {__version__})"
    # Of this folder: neither of one around it, nor of what a hook's environment names.
    command = ["git", "--git-dir=.git", "status", "--porcelain=v2", "--branch"]
    environment = {n: value for n, value in os.environ.items() if not n.startswith("GIT_")}
    try:
        output = check_output(command, cwd=ROOT, env=environment, text=True, stderr=DEVNULL)
    except (OSError, CalledProcessError):
        return f"unknown: git cannot read it (version {__version__})"
    head, *lines = output.splitlines()
    changed = any(not line.startswith("#") for line in lines)
    commit = head.split()[-1][:12].replace("(initial)", "no commit yet")
    return commit + (" with local changes" if changed else "")
