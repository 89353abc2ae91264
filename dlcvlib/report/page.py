"""An executed notebook as parts of the report's text, and the files that these show."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen
from xml.etree import ElementTree

import pandas as pd
from bleach import html5lib_shim as html5lib
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode
from PIL import Image

from dlcvlib.config.paths import NOTEBOOKS, ROOT
from dlcvlib.plots.style import WIDTH
from dlcvlib.report.exhibits import CITATION, MIME, Exhibit, code, linked, name_of, options
from dlcvlib.report.standalone import TAG, as_written
from dlcvlib.utils.markdown import escaped, fenced

FIGURES = "figures"
PART = "\x1e"
"""What a part of the document begins with."""
TERMINAL = re.compile(
    r"\x1b(?!\[[\d;]*m)(\[[ -?]*[@-~]|[]PX^_][^\a\x1b]*(\a|\x1b\\)|[ -/]*[0-~])?|[\0-\b\v-\x1a]"
)
"""What a text tells a terminal, such as a link's address, but for colours: `ESC [ number; … m`."""


def part(text: str, format: str = "markdown", **how: Any) -> str:
    """A part of the document, which is read by itself.

    Args:
        text: what it says.
        format: "markdown", "cell" for what a notebook's author wrote, or "html".
        how: where it stands: page and cell.
    """
    return f"{PART}{json.dumps(how | {'format': format})}\n{text.replace(PART, '')}\n"


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
            chosen = {"echo": True, "output": True} | options(cell.source)
            source = code(cell.source)
            outputs = [part(**place | self._output(output, chosen)) for output in cell.outputs]
            if source and chosen["echo"]:
                yield part(fenced(source, "{.python .cell}"), **place)
            if chosen["output"]:
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
                stem = f"{self.problem}-summary"
                file, _ = self._file(_content(data), stem)
                self.files[f"{stem}.csv"] = payload["csv"].encode()
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
        plain = output.get("text") or "\n".join(output.get("traceback", []))
        only_live = f"[{', '.join(data)}: shown in a live notebook only]" if data else ""
        plain = TERMINAL.sub("", plain or data.get("text/plain", only_live)).strip("\n").rstrip()
        if html := data.get("text/html"):
            html = whole(html) if "<table" in html.lower() else html
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
            interactive = payload.get("interactive", {})
            if points := interactive.get("points"):  # a file, which several figures may share
                content = base64.b64decode(points["sheet"])
                sheet = f"points-{hashlib.sha256(content).hexdigest()[:12]}.webp"
                self.files[sheet] = content
                interactive = interactive | {"points": points | {"sheet": sheet}}
            menu |= {"picture": file, "interactive": interactive}
        if csv.strip():
            menu["values"] = f"{stem}.csv"
            self.files[menu["values"]] = csv.encode()
        return {"text": f"::: {{#{exhibit.label} .{payload['kind']}}}\n{body}\n:::", "menu": menu}

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
            inches = float(points[1]) / 72 if points else WIDTH
            kind = "svg"
        else:
            picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "GIF"))
            picture.load()  # all of it: Typst would stop at half a picture
            inches = picture.width / float(picture.info.get("dpi", (100, 100))[0])
            kind = picture.format.lower()
        self.files[f"{stem}.{kind}"] = content
        return f"{stem}.{kind}", min(1.0, inches / WIDTH)

    def _linked(self, text: str) -> str:
        """References as links, of which report.lua makes those plain that lead to nothing.

        Citations too, for a notebook's Markdown has none; parts.lua reads what the link holds.
        """
        return CITATION.sub(r"[\g<0>](cite:)", linked(as_written(text), self.exhibits))


def _content(data: Mapping[str, str]) -> bytes:
    """The picture in a MIME bundle, if there is one."""
    kinds = sorted(data, reverse=True)  # SVG before PNG
    text = next((data[kind] for kind in kinds if kind.startswith("image/")), "")
    return text.encode() if text.lstrip()[:1] == "<" else base64.b64decode(text)


def _image(file: str, share: float, caption: str, alt: str) -> str:
    alt = alt.replace("\\", "\\\\").replace('"', '\\"')
    return f'![{caption}]({FIGURES}/{file}){{alt="{alt}" share="{share:.2f}"}}'


def whole(html: str) -> str:
    """HTML with the tags that its author may leave out, without which pandoc sees no table."""
    tree = html5lib.HTMLParser(namespaceHTMLElements=False).parseFragment(html)
    writer = html5lib.HTMLSerializer(omit_optional_tags=False, quote_attr_values="always")
    return writer.render(html5lib.getTreeWalker("etree")(tree))
