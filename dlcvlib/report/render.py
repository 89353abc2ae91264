"""From executed notebooks to one document, as HTML and PDF.

The notebooks become one text, mostly in Markdown, in which each exhibit (see
`dlcvlib.report.exhibits`) is a numbered figure or table. pandoc reads it part by part (see
`template/parts.lua`) into its document tree; what a page must not have is taken out of that, and
pandoc turns it into HTML, and into Typst's markup for the PDF.
"""

import base64
import hashlib
import io
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen
from xml.etree import ElementTree

import jinja2
import nbformat
import pandas as pd
import pypandoc
import typst
from bleach import html5lib_shim as html5lib
from nbconvert.filters import ansi2html, strip_ansi
from nbformat import NotebookNode
from noto_cjk_sans_otc import FONT_PATH
from PIL import Image

from dlcvlib.config.paths import NOTEBOOKS, ROOT
from dlcvlib.config.schema import Parameters
from dlcvlib.evaluation import original
from dlcvlib.plots.style import pair_name
from dlcvlib.report import TITLE, embed, provenance
from dlcvlib.report.exhibits import (
    BIBLIOGRAPHY,
    CITATION,
    MIME,
    REFERENCE,
    Exhibit,
    code,
    name_of,
    options,
)
from dlcvlib.report.standalone import TAG, as_written
from dlcvlib.report.tables import to_markdown
from dlcvlib.utils import stopwatch, storage
from dlcvlib.utils.markdown import escaped, fenced, table
from dlcvlib.utils.stopwatch import timed

FIGURES = "figures"
TEMPLATE = Path(__file__).with_name("template")
PART = "\x1e"
"""What a part of the document begins with."""
TERMINAL = re.compile(
    r"\x1b(?!\[[\d;]*m)(\[[ -?]*[@-~]|[]PX^_][^\a\x1b]*(\a|\x1b\\)|[ -/]*[0-~])?|[\0-\b\v-\x1a]"
)
"""What a text tells a terminal, such as a link's address, but for colours: `ESC [ number; … m`."""
PIXELS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
"""Formats of pictures; the page shows the first three, and the others as PNG."""
RESULTS_VERSION = 3
TEXT_WIDTH = 7.0
"""Inches of a full-width figure."""


