"""From executed notebooks to one document, as HTML and PDF.

The notebooks become one text in Markdown, in which each exhibit (see `dlcvlib.report.exhibits`) is
a numbered figure or table; pandoc turns it into HTML, and into Typst's markup for the PDF. The
Markdown is read without raw HTML or TeX: text from data and users stays text.
"""

import base64
import functools
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd
import pypandoc
import typst
from nbformat import NotebookNode
from PIL import Image

from dlcvlib.config.schema import Parameters
from dlcvlib.report import provenance, tables
from dlcvlib.report.exhibits import MIME, REFERENCE, Exhibit, name_of, options, split
from dlcvlib.utils import stopwatch, storage
from dlcvlib.utils.markdown import fenced, table
from dlcvlib.utils.stopwatch import timed

TITLE = "Image models, repeated"
TEMPLATE = Path(__file__).with_name("template")
READER = "markdown-smart-raw_html-raw_tex-raw_attribute-citations-example_lists"
RESULTS_VERSION = 3
TEXT_WIDTH = 7.0
"""Inches of a full-width figure."""
PICTURES = {"image/svg+xml": "svg", "image/png": "png"}


def render(
    executed: Mapping[str, Path],
    failures: Mapping[str, tuple[str, str]],
    seconds: Mapping[str, float],
    params: Mapping[str, Parameters],
    about: Mapping[str, Any],
    exhibits: Mapping[str, Exhibit],
    out: Path,
    *,
    whole: bool,
) -> None:
    """Write report.html and, if the report is whole, report.pdf, results.json and the figures.

    Nothing is replaced before all of it has been made.

    Args:
        executed: problem -> its executed notebook, in order.
        failures: problem -> title and error of a notebook that failed.
        seconds: problem -> how long it took.
        params: chapter -> its parameters.
        about: see `provenance.describe`.
        exhibits: label -> exhibit, of all notebooks, run or not (see `exhibits.check`).
        out: where it is written.
        whole: False while chapters are still to come.
    """
    pages = {
        problem: Page(problem, nbformat.read(path, as_version=4), exhibits)
        for problem, path in executed.items()
    }
    files = {name: content for page in pages.values() for name, content in page.files.items()}
    payloads = {problem: page.payloads for problem, page in pages.items()}
    cell_seconds = sum(page.seconds for page in pages.values())
    made = provenance.describe(payloads, cell_seconds, seconds, params, about)
    markdown = document(pages=pages, failures=failures, provenance=made, params=params)
    with tempfile.TemporaryDirectory(dir=out, prefix=storage.TEMPORARY) as name:
        folder = Path(name)
        storage.write_text(folder / "report.html", to_html(markdown, files))
        if whole:
            figures = storage.make_dir(folder / "figures")
            for file, content in files.items():
                storage.write_bytes(figures / file, content)
            storage.write_bytes(folder / "report.pdf", to_pdf(markdown, files, figures))
            made["seconds_by_work"] |= stopwatch.seconds  # writing the pages
            found = {"version": RESULTS_VERSION, "provenance": made}
            found |= {problem: page.results for problem, page in pages.items()}
            found |= {problem: {"failed": error} for problem, (_, error) in failures.items()}
            storage.write_json(folder / "results.json", found)
        _publish(folder, out)


def _publish(folder: Path, out: Path) -> None:
    """Move everything in `folder` to `out`, in the place of what was there; that needs no space."""
    for path in list(folder.iterdir()):
        if path.is_dir() and (out / path.name).exists():
            (out / path.name).replace(folder / f"old {path.name}")
        path.replace(out / path.name)


# --- a notebook -----------------------------------------------------------------------------------


