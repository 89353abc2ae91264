"""From executed notebooks to one document, as HTML and PDF.

The notebooks become one text, mostly in Markdown, in which each exhibit (see
`dlcvlib.report.exhibits`) is a numbered figure or table. pandoc reads it part by part (see
`template/parts.lua`) into its document tree; what a page must not have is taken out of that, and
pandoc turns it into HTML, and into Typst's markup for the PDF.
"""

import functools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pypandoc
import typst
from nbconvert.filters import ansi2html, strip_ansi
from noto_cjk_sans_otc import FONT_PATH

from dlcvlib.config.paths import NOTEBOOKS, ROOT
from dlcvlib.config.schema import Parameters
from dlcvlib.evaluation import original
from dlcvlib.plots.style import pair_name
from dlcvlib.report import RESULTS_VERSION, TEMPLATE, TITLE, embed, provenance, template
from dlcvlib.report.exhibits import BIBLIOGRAPHY, Exhibit
from dlcvlib.report.page import FIGURES, Page, part, whole
from dlcvlib.report.tables import to_markdown
from dlcvlib.utils import stopwatch, storage
from dlcvlib.utils.markdown import escaped, fenced, table
from dlcvlib.utils.stopwatch import timed


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
    measured = storage.sealed(ROOT / "benchmarks" / "results.json") or {}
    values["comparisons"] = measured.get("quality", {}).get("table", [])
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


# --- the document ---------------------------------------------------------------------------------


def document(**values: Any) -> str:
    """The whole report in Markdown: first page, notebooks under their chapters, last page.

    Args:
        values: pages, failures, pending, provenance and params, as `render` has them; original,
            the original's numbers and claims; comparisons, rows of `benchmarks.quality`.
    """
    filters = {
        "escaped": escaped,
        "fenced": fenced,
        "frame": lambda rows, columns=None: to_markdown(pd.DataFrame(list(rows), columns=columns)),
        "json": functools.partial(json.dumps, ensure_ascii=False),
        "pair_name": pair_name,
        "part": part,
        "table": table,
    }
    return template("report.md.j2", **filters).render(values, title=TITLE)


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
            again = part(**how | {"text": whole(found["html"]), "again": found["title"]})
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


def _written(tree: Mapping[str, Any], to: str, frame: str, *more: str) -> str:
    options = ["--standalone", "--wrap=none", f"--metadata=pagetitle:{TITLE}", *more]
    # Of the whole document: a part may cite what others do, and the works are listed once.
    options += ["--citeproc", f"--bibliography={BIBLIOGRAPHY}", "--metadata=link-citations"]
    options += [f"--template={TEMPLATE / frame}", f"--lua-filter={TEMPLATE / 'report.lua'}"]
    return _pandoc(json.dumps(tree), "json", to, *options)


def _pandoc(text: str, format: str, to: str, *more: str) -> str:
    command = [pypandoc.get_pandoc_path(), f"--from={format}", f"--to={to}", "--quiet", *more]
    return subprocess.run(command, input=text, stdout=-1, check=True, encoding="utf-8").stdout