def render(
    executed: Mapping[str, tuple[Path, float]],
    failures: Mapping[str, tuple[str, str]],
    params: Mapping[str, Parameters],
    about: Mapping[str, Any],
    exhibits: Mapping[str, Exhibit],
    out: Path,
    notebooks: Path = NOTEBOOKS,
    *,
    pending: Mapping[str, str],
) -> None:
    """Write report.html and, if nothing is pending, report.pdf, results.json and the figures.

    Nothing is replaced before all of it has been made.

    Args:
        executed: problem -> its executed notebook, and how many seconds it took, in order.
        failures: problem -> title and error of a notebook that failed.
        params: chapter -> its parameters.
        about: see `provenance.describe`.
        exhibits: label -> exhibit, of all notebooks, run or not (see `exhibits.check`).
        out: where it is written.
        notebooks: the folder that they came from, beside which pictures are looked for.
        pending: problem -> title of a notebook that is still to come; if none is, all is written.
    """
    pages = {
        problem: Page(problem, nbformat.read(path, as_version=4), exhibits, notebooks, path.name)
        for problem, (path, _) in executed.items()
    }
    seconds = {problem: spent for problem, (_, spent) in executed.items()}
    made = provenance.describe(pages, seconds, params, about)
    values = {"pages": pages, "failures": failures, "provenance": made, "params": params}
    text = document(**values, pending=pending, original=original.report())
    tree = parsed(text, pages)
    authors = [{"t": "MetaString", "c": name} for name in made["authors"]]
    tree["meta"]["author"] = {"t": "MetaList", "c": authors}
    tree["meta"]["date"] = {"t": "MetaString", "c": made["made"]}
    names = ["report.html"]
    with tempfile.TemporaryDirectory(dir=out, prefix=storage.TEMPORARY) as temporary:
        folder = Path(temporary)
        figures = storage.make_dir(folder / FIGURES)
        for page in pages.values():
            for file, content in page.files.items():
                storage.write_bytes(figures / file, content)
        storage.write_text(folder / "report.html", to_html(tree, folder))
        if not pending:
            storage.write_bytes(folder / "report.pdf", to_pdf(tree, folder))
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
        parts: its text, as `part` makes them.
        name: of its file, among the executed notebooks beside the report.
        files: name -> content of every picture and CSV.
        payloads: what the kernel has sent to the report, in order.
        abstract: what it adds to the report's abstract, in Markdown.
        panels: its panels of the first page's figure, in Markdown.
    """

    def __init__(
        self,
        problem: str,
        notebook: NotebookNode,
        exhibits: Mapping[str, Exhibit],
        folder: Path = NOTEBOOKS,
        name: str = "",
    ) -> None:
        self.problem, self.folder, self.name = problem, folder.resolve(), name
        self.exhibits = exhibits
        self.files: dict[str, bytes] = {}
        self.payloads: list[dict[str, Any]] = []
        self.abstract: list[str] = []
        self.panels: list[str] = []
        self.attachments = [cell.get("attachments", {}) for cell in notebook.cells]
        self.parts = [each for n, cell in enumerate(notebook.cells) for each in self._cell(cell, n)]

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

    def _cell(self, cell: NotebookNode, number: int) -> Iterator[str]:
        """What stands in the report for a cell, part by part."""
        place = {"page": self.problem, "cell": number}
        if TAG in cell.metadata.get("tags", []):
            return
        if cell.cell_type == "markdown":
            yield part(self._linked(cell.source), "cell", **place)
        elif cell.cell_type == "code":
            chosen = {"include": True, "echo": True, "output": True} | options(cell.source)
            source = code(cell.source)
            outputs = [part(**place | self._output(output, chosen)) for output in cell.outputs]
            if source and chosen["include"] and chosen["echo"]:
                yield part(fenced(source, "{.python .cell}"), **place)
            if chosen["include"] and chosen["output"]:
                yield from outputs

    def _output(self, output: NotebookNode, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `part` that show an output; one that is damaged costs only itself."""
        try:
            return self._shown(output, chosen)
        except Exception as error:
            what = escaped(f"{', '.join(output.get('data', {}))}; {type(error).__name__}")
            return {"text": f"::: failed\n**This output is damaged** ({what}).\n:::"}

    def _shown(self, output: NotebookNode, chosen: Mapping[str, Any]) -> dict[str, Any]:
        data = output.get("data", {})
        if payload := data.get(MIME):
            self.payloads.append(payload)
            if payload["kind"] in ("figure", "table"):
                return self._exhibit(self.exhibits[chosen["label"]], data, payload)
            if payload["kind"] == "summary":
                file, _ = self._file(_content(data), f"{self.problem}-summary")
                self.panels.append(_image(file, 1, chosen["fig-subcap"].strip(), chosen["fig-alt"]))
            return {"text": ""}
        if content := _content(data):
            file, share = self._file(content, f"{self.problem}-{len(self.files) + 1}")
            return {"text": _image(file, share, "", str(chosen.get("fig-alt", "")))}
        if text := data.get("text/markdown") or data.get("text/latex"):
            text = self._linked(text)
            if "abstract" in chosen.get("tags", []):
                self.abstract.append(text)
                return {"text": ""}
            return {"text": text, "format": "cell"}
        if output.get("name") == "stderr" and not chosen.get("warning", True):
            return {"text": ""}
        plain = output.get("text") or "\n".join(output.get("traceback", []))
        only_live = f"[{', '.join(data)}: shown in a live notebook only]" if data else ""
        plain = TERMINAL.sub("", plain or data.get("text/plain", only_live)).strip("\n").rstrip()
        if html := data.get("text/html"):
            html = _whole(html) if "<table" in html.lower() else html
            return {"text": html, "format": "html", "plain": plain}
        return {"text": fenced(plain) if strip_ansi(plain).strip() else ""}

    def _exhibit(
        self, exhibit: Exhibit, data: Mapping[str, str], payload: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Its text, and as `menu` what the HTML's menu under it leads to."""
        caption = f"**{exhibit.number}.** {self._linked(exhibit.caption)}"
        name = name_of(exhibit.label)
        stem = f"{exhibit.number.split()[-1]}-{name}"
        menu = {"number": exhibit.number, "notebook": self.name, "runs": payload["runs"]}
        if payload["kind"] == "table":
            body = f"{data['text/markdown']}\n\n: {caption}"
            csv = pd.DataFrame(payload["values"].get(name, {})).to_csv(index=False)
            stem = f"table-{stem}"
        else:
            file, share = self._file(_content(data), stem)
            body, csv = _image(file, share, caption, exhibit.alt), payload["csv"]
            menu |= {"picture": file, "interactive": self._interactive(payload)}
        if csv.strip():
            menu["values"] = f"{stem}.csv"
            self.files[menu["values"]] = csv.encode()
        return {"text": f"::: {{#{exhibit.label} .{payload['kind']}}}\n{body}\n:::", "menu": menu}

    def _interactive(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """What a figure shows to a pointer; a sheet of images, which several may share, a file."""
        found = dict(payload.get("interactive", {}))
        if points := found.get("points"):
            content = base64.b64decode(points["sheet"])
            file = f"points-{hashlib.sha256(content).hexdigest()[:12]}.webp"
            self.files[file] = content
            found["points"] = points | {"sheet": file}
        return found

    def picture(self, address: str, cell: int) -> tuple[str, float]:
        """The picture at an address in a cell, which becomes a file: its name, and its share.

        Whatever this raises, there is no picture there that the page may show.
        """
        kind, _, name = address.partition(":")
        if kind == "attachment":
            content = _content(self.attachments[cell].get(unquote(name), {}))
        elif kind == "data":
            content = urlopen(address).read()  # no connection: it is the picture itself
        else:
            # No file from elsewhere on this machine gets into a report that is passed on.
            folders = [self.folder, ROOT]
            places = [(folder / unquote(address)).resolve() for folder in folders]
            inside = [p for p in places if p.is_file() and {*folders} & {*p.parents}]
            content = inside[0].read_bytes()
        return self._file(content, f"{self.problem}-{len(self.files) + 1}")

    def _file(self, content: bytes, stem: str) -> tuple[str, float]:
        """A picture as a file, and its natural width as a share of the text's."""
        if content.lstrip()[:1] == b"<":
            svg = ElementTree.fromstring(content)
            points = re.fullmatch(r"([\d.]+)pt", svg.get("width", ""))
            inches = float(points[1]) / 72 if points else TEXT_WIDTH
            kind = "svg"
        else:
            picture = Image.open(io.BytesIO(content), formats=PIXELS)
            picture.load()  # all of it: Typst would stop at half a picture
            inches = picture.width / float(picture.info.get("dpi", (100, 100))[0])
            kind = picture.format.lower()
            if picture.format not in PIXELS[:3]:
                picture.convert("RGBA").save(buffer := io.BytesIO(), kind := "png")
                content = buffer.getvalue()
        self.files[f"{stem}.{kind}"] = content
        return f"{stem}.{kind}", min(1.0, inches / TEXT_WIDTH)

    def _linked(self, text: str) -> str:
        """References as links, of which report.lua makes those plain that lead to nothing.

        Citations too, for a notebook's Markdown has none; parts.lua reads what the link holds.
        """

        def link(match: re.Match[str]) -> str:
            exhibit = self.exhibits.get(match[1])
            return f"[{exhibit.number}](#{exhibit.label})" if exhibit else match[0]

        return CITATION.sub(r"[\g<0>](cite:)", REFERENCE.sub(link, as_written(text)))


def _content(data: Mapping[str, str]) -> bytes:
    """The picture in a MIME bundle, if there is one."""
    kinds = sorted(data, reverse=True)  # SVG before PNG
    text = next((data[kind] for kind in kinds if kind.startswith("image/")), "")
    return text.encode() if text.lstrip()[:1] == "<" else base64.b64decode(text)


def _image(file: str, share: float, caption: str, alt: str) -> str:
    alt = alt.replace("\\", "\\\\").replace('"', '\\"')
    return f'![{caption}]({FIGURES}/{file}){{alt="{alt}" share="{share:.2f}"}}'


# --- the document ---------------------------------------------------------------------------------


def document(**values: Any) -> str:
    """The whole report in Markdown: first page, notebooks under their chapters, last page.

    Args:
        values: pages, failures, pending, provenance and params, as `render` has them; original,
            the original's numbers and claims.
    """
    # For pandoc's {#identifier} is text.
    syntax = {"comment_start_string": "<!--", "comment_end_string": "-->"}
    syntax |= {"trim_blocks": True, "lstrip_blocks": True, "extensions": ["jinja2.ext.do"]}
    loader = jinja2.FileSystemLoader(TEMPLATE)
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **syntax)
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.filters |= {"fenced": fenced, "part": part, "frame": _frame, "table": table}
    environment.filters |= {"escaped": escaped, "pair_name": pair_name}
    return environment.get_template("report.md.j2").render(values, title=TITLE)


def _frame(rows: Iterable[Any], columns: Sequence[str] | None = None) -> str:
    """Values by the formats of columns.yaml."""
    return to_markdown(pd.DataFrame(list(rows), columns=columns))


def part(text: str, format: str = "markdown", **how: Any) -> str:
    """A part of the document, which is read by itself.

    Args:
        text: what it says.
        format: "markdown", "cell" for what a notebook's author wrote, or "html".
        how: where it stands: page and cell.
    """
    return f"{PART}{json.dumps(how | {'format': format})}\n{text.replace(PART, '')}\n"


# --- the tree ---------------------------------------------------------------------------------


def parsed(text: str, pages: Mapping[str, Page]) -> dict[str, Any]:
    """A document as pandoc's tree, without anything that a page could load or run.

    Pictures become files of their pages; one that is none has its address as a title.
    """
    tree = json.loads(_pandoc(text, str(TEMPLATE / "parts.lua"), "json"))
    for div in tree["blocks"]:
        found = dict(div["c"][0][2])
        how = json.loads(found["how"])
        if "html" in found:
            again = part(**how | {"text": _whole(found["html"]), "again": found["title"]})
            div["c"] = parsed(again, pages)["blocks"][0]["c"]
            continue
        for node in _nodes(div):
            match node:
                case {"t": "Image", "c": [attributes, _, target]} if "page" in how:
                    _place(attributes, target, pages[how["page"]], how["cell"])
                case [str(), [*_], [*attributes]]:
                    node[2] = [pair for pair in attributes if pair[0] in ("alt", "share", "width")]
        div["c"][0][2].append(["how", found["how"]])
    return tree


def _whole(html: str) -> str:
    """HTML with the tags that its author may leave out, without which pandoc sees no table."""
    tree = html5lib.HTMLParser(namespaceHTMLElements=False).parseFragment(html)
    writer = html5lib.HTMLSerializer(omit_optional_tags=False, quote_attr_values="always")
    return writer.render(html5lib.getTreeWalker("etree")(tree))


def _nodes(tree: Any) -> Iterator[Any]:
    """Every object and list of a tree."""
    left = [tree]
    while left:
        yield (node := left.pop())
        children = node.values() if isinstance(node, dict) else node
        left += [child for child in children if isinstance(child, dict | list)]


def _place(attributes: list[Any], target: list[str], page: Page, cell: int) -> None:
    address = target[0]
    web = address.lower().startswith(("http://", "https://"))
    if web or address.removeprefix(f"{FIGURES}/") in page.files:
        return
    try:
        file, share = page.picture(address, cell)
    except Exception:  # missing, damaged, or no picture that this page may show
        target[:] = ["", address[:100]]
    else:
        attributes[2].append(["share", f"{share:.2f}"])
        target[:] = [f"{FIGURES}/{file}", ""]


# --- HTML and PDF -----------------------------------------------------------------------------


@timed("writing HTML")
def to_html(tree: Mapping[str, Any], folder: Path) -> str:
    """One self-contained page: formulas MathML, style, script and files, from `folder`, within."""
    more = ["--mathml", "--toc", "--toc-depth=3", "--section-divs"]
    for name in ("css", "js"):
        text = (TEMPLATE / f"report.{name}").read_text(encoding="utf-8").strip()
        more += [f"--variable={name}:{text}", f"--variable={name}-hash:{embed.policy_hash(text)}"]
    page = _written(tree, "html5", "report.html", *more)
    page = re.sub(r"(?<=<code>)[^<]*\x1b[^<]*", _coloured, page)
    # The names of code's lines, to which nothing leads, take half a megabyte.
    line = re.compile(r'<span id="[\w-]+"><a href="[^"]+" aria-hidden="true" [^>]+></a>')
    return embed.files(line.sub("<span>", page), folder, FIGURES)


def _coloured(code: re.Match[str]) -> str:
    """A terminal's colours as spans; what is a number there is made readable by report.html."""
    return ansi2html(unescape(code[0])).replace('style="color', 'style="--colour')


@timed("writing PDF")
def to_pdf(tree: dict[str, Any], folder: Path) -> bytes:
    """The printed report; pictures lie in `folder`.

    It is PDF/UA-1 and PDF/A-2a if all has a text alternative. Formulas that Typst refuses are shown
    as they were typed, and a notice stands in the place of any other part that it refuses; both are
    changed in the tree.
    """
    # The font for Chinese, Japanese and Korean comes from its package.
    where = {"root": str(folder), "font_paths": [str(Path(FONT_PATH).parent)]}
    standards = ["ua-1", "a-2a"]
    while True:
        source = strip_ansi(_written(tree, "typst-citations", "report.typ"))
        try:
            return typst.compile(source.encode(), pdf_standards=standards, **where)
        except typst.TypstError as error:
            if standards and str(error).startswith("PDF/"):
                standards = []
            else:
                _without_refused(tree, source, error)


def _without_refused(tree: dict[str, Any], source: str, error: typst.TypstError) -> None:
    """Put something simpler in the place of the part of a tree that Typst has refused."""
    file, line = re.search(r"([^/\\ ]+):(\d+):\d+\n", error.diagnostic).groups()
    lines = source.split("\n")[: int(line)]
    before = "\n".join(lines) if file.endswith(".typ") else source.partition(file)[0]
    number = re.findall(r"^// part (\d+)$", before, re.MULTILINE)[-1]
    div = tree["blocks"][int(number) - 1]
    formulas = [node for node in _nodes(div) if isinstance(node, dict) and node.get("t") == "Math"]
    for node in formulas:
        node |= {"t": "Code", "c": [["", [], []], node["c"][1]]}
    if not formulas:
        if "failed" in div["c"][0][1]:
            raise error
        text = {"t": "Str", "c": f"This cannot be printed ({error}); report.html shows it."}
        div["c"] = [["", ["failed"], []], [{"t": "Para", "c": [text]}]]


def _written(tree: Mapping[str, Any], to: str, template: str, *more: str) -> str:
    options = ["--standalone", "--wrap=none", f"--metadata=pagetitle:{TITLE}", *more]
    # Of the whole document: a part may cite what others do, and the works are listed once.
    options += ["--citeproc", f"--bibliography={BIBLIOGRAPHY}", "--metadata=link-citations"]
    options += [f"--template={TEMPLATE / template}", f"--lua-filter={TEMPLATE / 'report.lua'}"]
    return _pandoc(json.dumps(tree), "json", to, *options)


def _pandoc(text: str, format: str, to: str, *more: str) -> str:
    command = [pypandoc.get_pandoc_path(), f"--from={format}", f"--to={to}", "--quiet", *more]
    return subprocess.run(command, input=text, stdout=-1, check=True, encoding="utf-8").stdout
