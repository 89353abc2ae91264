"""The report's figures and tables, as the notebooks' sources declare them.

A code cell that makes an exhibit says so in lines of the form of Quarto's cell options:

    #| label: fig-gap
    #| fig-cap: Accuracy on the target; bars are means, dots seeds.
    #| fig-alt: For each pair of domains three bars, from source only to target only.

The label begins with `fig-` or `tbl-`. Text anywhere in the report refers to it as `@fig-gap`, and
cites a work of references.bib as pandoc has it: `[@kingma2014, section 2]`, or `@kingma2014` in a
sentence. All of these are known, and checked, before any notebook runs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from nbformat import NotebookNode

from dlcvlib.utils.errors import UserError, nearest

MIME = "application/vnd.dlcv.v2+json"
"""What `dlcvlib.report.notebook` adds to a cell's outputs for the report."""
KINDS = {"fig": "Figure", "tbl": "Table"}
TEXTS = {"fig": ["fig-cap", "fig-alt"], "tbl": ["tbl-cap"]}
"""What each kind of exhibit needs besides its label: caption, and alt text."""
KNOWN = {"label", "tags", "echo", "output", "fig-cap", "fig-subcap", "fig-alt", "tbl-cap"}
"""Those of Quarto's options that the report follows."""
OPTION = re.compile(r"^#\|(.*)\n?", re.MULTILINE)
LABEL = re.compile(r"(fig|tbl)-(?:\d-\d-)?(\w[\w-]*)", re.ASCII)
REFERENCE = re.compile(r"(?<![\w\\@])@((?:fig|tbl)-[\w-]*\w)", re.ASCII)
BIBLIOGRAPHY = Path(__file__).with_name("references.bib")
CITED = r"(?<![\w\\@`])@([a-z]+\d{4}[a-z]?\b|(?<=\[@)[a-z]\w*)"
"""The key of a work: author and year; any name at the beginning of brackets."""
CITATION = re.compile(rf"(?<![\\`])\[[^][]*?{CITED}[^][]*\](?!\()|{CITED}", re.ASCII)


@dataclass(frozen=True)
class Exhibit:
    """A figure or table.

    Attributes:
        problem: its notebook, such as "3-3".
        label: such as "tbl-3-3-gap-closed", unique in the report.
        number: such as "Table 3-3.2".
        caption: Markdown on one line.
        alt: what a picture shows, for a reader who cannot see it; empty for a table.
    """

    problem: str
    label: str
    number: str
    caption: str
    alt: str = ""


def name_of(label: str) -> str:
    """An exhibit's name in results.json and files: "gap_closed" of "tbl-3-3-gap-closed"."""
    return LABEL.fullmatch(label)[2].replace("-", "_")


def linked(text: str, exhibits: Mapping[str, Exhibit], page: str = "") -> str:
    """Text with its references as links to the exhibits, on this page or another."""

    def link(match: re.Match[str]) -> str:
        exhibit = exhibits.get(match[1])
        return f"[{exhibit.number}]({page}#{exhibit.label})" if exhibit else match[0]

    return REFERENCE.sub(link, text)


def code(source: str) -> str:
    """A cell's source without its options."""
    return OPTION.sub("", source).strip("\n")


def options(source: str) -> dict[str, Any]:
    """A cell's options.

    Raises:
        UserError: if they are not a YAML mapping.
    """
    try:
        found = yaml.safe_load("\n".join(OPTION.findall(source))) or {}
    except yaml.YAMLError as error:
        raise UserError(
            f"its options are not YAML ({getattr(error, 'problem', error)}); "
            "text that holds ': ' or begins with a sign must be in quotes"
        ) from None
    if not isinstance(found, dict):
        raise UserError("its options are not a YAML mapping: each line is `#| key: value`")
    return found


def check(notebooks: Mapping[str, NotebookNode], *, whole: bool = True) -> dict[str, Exhibit]:
    """The exhibits of all notebooks, by label, in order.

    Args:
        notebooks: problem -> its notebook, of the whole report: references lead to all of it.
        whole: False if some cannot be read: references may lead to those, and are not checked.

    Raises:
        UserError: naming the notebook and the cell, counted from 1, of the first mistake: an
            unknown option, a label twice or of neither kind, a figure without a caption or alt
            text, a table without a caption, a reference to no exhibit, a citation of no work.
    """
    cells = [
        (problem, f"notebook {problem}, cell {number}", cell)
        for problem, notebook in sorted(notebooks.items())
        for number, cell in enumerate(notebook.cells, 1)
    ]
    found: dict[str, Exhibit] = {}
    for problem, where, cell in cells:
        if cell.cell_type == "code":
            try:
                _declare(problem, options(cell.source), found)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
    works = re.findall(r"^@\w+\{(\w+),", BIBLIOGRAPHY.read_text(encoding="utf-8"), re.MULTILINE)
    for _, where, cell in cells:
        for key in re.findall(CITED, cell.source, re.ASCII):
            if key not in works:
                raise UserError(
                    f"{where}: @{key} is not in {BIBLIOGRAPHY.name}{nearest(key, works)}"
                )
        for label in REFERENCE.findall(cell.source) if whole else []:
            if label not in found:
                raise UserError(f"{where}: @{label} refers to no exhibit{nearest(label, found)}")
    return found


def _declare(problem: str, given: Mapping[str, Any], found: dict[str, Exhibit]) -> None:
    """Add the exhibit that a code cell with these options makes, if any."""
    if unknown := [str(name) for name in given if name not in KNOWN]:
        raise UserError(f"unknown option {unknown[0]!r}{nearest(unknown[0], KNOWN)}")
    if "label" not in given:
        if captions := given.keys() & {"fig-cap", "tbl-cap"}:
            raise UserError(f"{captions.pop()} without a label")
        return
    label = str(given["label"])
    if not LABEL.fullmatch(label):
        raise UserError(f"label {label!r} is not fig-… or tbl-…, of letters, digits and hyphens")
    if label in found:
        raise UserError(f"label {label} is taken by notebook {found[label].problem}")
    kind = label[:3]
    texts = {name: " ".join(str(given.get(name) or "").split()) for name in TEXTS[kind]}
    if missing := [name for name, text in texts.items() if not text]:
        raise UserError(f"{label} has no {missing[0]}")
    count = sum(e.problem == problem and e.label.startswith(kind) for e in found.values())
    number = f"{KINDS[kind]} {problem}.{count + 1}"
    found[label] = Exhibit(problem, label, number, *texts.values())
