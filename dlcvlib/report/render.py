"""From executed notebooks to one document, rendered as HTML and PDF.

nbconvert stitches the notebooks into Markdown, in which every exhibit (see `dlcvlib.exhibits`)
has become a numbered figure or table; pandoc turns it into HTML, and into Typst's markup for the
PDF. The Markdown is read without raw HTML or TeX: text from data and users stays text.
"""

import base64
import json
import re
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pypandoc
import typst
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor
from traitlets import Any as AnyTrait

from dlcvlib import __version__
from dlcvlib.config.paths import ROOT
from dlcvlib.config.profiles import CHAPTERS
from dlcvlib.config.schema import Parameters
from dlcvlib.report.exhibits import MIME, PIXEL_DPI, markdown_table
from dlcvlib.utils import environment, fingerprints, stopwatch, storage
from dlcvlib.utils.stopwatch import timed

TITLE = "Image models, repeated"
SUBTITLE = (
    "The NTU Deep Learning for Computer Vision homework on VAE, DCGAN, DANN and PixelDA, "
    "as a report in which every figure, table and number is computed"
)
CHAPTER_TITLES = ("The variational autoencoder", "The GAN", "DANN", "PixelDA")
TEMPLATE = ROOT / "report" / "template"
READER = "markdown-smart-raw_html-raw_tex-raw_attribute-citations-example_lists"
RESULTS_VERSION = 2
TEXT_WIDTH = 7.0
"""Inches of a full-width figure."""
PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "numpy",
    "scikit-learn",
    "matplotlib",
    "nbconvert",
)

LINK = re.compile(r"\[([^\]]*)\]\(#(fig|tab)-(?:(\d-\d)-)?([\w-]+)\)")


@dataclass
class Document:
    """What the executed notebooks hold, gathered.

    Attributes:
        payloads: problem -> its exhibits' payloads, in order.
        files: name -> content of every picture and CSV.
        labels: anchor ("fig-1-3-worst") -> label ("Figure 1-3.4").
        cell_seconds: problem -> how long its cells ran, all together.
    """

    payloads: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    cell_seconds: dict[str, float] = field(default_factory=dict)

    def of_kind(self, kind: str) -> Iterator[dict[str, Any]]:
        """All payloads of a kind, in the order of the report."""
        for payloads in self.payloads.values():
            yield from (payload for payload in payloads if payload["kind"] == kind)

    def runs(self) -> list[str]:
        """Names of the training runs that any exhibit came from."""
        names = (run for p in self.payloads.values() for item in p for run in item.get("runs", ()))
        return list(dict.fromkeys(names))


