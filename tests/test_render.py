"""From executed notebooks to a page: what is shown, linked and escaped."""

import base64
import io

import nbformat
import pandas as pd
import pypdf
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from dlcvlib.report import provenance, render
from dlcvlib.report.exhibits import MIME, check
from dlcvlib.report.tables import to_markdown

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    '#eval("1")',
    "$(rm -rf /) `rm`",
    "a | b \\| c",
    "[x](javascript:alert(1))",
    "![x](http://x.y/z.png){share=1}",
    "= heading *b* _i_ @ref <lab>",
    "== two",
    "- item",
    "+ item",
    "1. item",
    "/ term: x",
]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="144pt" height="72pt"></svg>'
FIGURE = """\
#| label: fig-{0}
#| fig-cap: The *{0}*; see @{1}.
#| fig-alt: A "quoted" line.
plot()"""


def shown(source, *bundles):
    """An executed code cell, whose outputs contain their kind as payload."""
    cell = nbformat.v4.new_code_cell(source, execution_count=1)
    for data in bundles:
        if MIME in data:
            data[MIME] = {"values": {}, "runs": [], "seconds": {}, "csv": ""} | data[MIME]
        cell.outputs.append(nbformat.v4.new_output("display_data", data))
    return cell


def figure(name, other, csv="", **picture):
    picture = picture or {"image/svg+xml": SVG}
    return shown(FIGURE.format(name, other), picture | {MIME: {"kind": "figure", "csv": csv}})


def table(name, frame, other="fig-far"):
    source = f"#| label: tbl-{name}\n#| tbl-cap: A table; see @{other}.\nframe"
    return shown(source, {"text/markdown": to_markdown(frame), MIME: {"kind": "table"}})


text = nbformat.v4.new_markdown_cell
FRAME = pd.DataFrame({"kid": [0.5]})
FAR = nbformat.v4.new_notebook(cells=[text("# Far"), figure("far", "fig-far")])
ABOUT = {"profile": "p", "command": "c", "started": 0, "spent": {}}


class Made:
    """A report of executed notebooks, without 4-4; its files are in `folder`."""

    def __init__(self, folder, **notebooks):
        books = {
            name[1:].replace("_", "-"): nbformat.v4.new_notebook(cells=[text("# One"), *cells])
            for name, cells in notebooks.items()
        }
        exhibits = check(books | {"4-4": FAR})
        pages = {problem: render.Page(problem, b, exhibits) for problem, b in books.items()}
        self.files = {name: c for page in pages.values() for name, c in page.files.items()}
        (folder / "figures").mkdir(exist_ok=True)
        for name, content in self.files.items():
            (folder / "figures" / name).write_bytes(content)
        about = provenance.describe({}, {}, {}, ABOUT)
        self.markdown = render.document(pages=pages, failures={}, provenance=about, params={})
        self.html = render.to_html(self.markdown, folder)
        self.soup = BeautifulSoup(self.html, "html.parser")
        self.folder = folder

    def pdf(self):
        found = pypdf.PdfReader(io.BytesIO(render.to_pdf(self.markdown, self.folder)))
        return "\n".join(sheet.extract_text() for sheet in found.pages)


def test_the_pdf_has_a_font_for_chinese_japanese_and_korean(tmp_path):
    """Other scripts that no font here covers end in no error."""
    pdf = pypdf.PdfReader(io.BytesIO(render.to_pdf("性别 めがね 안경 नमस्ते 😀 `眼鏡`", tmp_path)))
    fonts = [
        str(font.get_object()["/BaseFont"]) for font in pdf.pages[0]["/Resources"]["/Font"].values()
    ]
    assert any("NotoSansCJK" in name for name in fonts)
    assert "性别" in pdf.pages[0].extract_text()


def test_an_exhibit_has_its_number_caption_alt_text_and_values(tmp_path):
    cells = [figure("a", "tbl-1-1-t", csv="x\n1\n"), table("1-1-t", FRAME)]
    made = Made(tmp_path, p1_1=cells)
    shape = made.soup.select_one("#fig-a figure")
    assert shape.img["alt"] == 'A "quoted" line.'
    assert shape.figcaption.get_text() == "Figure 1-1.1. The a; see Table 1-1.1."
    assert made.soup.select_one("#tbl-1-1-t td").get_text() == "0.500"
    assert made.files == {"1-1.1-a.svg": SVG.encode(), "1-1.1-a.csv": b"x\n1\n"}
    assert Made(tmp_path, p1_1=cells).html == made.html


