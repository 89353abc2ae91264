"""What a report was made with and of: for its first and last page and for results.json."""

import itertools
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlcvlib import __version__
from dlcvlib.config.paths import ROOT
from dlcvlib.config.schema import CHAPTERS, Parameters
from dlcvlib.utils import environment, fingerprints, storage

PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "scikit-learn", "matplotlib")
OF_A_RUN = (
    *("seconds", "images_per_second", "device", "precision", "precision_why"),
    *("threads", "processes"),
)
"""What is taken from a run's record."""

Payloads = Mapping[str, Sequence[Mapping[str, Any]]]
"""Problem -> what its notebook has sent to the report (see `dlcvlib.report.notebook`)."""


def describe(
    payloads: Payloads,
    cell_seconds: float,
    seconds: Mapping[str, float],
    params: Mapping[str, Parameters],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The provenance in results.json.

    Args:
        payloads: of the notebooks that ran.
        cell_seconds: how long all cells of these ran.
        seconds: problem -> how long its notebook took.
        params: chapter -> its parameters.
        about: profile, command and start time of this report, the most memory, in bytes, that its
            processes have had together, and seconds spent so far by kind of work (`stopwatch`).
    """
    chapters = list(dict.fromkeys(list(CHAPTERS)[int(problem[0]) - 1] for problem in payloads))
    sent = list(itertools.chain(*payloads.values()))
    names = run_names(sent)
    runs = _records(names, {params[chapter].runs_dir for chapter in chapters})
    devices = ", ".join(dict.fromkeys(map(_trained_on, runs)))
    inside = sum((Counter(payload["seconds"]) for payload in sent), Counter())
    spent = inside + Counter(about["spent"])
    spent["evaluation and figures"] = cell_seconds - inside.total()
    spent["starting the notebooks"] = sum(seconds.values()) - cell_seconds
    return {
        "profile": about["profile"],
        "command": about["command"],
        "data": {chapter: params[chapter].data for chapter in chapters},
        "seeds": "; ".join(f"{chapter}: {_seeds(params[chapter])}" for chapter in chapters),
        "device": devices or f"not known (training runs without a record: {len(names)})",
        "seconds_training": sum(run["seconds"] for run in runs),
        "seconds_notebooks": sum(seconds.values()),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | fingerprints.versions(*PACKAGES),
        "untested_versions": environment.deviations(),
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(about["started"])),
        "notebooks": dict(seconds),
        "seconds_by_work": dict(spent.most_common()),
        "memory_peak_mb": about["memory"] / 1e6,
        "runs": runs,
    }


def run_names(payloads: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the training runs that were used, each once."""
    return list(dict.fromkeys(name for payload in payloads for name in payload["runs"]))


def _records(names: Sequence[str], folders: Iterable[str]) -> list[dict[str, Any]]:
    """What the runs' records say, as far as they are there and whole."""
    found = []
    for name in names:
        records = (storage.sealed(Path(folder, name, "provenance.json")) for folder in folders)
        if record := next(filter(None, records), None):
            # Records of an older version may lack a part.
            found.append({"run": name} | {key: record.get(key) for key in OF_A_RUN})
    return found


def _trained_on(run: Mapping[str, Any]) -> str:
    several = f"{run['processes']} processes, " if (run["processes"] or 1) > 1 else ""
    return f"{run['device']} ({several}threads: {run['threads']}, {run['precision']})"


def _seeds(params: Parameters) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {str(value).strip('[]')}"
        for name, value in params.model_dump().items()
        if name.endswith(("seed", "seeds"))
    )


def _commit() -> str:
    """The commit that the code is at, with a word if it has local changes."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + (" with local changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"not under version control (version {__version__})"
