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
from noto_cjk_sans_otc import FONT_PATH
from PIL import Image

from dlcvlib.config.schema import Parameters
from dlcvlib.report import provenance
from dlcvlib.report.exhibits import MIME, REFERENCE, Exhibit, code, name_of, options
from dlcvlib.report.tables import to_markdown
from dlcvlib.utils import stopwatch, storage
from dlcvlib.utils.markdown import fenced, table
from dlcvlib.utils.stopwatch import timed

TITLE = "Image models, repeated"
FIGURES = "figures"
TEMPLATE = Path(__file__).with_name("template")
READER = "markdown-smart-raw_html-raw_tex-raw_attribute-citations-example_lists"
RESULTS_VERSION = 3
TEXT_WIDTH = 7.0
"""Inches of a full-width figure."""


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
    made = provenance.describe(pages, seconds, params, about)
    markdown = document(pages=pages, failures=failures, provenance=made, params=params)
    names = ["report.html"]
    with tempfile.TemporaryDirectory(dir=out, prefix=storage.TEMPORARY) as temporary:
        folder = Path(temporary)
        figures = storage.make_dir(folder / FIGURES)
        for page in pages.values():
            for file, content in page.files.items():
                storage.write_bytes(figures / file, content)
        storage.write_text(folder / "report.html", to_html(markdown, folder))
        if whole:
            storage.write_bytes(folder / "report.pdf", to_pdf(markdown, folder))
            made["seconds_by_work"] |= stopwatch.seconds  # writing the pages
            results = {"version": RESULTS_VERSION, "provenance": made}
            results |= {problem: page.results for problem, page in pages.items()}
            results |= {problem: {"failed": error} for problem, (_, error) in failures.items()}
            storage.write_json(folder / "results.json", results)
            names += ["report.pdf", "results.json", FIGURES]
        for name in names:  # renaming needs no space
            if (out / name).is_dir():
                (out / name).replace(folder / f"old {name}")
            (folder / name).replace(out / name)


# --- a notebook -----------------------------------------------------------------------------------


class Page:
    """An executed notebook, as the report has it: its prose, its code and its exhibits.

    Attributes:
        markdown: its text.
        files: name -> content of every picture and CSV.
        payloads: what the kernel has sent to the report, in order.
        abstract: what it adds to the report's abstract, in Markdown.
    """

    def __init__(
        self, problem: str, notebook: NotebookNode, exhibits: Mapping[str, Exhibit]
    ) -> None:
        self.problem = problem
        self.exhibits = exhibits
        self.files: dict[str, bytes] = {}
        self.payloads: list[dict[str, Any]] = []
        self.abstract: list[str] = []
        text = "\n\n".join(part for cell in notebook.cells for part in self._cell(cell))
        # Links to the problem lead to its first heading.
        self.markdown = re.sub(r"^(##.*)$", rf"\1 {{#nb-{problem}}}", text, count=1, flags=re.M)

    @property
    def results(self) -> dict[str, Any]:
        """Every value of every table and all that was recorded, by name."""
        return {k: v for payload in self.payloads for k, v in payload["values"].items()}

    @property
    def headline(self) -> list[dict[str, Any]]:
        """What it adds to the first page's main table."""
        return [row for payload in self.payloads for row in payload.get("rows", [])]

    @property
    def runs(self) -> list[str]:
        """Names of the training runs that it came from, each once."""
        return list(dict.fromkeys(name for payload in self.payloads for name in payload["runs"]))

    def _cell(self, cell: NotebookNode) -> Iterator[str]:
        """What stands in the report for a cell, piece by piece."""
        if cell.cell_type == "markdown":
            yield self._linked(re.sub(r"^#", "##", cell.source, flags=re.MULTILINE))
        elif cell.cell_type == "code":
            chosen = {"include": True, "echo": True, "output": True} | options(cell.source)
            source = code(cell.source)
            outputs = [part for o in cell.outputs for part in self._output(o, chosen)]
            if source and chosen["include"] and chosen["echo"]:
                yield fenced(source, "python")
            if chosen["include"] and chosen["output"]:
                yield from outputs

    def _output(self, output: NotebookNode, chosen: Mapping[str, Any]) -> Iterator[str]:
        data = output.get("data", {})
        if payload := data.get(MIME):
            self.payloads.append(payload)
            if payload["kind"] in ("figure", "table"):
                yield self._exhibit(self.exhibits[chosen["label"]], data, payload)
        elif "text/markdown" in data:
            text = self._linked(data["text/markdown"])
            if "abstract" in chosen.get("tags", []):
                self.abstract.append(text)
            yield text
        elif data.keys() & {"image/svg+xml", "image/png"}:
            stem = f"{self.problem}-{len(self.files) + 1}"
            yield self._picture(data, stem, "", str(chosen.get("fig-alt", "")))
        elif text := (data.get("text/plain") or output.get("text", "")).rstrip():
            yield fenced(text)

    def _exhibit(
        self, exhibit: Exhibit, data: Mapping[str, str], payload: Mapping[str, Any]
    ) -> str:
        caption = f"**{exhibit.number}.** {self._linked(exhibit.caption)}"
        if payload["kind"] == "table":
            body = f"{data['text/markdown']}\n\n: {caption}"
        else:
            stem = f"{exhibit.number.split()[-1]}-{name_of(exhibit.label)}"
            body = self._picture(data, stem, caption, exhibit.alt)
            if payload["csv"]:
                self.files[f"{stem}.csv"] = payload["csv"].encode()
        return f"::: {{#{exhibit.label} .{payload['kind']}}}\n{body}\n:::"

    def _picture(self, data: Mapping[str, str], stem: str, caption: str, alt: str) -> str:
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
        share = f"{min(1.0, inches / TEXT_WIDTH):.2f}"
        return f'![{caption}]({FIGURES}/{file}){{alt="{alt}" share="{share}"}}'

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
    return to_markdown(pd.DataFrame(list(rows), columns=columns))


# --- HTML and PDF -----------------------------------------------------------------------------


@timed("writing HTML")
def to_html(markdown: str, folder: Path) -> str:
    """One self-contained page: pictures, which lie in `folder`, as data URIs, formulas MathML."""
    more = ["--mathml", "--toc", "--toc-depth=2", "--section-divs"]
    return _pandoc(
        markdown, "html5", "report.html", *more, "--embed-resources", f"--resource-path={folder}"
    )


@timed("writing PDF")
def to_pdf(markdown: str, folder: Path) -> bytes:
    """The printed report; its pictures lie in `folder`."""
    source = _pandoc(markdown, "typst", "report.typ")
    # The font for Chinese, Japanese and Korean comes from its package.
    return typst.compile(
        source.encode(), root=str(folder), font_paths=[str(Path(FONT_PATH).parent)]
    )


def _pandoc(markdown: str, to: str, template: str, *more: str) -> str:
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
            *more,
        ],
    )