def render(
    executed: Mapping[str, Path],
    failures: Mapping[str, tuple[str, str]],
    seconds: Mapping[str, float],
    params: Mapping[str, Parameters],
    about: Mapping[str, Any],
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
        about: profile, command and start time of this report, the most memory, in bytes, that its
            processes have had together, and seconds spent so far by kind of work (`stopwatch`).
        out: where it is written.
        whole: False while chapters are still to come.
    """
    notebooks = {p: nbformat.read(path, as_version=4) for p, path in executed.items()}
    document = gather(notebooks)
    provenance = describe(document, seconds, params, about)
    markdown = "\n\n".join(
        [
            _cover(document, provenance, failures),
            stitch(notebooks, document, failures),
            _colophon(provenance, params),
        ]
    )
    with tempfile.TemporaryDirectory(dir=out, prefix=storage.TEMPORARY) as name:
        folder = Path(name)
        storage.write_text(folder / "report.html", to_html(markdown, document.files))
        if whole:
            figures = storage.make_dir(folder / "figures")
            for file, content in document.files.items():
                storage.write_bytes(figures / file, content)
            storage.write_bytes(folder / "report.pdf", to_pdf(markdown, figures))
            # Again, because now it is known how long the writing took.
            provenance = describe(document, seconds, params, about)
            found = results(document, provenance, failures)
            storage.write_json(folder / "results.json", found)
        _publish(folder, out)


def _publish(folder: Path, out: Path) -> None:
    """Move everything in `folder` to `out`, in the place of what was there; that needs no space."""
    for path in list(folder.iterdir()):
        if path.is_dir() and (out / path.name).exists():
            (out / path.name).replace(folder / f"old {path.name}")
        path.replace(out / path.name)


def gather(notebooks: Mapping[str, nbformat.NotebookNode]) -> Document:
    """Collect exhibits, pictures and values from executed notebooks."""
    document = Document()
    for problem, notebook in notebooks.items():
        payloads = document.payloads.setdefault(problem, [])
        durations = (cell.metadata.get("papermill", {}).get("duration") for cell in notebook.cells)
        document.cell_seconds[problem] = sum(duration or 0.0 for duration in durations)
        for output in _outputs(notebook):
            payload = output.data.get(MIME)
            if payload is None:
                continue
            payloads.append(payload)
            if payload["kind"] in ("figure", "table"):
                target = anchor(payload["kind"][:3], problem, payload["name"])
                document.labels[target] = payload["label"]
            if payload["kind"] == "figure":
                stem = file_stem(payload)
                document.files[f"{stem}.csv"] = payload["csv"].encode()
                if "image/png" in output.data:
                    content = base64.b64decode(output.data["image/png"])
                    document.files[f"{stem}.png"] = content
                else:
                    document.files[f"{stem}.svg"] = output.data["image/svg+xml"].encode()
    return document


def _outputs(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield from (output for output in cell.outputs if "data" in output)


def anchor(kind: str, problem: str, name: str) -> str:
    """Such as "fig-1-3-worst", of an exhibit's kind, "fig" or "tab", its notebook and its name."""
    return f"{kind}-{problem}-{name.replace('_', '-')}"


def file_stem(payload: Mapping[str, Any]) -> str:
    """Such as "1-3.4-worst"."""
    return f"{payload['label'].split()[-1]}-{payload['name']}"


def results(
    document: Document, provenance: Mapping[str, Any], failures: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """The content of results.json: every value of every table, by notebook and by name."""
    found: dict[str, Any] = {"version": RESULTS_VERSION, "provenance": dict(provenance)}
    for problem, payloads in document.payloads.items():
        merged: dict[str, Any] = {}
        for payload in payloads:
            merged |= payload["values"]
        found[problem] = merged
    return found | {problem: {"failed": error} for problem, (_, error) in failures.items()}


# --- the Markdown -----------------------------------------------------------------------------


class Exhibits(Preprocessor):
    """Turns each output into Markdown: an exhibit by its payload, anything else as it is."""

    document = AnyTrait()
    problem = AnyTrait()

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "markdown":
            cell.source = self._links(re.sub(r"^#", "##", cell.source, flags=re.MULTILINE))
            if index == 0:
                cell.source = re.sub(
                    r"^(##.*)$",
                    rf"\1 {{#nb-{self.problem}}}",
                    cell.source,
                    count=1,
                    flags=re.MULTILINE,
                )
        elif cell.cell_type == "code":
            texts = [self._markdown(output) for output in cell.outputs]
            cell.outputs = [
                nbformat.v4.new_output("display_data", {"text/markdown": text})
                for text in texts
                if text
            ]
        return cell, resources

    def _markdown(self, output: nbformat.NotebookNode) -> str:
        if output.get("metadata", {}).get("dlcv") == "caption":
            return ""
        data = output.get("data", {})
        if (payload := data.get(MIME)) is not None:
            return self._exhibit(payload, data)
        if "text/markdown" in data:
            return self._links(data["text/markdown"])
        text = data.get("text/plain") or (output.text if output.output_type == "stream" else "")
        return "```\n" + text.replace("```", "'''").rstrip() + "\n```" if text.strip() else ""

    def _exhibit(self, payload: Mapping[str, Any], data: Mapping[str, str]) -> str:
        if payload["kind"] == "prose":
            return self._links(payload["text"])
        if payload["kind"] not in ("figure", "table"):
            return ""
        caption = f"**{payload['label']}.** {self._links(' '.join(payload['caption'].split()))}"
        if payload["kind"] == "figure":
            body = self._picture(payload, caption)
        else:
            body = f"{data['text/markdown']}\n\n: {caption}"
        name = anchor(payload["kind"][:3], self.problem, payload["name"])
        return f"::: {{#{name} .{payload['kind']}}}\n{body}\n\n{_source(payload)}\n:::"

    def _picture(self, payload: Mapping[str, Any], caption: str) -> str:
        stem = file_stem(payload)
        file = next(
            f"{stem}.{kind}" for kind in ("png", "svg") if f"{stem}.{kind}" in self.document.files
        )
        alt = " ".join(payload["alt"].split()).replace("\\", "\\\\").replace('"', '\\"')
        share = min(1.0, _inches(file, self.document.files[file]) / TEXT_WIDTH)
        return f'![{caption}]({file}){{alt="{alt}" share="{share:.2f}"}}'

    def _links(self, text: str) -> str:
        """Links to exhibits carry their labels; one to an absent exhibit is plain text."""

        def resolve(match: re.Match[str]) -> str:
            words, kind, problem, name = match.groups()
            target = anchor(kind, problem or self.problem, name)
            label = self.document.labels.get(target)
            return f"[{label}](#{target})" if label else words

        return LINK.sub(resolve, text)


def _source(payload: Mapping[str, Any]) -> str:
    """The small line under an exhibit that says what it came from."""
    runs = payload["runs"]
    if not runs:
        return ""
    shown = ", ".join(f"`{name}`" for name in runs[:3])
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f"::: note\nFrom run{'s' * (len(runs) > 1)} {shown}{more}.\n:::"


def _inches(file: str, content: bytes) -> float:
    """Natural width of a picture."""
    if file.endswith(".png"):
        return struct.unpack(">I", content[16:20])[0] / PIXEL_DPI
    width = re.search(rb'<svg[^>]* width="([\d.]+)pt"', content)
    return float(width[1]) / 72 if width else TEXT_WIDTH


def stitch(
    notebooks: Mapping[str, nbformat.NotebookNode],
    document: Document,
    failures: Mapping[str, tuple[str, str]],
) -> str:
    """All notebooks as one Markdown text, under their chapters' headings."""
    parts = []
    chapter = None
    for problem in sorted([*notebooks, *failures]):
        if problem[0] != chapter:
            chapter = problem[0]
            title = CHAPTER_TITLES[int(chapter) - 1]
            parts.append(f"# Chapter {chapter}: {title} {{#chapter-{chapter}}}")
        if problem in failures:
            parts.append(_notice(problem, *failures[problem]))
            continue
        exhibits = Exhibits(document=document, problem=problem, enabled=True)
        exporter = MarkdownExporter(preprocessors=[exhibits])
        parts.append(exporter.from_notebook_node(notebooks[problem])[0])
    return "\n\n".join(parts)


def _notice(problem: str, title: str, error: str) -> str:
    """What stands in the place of a notebook that failed."""
    # Indented text is code to Markdown, whatever is in it.
    indented = "\n".join(f"    {line}" for line in error.splitlines())
    return (
        f"## {title} {{#nb-{problem}}}\n\n::: failed\n**This notebook failed**, and nothing of it "
        f"is shown:\n\n{indented}\n:::"
    )


def _cover(
    document: Document, provenance: Mapping[str, Any], failures: Mapping[str, tuple[str, str]]
) -> str:
    """The first page: title, abstract, main table, how it was made."""
    texts: dict[str, list[str]] = {}
    for problem, payloads in document.payloads.items():
        found = (payload["text"] for payload in payloads if payload["kind"] == "abstract")
        texts.setdefault(CHAPTER_TITLES[int(problem[0]) - 1], []).extend(found)
    abstract = [f"**{title}.** {' '.join(text)}" for title, text in texts.items() if text]
    rows = [payload["row"] for payload in document.of_kind("headline")]
    parts = [f"# {TITLE} {{.unlisted}}", f"::: subtitle\n{SUBTITLE}\n:::"]
    if failures:
        links = ", ".join(f"[{problem}](#nb-{problem})" for problem in failures)
        parts.append(
            f"::: failed\n**This report is not complete.** These notebooks failed: {links}\n:::"
        )
    if abstract:
        parts.append("::: abstract\n" + "\n\n".join(abstract) + "\n:::")
    if rows:
        frame = pd.DataFrame(rows, columns=["quantity", "ours", "original", "data"])
        table = markdown_table(frame, [False, True, True, False])
        caption = ": **Main results**, beside what the original reported for its own data."
        parts.append(f"::: table\n{table}\n\n{caption}\n:::")
    made = {
        "profile": provenance["profile"],
        "command": provenance["command"],
        "data": ", ".join(dict.fromkeys(provenance["data"].values())),
        "seeds": provenance["seeds"],
        "device": provenance["device"],
        "time": f"{provenance['seconds_training']:,.0f} s of training, "
        f"{provenance['seconds_notebooks']:,.0f} s for the notebooks",
        "code": provenance["commit"],
        "versions": ", ".join(f"{k} {v}" for k, v in provenance["versions"].items()),
        "tested versions": provenance["constraints"],
        "made": provenance["made"],
    }
    table = markdown_table(pd.DataFrame(made.items(), columns=["", " "]), [False, False])
    parts.append(f"::: table\n{table}\n\n: **How it was made**\n:::")
    return ":::::: cover\n" + "\n\n".join(parts) + "\n::::::"


def _colophon(provenance: Mapping[str, Any], params: Mapping[str, Parameters]) -> str:
    """The last page: every parameter, run and notebook."""
    parts = ["# Provenance {#provenance}"]
    parts.append(
        "Every figure's values lie beside this report as CSV, every table's in `results.json`. "
        "The printed report leaves the code out; the HTML has it, folded, and so have the executed "
        "notebooks."
    )
    runs = pd.DataFrame(provenance["runs"])
    if len(runs):
        numeric = [name in ("seconds", "images_per_second") for name in runs]
        shown = runs.assign(
            seconds=runs["seconds"].map("{:,.1f}".format),
            images_per_second=runs["images_per_second"].map("{:,.0f}".format),
        ).rename(columns={"images_per_second": "images/s", "precision_why": "because"})
        parts.append(markdown_table(shown, numeric) + "\n\n: **Training runs**")
    spent = provenance["seconds_by_work"]
    work = pd.DataFrame(spent.items(), columns=["work", "seconds"])
    work["share"] = (work["seconds"] / work["seconds"].sum()).map("{:.1%}".format)
    work["seconds"] = work["seconds"].map("{:,.1f}".format)
    parts.append(
        markdown_table(work, [False, True, True])
        + "\n\n: **Where the time went**: of all notebooks, when each was last run, and of this "
        f"process, which has not written this page yet. Peak memory of all processes together in "
        f"the runs that made them: {provenance['memory_peak_mb']:,.0f} MB."
    )
    times = pd.DataFrame(provenance["notebooks"].items(), columns=["notebook", "seconds"])
    times["seconds"] = times["seconds"].map("{:,.1f}".format)
    parts.append(
        markdown_table(times, [False, True])
        + "\n\n: **Notebooks**: seconds when each was last run, training included"
    )
    for chapter, chosen in params.items():
        if chapter not in provenance["data"]:
            continue
        rows = [
            (
                name,
                json.dumps(value, ensure_ascii=False),
                type(chosen).model_fields[name].description,
            )
            for name, value in chosen.model_dump().items()
        ]
        frame = pd.DataFrame(rows, columns=["parameter", "value", "meaning"])
        parts.append(
            markdown_table(frame, [False] * 3) + f"\n\n: **Parameters**, chapter {chapter}"
        )
    return "\n\n".join(parts)


# --- provenance -------------------------------------------------------------------------------


def describe(
    document: Document,
    seconds: Mapping[str, float],
    params: Mapping[str, Parameters],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What this report was made with and of: for its first and last page and results.json."""
    chapters = list(dict.fromkeys(list(CHAPTERS)[int(p[0]) - 1] for p in document.payloads))
    runs = _runs(document, {params[chapter].runs_dir for chapter in chapters})
    devices = (_trained_on(run) for run in runs)
    off = environment.deviations()
    return {
        "profile": about["profile"],
        "command": about["command"],
        "data": {chapter: params[chapter].data for chapter in chapters},
        "seeds": "; ".join(f"{c}: {_seeds(params[c])}" for c in chapters),
        "device": ", ".join(dict.fromkeys(devices)) or _no_device(document),
        "seconds_training": sum(r["seconds"] for r in runs),
        "seconds_notebooks": sum(seconds.values()),
        "commit": commit(),
        "versions": {"python": environment.python_version()} | fingerprints.versions(*PACKAGES),
        "constraints": "as tested"
        if not off
        else "not as tested: "
        + ", ".join(off[:5])
        + (f" and {len(off) - 5} more" if len(off) > 5 else ""),
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(about["started"])),
        "notebooks": dict(seconds),
        "seconds_by_work": _by_work(document, seconds, about["spent"]),
        "memory_peak_mb": about["memory"] / 1e6,
        "runs": runs,
    }


def _trained_on(run: Mapping[str, Any]) -> str:
    several = f"{run['processes']} processes, " if run["processes"] > 1 else ""
    return f"{run['device']} ({several}threads: {run['threads']}, {run['precision']})"


def _no_device(document: Document) -> str:
    if count := len(document.runs()):
        return f"not known: the records of {count} training runs are gone from where runs are kept"
    return "no training run was used"


def _by_work(
    document: Document, seconds: Mapping[str, float], spent_before: Mapping[str, float]
) -> dict[str, float]:
    """Seconds by kind of work: of the notebooks, when each was last run, and of the report."""
    inside: Counter[str] = Counter()
    for payloads in document.payloads.values():
        for payload in payloads:
            inside.update(payload["seconds"])
    cells = sum(document.cell_seconds.values())
    spent = inside + Counter(spent_before) + Counter(stopwatch.so_far())
    spent["evaluation and figures"] = cells - inside.total()
    spent["starting the notebooks"] = sum(seconds.values()) - cells
    return dict(spent.most_common())


def _seeds(params: Parameters) -> str:
    values = params.model_dump()
    return ", ".join(
        f"{name.replace('_', ' ')} {value}".replace("[", "").replace("]", "")
        for name, value in values.items()
        if name.endswith(("seed", "seeds"))
    )


def _runs(document: Document, folders: set[str]) -> list[dict[str, Any]]:
    """What the runs say of themselves, as far as their records are there and whole."""
    wanted = (
        "seconds",
        "images_per_second",
        "device",
        "precision",
        "precision_why",
        "threads",
        "processes",
    )
    found = []
    for name in document.runs():
        for folder in folders:
            record = storage.sealed(ROOT / folder / name / "provenance.json")
            if record:
                found.append({"run": name} | {key: record[key] for key in wanted})
                break
    return found


def commit() -> str:
    """The commit that the code is at, with a word if it has local changes."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + (" with local changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"not under version control (version {__version__})"


# --- HTML and PDF -----------------------------------------------------------------------------


@timed("writing HTML")
def to_html(markdown: str, files: Mapping[str, bytes]) -> str:
    """One self-contained page: pictures become data URIs, formulas MathML."""
    html = _pandoc(
        markdown, "html5", "report.html", ["--mathml", "--toc", "--toc-depth=2", "--section-divs"]
    )
    kinds = {"png": "image/png", "svg": "image/svg+xml"}

    def embed(match: re.Match[str]) -> str:
        file = match[1]
        data = base64.b64encode(files[file]).decode()
        return f'src="data:{kinds[file[-3:]]};base64,{data}"'

    return re.sub(r'src="(\d-\d\.\d+-[\w-]+\.(?:png|svg))"', embed, html)


@timed("writing PDF")
def to_pdf(markdown: str, folder: Path) -> bytes:
    """The printed report; its pictures lie in `folder`."""
    source = folder / "report.typ"
    storage.write_text(source, _pandoc(markdown, "typst", "report.typ", []))
    try:
        return typst.compile(str(source), root=str(folder))
    finally:
        source.unlink()


def _pandoc(markdown: str, to: str, template: str, more: Sequence[str]) -> str:
    return pypandoc.convert_text(
        markdown,
        to,
        format=READER,
        extra_args=[
            "--standalone",
            f"--template={TEMPLATE / template}",
            f"--lua-filter={TEMPLATE / 'report.lua'}",
            f"--metadata=pagetitle:{TITLE}",
            *more,
        ],
    )