def test_pictures_are_embedded_in_their_natural_width(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50)).save(buffer, format="png", dpi=(200, 200))
    pixels = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    made = Made(tmp_path, p1_1=[figure("a", "fig-b"), figure("b", "fig-a", **pixels)])
    assert [(img["src"][:14], img["style"]) for img in made.soup.select("img")] == [
        ("data:image/svg", "max-width: 29%"),
        ("data:image/png", "max-width: 7%"),
    ]


def test_references_link_to_what_is_there_and_name_what_is_not(tmp_path):
    prose = text("See @tbl-t, @fig-far, [1-2](#nb-1-2), [4-4](#nb-4-4) and ![a picture](x.png).")
    made = Made(tmp_path, p1_1=[prose, figure("a", "tbl-t")], p1_2=[table("t", FRAME)])
    (paragraph,) = (p for p in made.soup.select("p") if p.get_text().startswith("See"))
    assert paragraph.get_text() == "See Table 1-2.1, Figure 4-4.1, 1-2, 4-4 and a picture."
    assert [a["href"] for a in paragraph.select("a")] == ["#tbl-t", "#nb-1-2"]
    assert "Figure 4-4.1" in made.soup.select_one("#tbl-t caption").get_text()
    assert "a picture" in made.pdf()


def test_ordinary_output_is_shown(tmp_path):
    cell = shown("1", {"text/plain": "```\n<b>plain</b>"})
    cell.outputs.append(nbformat.v4.new_output("stream", text="printed\n"))
    made = Made(tmp_path, p1_1=[cell, shown("", {"text/plain": " "})])
    texts = [pre.get_text().strip() for pre in made.soup.select("section section pre")]
    assert texts == ["1", "```\n<b>plain</b>", "printed"]
    assert "printed" in made.pdf()


def test_a_picture_without_a_label_is_shown(tmp_path):
    section = Made(tmp_path, p1_1=[shown("plot()", {"image/svg+xml": SVG})]).soup
    (picture,) = section.select("section section img")
    assert picture["src"].startswith("data:image/svg")


@pytest.mark.parametrize(
    ("option", "seen"),
    [("echo", ["out"]), ("output", ["code()"]), ("include", [])],
)
def test_code_and_output_can_be_left_out(tmp_path, option, seen):
    cell = shown(f"#| {option}: false\ncode()", {"text/plain": "out"})
    made = Made(tmp_path, p1_1=[cell])
    assert [pre.get_text().strip() for pre in made.soup.select("section section pre")] == seen


def test_the_first_page_has_the_abstract_and_the_main_table(tmp_path):
    row = {"quantity": "KID", "ours": "0.1", "original": 0.25, "data": "a|b"}
    cells = [
        shown("#| tags: [abstract]\nsay()", {"text/markdown": "In *short*, @fig-a."}),
        figure("a", "tbl-t"),
        table("t", FRAME),
        shown("#| tags: [headline]\nf", {MIME: {"kind": "headline", "rows": [row]}}),
    ]
    cover = Made(tmp_path, p3_1=cells).soup.select_one(".cover")
    assert cover.select_one(".abstract p").get_text() == "DANN. In short, Figure 3-1.1."
    assert [td.get_text() for td in cover.select("td")][:4] == ["KID", "0.1", "0.25", "a|b"]


def test_runs_are_named_once_at_the_end_of_a_problem(tmp_path):
    names = [f"vae-{n}" for n in range(6)]
    cell = shown("1", {MIME: {"kind": "values", "runs": names}})
    made = Made(tmp_path, p1_1=[cell, cell])
    (note,) = made.soup.select(".note")
    assert note.get_text().strip() == "Runs: vae-0, vae-1, vae-2, vae-3, … (6)."


def test_hostile_text_stays_text(tmp_path):
    frame = pd.DataFrame({"text": HOSTILE})
    made = Made(tmp_path, p1_1=[table("t", frame), figure("a", "tbl-t")])
    cells = [" ".join(td.get_text().split()) for td in made.soup.select("#tbl-t td")]
    assert cells == HOSTILE
    assert made.soup.select("script, #tbl-t img, #tbl-t td a") == []
    printed = made.pdf().replace(" ", "").replace("\n", "")
    assert all(hostile.replace(" ", "") in printed for hostile in HOSTILE[:3])
