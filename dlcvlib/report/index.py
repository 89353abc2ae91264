"""index.html, which leads to all that a report has made so far."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from dlcvlib.report import TEMPLATE, TITLE
from dlcvlib.utils import storage


def write_index(
    out: Path, tasks: Sequence[Any], outcomes: Sequence[Any], about: Mapping[str, Any], whole: bool
) -> None:
    """Write it.

    Args:
        out: the report's folder.
        tasks: all of its notebooks, as `uptodate.Task`.
        outcomes: of those that have ended, as `execute.Outcome`.
        about: profile and command.
        whole: whether the report has been written. Before, only its page may be of this report.
    """
    loader = jinja2.FileSystemLoader(TEMPLATE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("index.html.j2").render(
        {"title": TITLE, "about": about, "out": out, "tasks": tasks, "whole": whole},
        ended={outcome.task.problem: outcome for outcome in outcomes},
    )
    storage.write_text(out / "index.html", text)