class Page:
    """An executed notebook, as the report has it.

    Attributes:
        markdown: its text.
        files: name -> content of every picture and CSV.
        payloads: what the kernel has sent to the report, in order.
        abstract: what it adds to the report's abstract, in Markdown.
        headline: what it adds to the first page's main table.
        runs: names of the training runs that it came from.
        seconds: how long its cells ran.
    """

    def __init__(
        self, problem: str, notebook: NotebookNode, exhibits: Mapping[str, Exhibit]
    ) -> None:
        self.problem = problem
        self.exhibits = exhibits
        self.files: dict[str, bytes] = {}
        self.payloads: list[dict[str, Any]] = []
        self.abstract: list[str] = []
        self.headline: list[dict[str, str]] = []
        durations = (cell.metadata.get("papermill", {}).get("duration") for cell in notebook.cells)
        self.seconds = sum(duration or 0.0 for duration in durations)
        parts = [part for cell in notebook.cells for part in self._cell(cell)]
        # Links to the problem lead to its first heading.
        text = "\n\n".join(filter(None, parts))
        self.markdown = re.sub(r"^(##.*)$", rf"\1 {{#nb-{problem}}}", text, count=1, flags=re.M)
        self.runs = provenance.run_names(self.payloads)

    @property
    def results(self) -> dict[str, Any]:
        """Every value of every table and all that was recorded, by name."""
        return {k: v for payload in self.payloads for k, v in payload["values"].items()}

    def _cell(self, cell: NotebookNode) -> Iterator[str]:
        """What stands in the report for a cell, piece by piece."""
        if cell.cell_type == "markdown":
            yield self._linked(re.sub(r"^#", "##", cell.source, flags=re.MULTILINE))
        elif cell.cell_type == "code":
            chosen = options(cell.source)
            code = split(cell.source)[1].strip("\n")
            outputs = [self._output(output, chosen) for output in cell.outputs]
            if chosen.get("include") is False:
                return
            if code and chosen.get("echo") is not False:
                yield fenced(code, "python")
            if chosen.get("output") is not False:
                yield from filter(None, outputs)

    def _output(self, output: NotebookNode, chosen: Mapping[str, Any]) -> str:
        data = output.get("data", {})
        if payload := data.get(MIME):
            self.payloads.append(payload)
            self.headline += payload.get("rows", [])
            if payload["kind"] in ("figure", "table"):
                return self._exhibit(self.exhibits[chosen["label"]], data, payload)
            return ""
        if "text/markdown" in data:
            text = self._linked(data["text/markdown"])
            if "abstract" in chosen.get("tags", []):
                self.abstract.append(text)
            return text
        if any(kind in data for kind in PICTURES):
            stem = f"{self.problem}-{len(self.files) + 1}"
            return self._picture(data, stem, alt=str(chosen.get("fig-alt", "")))
        text = data.get("text/plain") or output.get("text", "")
        return fenced(text) if text.strip() else ""

    def _exhibit(
        self, exhibit: Exhibit, data: Mapping[str, str], payload: Mapping[str, Any]
    ) -> str:
        caption = f"**{exhibit.number}.** {self._linked(exhibit.caption)}"
        if payload["kind"] == "figure":
            stem = f"{exhibit.number.split()[-1]}-{name_of(exhibit.label)}"
            body = self._picture(data, stem, caption, exhibit.alt)
            if payload["csv"]:
                self.files[f"{stem}.csv"] = payload["csv"].encode()
        else:
            body = f"{data['text/markdown']}\n\n: {caption}"
        return f"::: {{#{exhibit.label} .{payload['kind']}}}\n{body}\n:::"

    def _picture(self, data: Mapping[str, str], stem: str, caption: str = "", alt: str = "") -> str:
        """The picture of a MIME bundle, which becomes a file, in its natural width."""
        if svg := data.get("image/svg+xml"):
            file, content = f"{stem}.svg", svg.encode()
            width = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)
            inches = float(width[1]) / 72 if width else TEXT_WIDTH
        else:
            file, content = f"{stem}.png", base64.b64decode(data["image/png"])
            picture = Image.open(io.BytesIO(content))
            inches = picture.width / float(picture.info.get("dpi", (100, 100))[0])
        self.files[file] = content
        alt = alt.replace("\\", "\\\\").replace('"', '\\"')
        return f'![{caption}]({file}){{alt="{alt}" share="{min(1.0, inches / TEXT_WIDTH):.2f}"}}'

    def _linked(self, text: str) -> str:
        """References as links; report.lua makes those plain that lead to nothing."""

        def link(match: re.Match[str]) -> str:
            exhibit = self.exhibits.get(match[1])
            return f"[{exhibit.number}](#{exhibit.label})" if exhibit else match[0]

        return REFERENCE.sub(link, text)


# --- the document ---------------------------------------------------------------------------------


def document(**values: Any) -> str:
    """The whole report in Markdown: first page, notebooks under their chapters, last page.

    Args:
        values: pages, failures, provenance and params, as `render` has them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE),
        extensions=["jinja2.ext.do"],
        undefined=jinja2.StrictUndefined,
        comment_start_string="<!--",  # for pandoc's {#identifier} is text
        comment_end_string="-->",
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fenced": fenced,
        "frame": _frame,
        "json": functools.partial(json.dumps, ensure_ascii=False),
        "table": table,
    }
    return environment.get_template("report.md.j2").render(values, title=TITLE)


def _frame(rows: Iterable[Any], columns: Sequence[str] | None = None) -> str:
    """Values by the formats of columns.yaml."""
    return tables.to_markdown(pd.DataFrame(list(rows), columns=columns))


# --- HTML and PDF -----------------------------------------------------------------------------


@timed("writing HTML")
def to_html(markdown: str, files: Mapping[str, bytes]) -> str:
    """One self-contained page: pictures become data URIs, formulas MathML."""
    more = ["--mathml", "--toc", "--toc-depth=2", "--section-divs"]
    html = _pandoc(markdown, "html5", "report.html", files, more)
    kinds = {suffix: kind for kind, suffix in PICTURES.items()}

    def embed(match: re.Match[str]) -> str:
        data = base64.b64encode(files[match[1]]).decode()
        return f'src="data:{kinds[match[1][-3:]]};base64,{data}"'

    return re.sub(r'src="(\d-\d[.-][\w.-]+)"', embed, html)


@timed("writing PDF")
def to_pdf(markdown: str, files: Mapping[str, bytes], folder: Path) -> bytes:
    """The printed report; its pictures lie in `folder`."""
    source = folder / "report.typ"
    storage.write_text(source, _pandoc(markdown, "typst", "report.typ", files, []))
    try:
        return typst.compile(str(source), root=str(folder))
    finally:
        source.unlink()


def _pandoc(
    markdown: str, to: str, template: str, files: Mapping[str, bytes], more: Sequence[str]
) -> str:
    return pypandoc.convert_text(
        markdown,
        to,
        format=READER,
        extra_args=[
            "--standalone",
            "--wrap=none",
            f"--template={TEMPLATE / template}",
            f"--lua-filter={TEMPLATE / 'report.lua'}",
            f"--metadata=pagetitle:{TITLE}",
            f"--metadata=files:|{'|'.join(files)}|",
            *more,
        ],
    )
