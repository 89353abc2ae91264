"""From executed notebooks to a page: what is shown, linked and escaped."""

import base64
import io
import re
import threading
from http.server import HTTPServer
from unittest.mock import Mock

import pandas as pd
import pypdf
import pytest
from bs4 import BeautifulSoup
from conftest import cases, page_fill
from matplotlib.colors import to_rgb
from nbconvert.filters import ansi
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nbformat.v4 import new_markdown_cell as text
from PIL import Image
from skimage.color import rgb2xyz

from dlcvlib.evaluation import original
from dlcvlib.report import provenance, render
from dlcvlib.report.exhibits import MIME, check
from dlcvlib.report.tables import to_markdown
from dlcvlib.utils import markdown

CASES = cases("render")
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="144pt" height="72pt"></svg>'
FIGURE = """\
#| label: fig-{0}
#| fig-cap: The *{0}*; see @{1}.
#| fig-alt: A "quoted" line.
plot()"""


def shown(source, *bundles):
    """An executed code cell, whose outputs contain their kind as payload."""
    cell = new_code_cell(source, execution_count=1)
    for data in bundles:
        if MIME in data:
            data[MIME] = {"values": {}, "runs": [], "seconds": {}, "csv": ""} | data[MIME]
        cell.outputs.append(new_output("display_data", data))
    return cell


def figure(name, other, csv="", **picture):
    picture = picture or {"image/svg+xml": SVG}
    return shown(FIGURE.format(name, other), picture | {MIME: {"kind": "figure", "csv": csv}})


def table(name, frame, other="fig-far"):
    source = f"#| label: tbl-{name}\n#| tbl-cap: A table; see @{other}.\nframe"
    return shown(source, {"text/markdown": to_markdown(frame), MIME: {"kind": "table"}})


FRAME = pd.DataFrame({"kid": [0.5]})
FAR = new_notebook(cells=[text("# Far"), figure("far", "fig-far")])
ABOUT = {"profile": "p", "command": "c", "started": 0, "spent": {}}


class Made:
    """A report of executed notebooks, without 4-4; its files are in `folder`."""

    def __init__(self, folder, beside=None, first="# One", runs=(), data="embedded", **notebooks):
        books = {
            name[1:].replace("_", "-"): new_notebook(cells=[text(first), *cells])
            for name, cells in notebooks.items()
        }
        exhibits, beside = check(books | {"4-4": FAR}), beside or folder
        pages = {
            problem: render.Page(problem, book, exhibits, beside, f"{problem}.ipynb")
            for problem, book in books.items()
        }
        about = provenance.describe({}, {}, {}, ABOUT) | {"runs": list(runs), "data": {"vae": data}}
        values = {"pages": pages, "failures": {}, "pending": {}, "provenance": about, "params": {}}
        document = render.document(**values, original=original.report())
        self.folder, self.tree = folder, render.parsed(document, pages)
        self.tree["meta"]["date"] = {"t": "MetaString", "c": about["made"]}
        self.files = {name: c for page in pages.values() for name, c in page.files.items()}
        (folder / "figures").mkdir(exist_ok=True)
        for name, content in self.files.items():
            (folder / "figures" / name).write_bytes(content)
        self.html = render.to_html(self.tree, folder)
        self.soup = BeautifulSoup(self.html, "html.parser")
        self.first = self.soup.select_one("#nb-1-1")

    def pdf_bytes(self):
        return render.to_pdf(self.tree, self.folder)

    def pdf(self):
        found = pypdf.PdfReader(io.BytesIO(self.pdf_bytes()))
        return "\n".join(sheet.extract_text() for sheet in found.pages)


def test_operators_that_typst_has_renamed_are_set(tmp_path):
    tree = render.parsed(render.part(r"$a \otimes b \ominus c \odot d \cap \bigcap_i e_i$"), {})
    page = pypdf.PdfReader(io.BytesIO(render.to_pdf(tree, tmp_path))).pages[0]
    assert "\\" not in page.extract_text()


def in_sections(folder, cells):
    """A report of cells under headings of their own, and a section for each."""
    headed = [each for n, cell in enumerate(cells) for each in (text(f"## Case {n}"), cell)]
    made = Made(folder, p1_1=headed)
    return made, [made.soup.find(id=f"case-{n}") for n in range(len(cells))]


def test_an_exhibit_has_its_number_caption_alt_text_and_values(tmp_path):
    """Pictures are embedded in their natural width."""
    Image.new("RGB", (100, 50)).save(buffer := io.BytesIO(), "png", dpi=(200, 200))
    pixels = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    cells = [figure("a", "tbl-1-1-t", csv="x\n1\n"), figure("b", "fig-a", **pixels)]
    cells.append(table("1-1-t", FRAME))
    made = Made(tmp_path, p1_1=cells)
    first, second = made.soup.select("figure")
    assert first.img["alt"] == 'A "quoted" line.'
    assert first.figcaption.get_text() == "Figure 1-1.1. The a; see Table 1-1.1."
    assert made.soup.select_one("#tbl-1-1-t td").get_text() == "0.500"
    assert made.files.keys() == {"1-1.1-a.svg", "1-1.1-a.csv", "1-1.2-b.png"}
    assert made.files["1-1.1-a.csv"] == b"x\n1\n"
    widths = [(img["src"][:14], img["style"]) for img in (first.img, second.img)]
    assert widths == [("data:image/svg", "max-width: 29%"), ("data:image/web", "max-width: 7%")]
    assert Made(tmp_path, p1_1=cells).html == made.html


def test_references_link_to_what_is_there_and_name_what_is_not(tmp_path):
    prose = text("See @tbl-t, @fig-far, [1-2](#nb-1-2), [4-4](#nb-4-4) and ![a picture](x.png).")
    made = Made(tmp_path, p1_1=[prose, figure("a", "tbl-t")], p1_2=[table("t", FRAME)])
    (paragraph,) = (p for p in made.soup.select("p") if p.get_text().startswith("See "))
    assert paragraph.get_text().startswith("See Table 1-2.1, Figure 4-4.1, 1-2, 4-4 and a picture")
    assert [a["href"] for a in paragraph.select("a")] == ["#tbl-t", "#nb-1-2"]
    assert "Figure 4-4.1" in made.soup.select_one("#tbl-t caption").get_text()
    assert "a picture" in made.pdf()


def test_citations_lead_to_the_works_and_show_them_on_hover(tmp_path):
    """In a cell with HTML, and in a caption, too; the report's own are among the works."""
    prose = text("By @kingma2014, `@kingma2014`, <b>see</b> [e.g. @wang2004, $k$; @mao2017].")
    caption = "#| label: tbl-t\n#| tbl-cap: As in [@holm1979].\nframe"
    bundle = {"text/markdown": to_markdown(FRAME), MIME: {"kind": "table"}}
    made = Made(tmp_path, p1_1=[prose, shown(caption, bundle)])
    (paragraph,) = (p for p in made.first.select("p") if p.get_text().startswith("By"))
    cited = " ".join(paragraph.get_text().split())
    names = "By Kingma and Welling (2014), @kingma2014, see (e.g. Wang et al. 2004, k"
    assert cited.startswith(names)
    works = {work["id"]: work for work in made.soup.select("#refs > div")}
    links = [*paragraph.select("a"), made.first.select_one("caption a")]
    entries = [works[link["href"][1:]].get_text().strip() for link in links]
    assert [entry.split(",")[0] for entry in entries] == ["Kingma", "Wang", "Mao", "Holm"]
    assert [link["title"][:9] for link in links] == [entry[:9] for entry in entries]
    assert all(work.a["href"].startswith("http") for work in works.values())
    assert {"ref-alpaydin1998", "ref-liu2015"} <= works.keys()
    printed = " ".join(made.pdf().replace("-\n", "-").split())
    assert "Auto-Encoding Variational Bayes" in printed


def test_code_and_output_are_text_and_can_be_left_out(tmp_path):
    warning = new_output("stream", name="stderr", text="UserWarning: w\n")
    cell = shown("1", {"text/plain": "```\n<b>plain</b>"}, {"text/plain": " "})
    cell.outputs += [warning, new_output("error", traceback=["\x1b[31mValueError\x1b[0m: v"])]
    left_out = [f"#| {option}: false\ncode()" for option in ("echo", "output")]
    cells = [cell, *(shown(source, {"text/plain": "out"}) for source in left_out)]
    made = Made(tmp_path, p1_1=cells)
    texts = [pre.get_text().strip() for pre in made.first.select("pre")]
    printed = ["UserWarning: w", "ValueError: v"]
    assert texts == ["```\n<b>plain</b>", *printed, "out", "1", "code()"]
    assert all(each in made.pdf() for each in printed)


def test_each_kind_of_output_is_shown_without_what_could_run(tmp_path):
    cases = CASES["outputs"]
    made, sections = in_sections(tmp_path, [shown("", case["data"]) for case in cases])
    for case, section in zip(cases, sections, strict=True):
        found = section.select(case["shown"])
        assert len(found) == 1, (case, section)
        assert not section.select("script, [onclick]"), case
        assert found[0].name != "pre" or found[0].get_text().strip(), case
    assert made.pdf()


def test_colours_are_shown_in_html_and_nothing_else_of_a_terminal(tmp_path):
    """In a value, beside HTML that shows nothing, in what is printed, and in a traceback."""
    cells, expected = [], []
    for case in CASES["typed"]:
        typed = case["printed"]
        value = {"text/plain": typed}
        cells.append(shown("", value, value | {"text/html": "<script>x()</script>"}))
        cells[-1].outputs += [new_output("stream", text=typed)]
        cells[-1].outputs += [new_output("error", traceback=[typed])]
        if case["shown"]:
            expected += 4 * [(case["shown"], case["colours"])]
    made, found = Made(tmp_path, p1_1=cells), []
    for block in made.first.select("pre"):
        spans = {" ".join(span.get("class", [])): span.get_text().strip() for span in block("span")}
        found.append((block.get_text().strip(), spans))
    assert [(shown, spans) for shown, spans in found if shown] == expected
    assert not made.soup.select("main script, pre b")
    assert "\x1b" not in made.html
    printed = made.pdf()
    assert all(line in printed for shown, _ in expected for line in shown.split("\n"))
    assert not re.search("[\x00-\x08\x1b]", printed)


def test_colours_can_be_read_in_light_and_dark_mode():
    """All of nbconvert's, by the contrast that WCAG 2 (1.4.3) asks of text."""
    css = (render.TEMPLATE / "report.css").read_text()
    named = re.findall(r"\.ansi-[a-z]+(?:-intense)?-fg", css)
    assert {name[1:-3] for name in named} == set(ansi._ANSI_COLORS)
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    for mode in (0, 1):
        colours = {name: both[mode] for name, *both in found}
        luminance = {name: rgb2xyz(to_rgb(colour))[1] for name, colour in colours.items()}
        for name in colours.keys() - {"line", "paper", "wash", "found"}:
            darker, lighter = sorted((luminance[name], luminance["wash"]))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (name, mode)


def test_a_long_line_is_broken_in_print(tmp_path):
    cell = shown("", {"text/plain": "x" * 300 + "\nshort"})
    lines = Made(tmp_path, p1_1=[cell]).pdf().split("\n")
    broken = [line for line in lines if "xxx" in line]
    assert sum(line.count("x") for line in broken) == 300
    assert max(map(len, broken)) < 120
    assert "short" in lines


def test_exhibits_of_all_sizes_leave_no_gaps(tmp_path):
    """In a column or across both, with captions beside or below; each text is there once."""
    sizes = [(504, 240), (504, 120), (240, 180), (360, 500), (504, 520), (300, 90), (430, 260)]
    cells = []
    for n, (width, height) in enumerate(2 * sizes):
        svg = SVG.replace("144pt", f"{width}pt").replace("72pt", f"{height}pt")
        svg = svg.replace("</svg>", '<path d="M0 0H9999V9999H0z"/></svg>')
        cells += [text(f"## Part {n}\n\n" + "Words of a text. " * 60)]
        cells += [figure(f"f{n}", "fig-far", **{"image/svg+xml": svg})]
        cells += [table(f"t{n}", pd.DataFrame({c: [n] * (4 + 3 * n) for c in "abcdefgh"[: 2 + n]}))]
    made = Made(tmp_path, p1_1=cells)
    (tmp_path / "report.pdf").write_bytes(made.pdf_bytes())
    filled = page_fill(tmp_path / "report.pdf")
    assert len(filled) > 3
    assert min(filled.values()) > 2 / 3, filled
    printed = made.pdf()
    captions = [f"{kind} 1-1.{n}." for kind in ("Figure", "Table") for n in range(1, 15)]
    assert [printed.count(caption) for caption in captions] == [1] * len(captions)


def test_the_pdf_is_accessible_and_fit_for_archives(tmp_path):
    """PDF/UA-1 and PDF/A-2a with its metadata; without where a picture has no text alternative.

    Scripts that no font here covers end in no error.
    """
    made = Made(tmp_path, p1_1=[text("α 性别 안경 नमस्ते 😀 $x_1$"), figure("a", "fig-a")])
    made.tree["meta"]["author"] = {"t": "MetaList", "c": [{"t": "MetaString", "c": "A. Uthor"}]}
    pdf = pypdf.PdfReader(io.BytesIO(made.pdf_bytes()))
    root = pdf.trailer["/Root"]
    about = root["/Metadata"].get_data().decode()
    assert "<pdfuaid:part>1<" in about
    assert "<pdfaid:part>2<" in about
    assert "<pdfaid:conformance>A<" in about
    assert (root["/Lang"], pdf.metadata.title, pdf.metadata.author) == (
        "en",
        render.TITLE,
        "A. Uthor",
    )
    assert pdf.metadata.creation_date.year == 1970
    fonts = [f.get_object() for p in pdf.pages for f in p["/Resources"]["/Font"].values()]
    below = [font["/DescendantFonts"][0]["/FontDescriptor"] for font in fonts]
    assert all({"/FontFile2", "/FontFile3"} & font.keys() for font in below)
    assert any("CJK" in font["/FontName"] for font in below)
    assert "性别" in made.pdf()
    silent = Made(tmp_path, p1_1=[shown("", {"image/svg+xml": SVG})]).pdf_bytes()
    assert b"pdfuaid" not in silent


def test_columns_of_a_wide_table_are_as_wide_as_their_cells_need(tmp_path):
    """In print, the longest texts get most; a heading stands over both ends of an interval."""
    row = {"claim": "word " * 30, "low": -0.123, "high": 0.5, "measure": "word " * 5, "n": 1}
    made = Made(tmp_path, p1_1=[table("t", pd.DataFrame([row]))])
    assert made.first.select_one("th[colspan='2']").get_text().strip() == "95% interval"
    printed = render._written(made.tree, "typst-citations", "report.typ")
    found = next(w for w in re.findall(r"columns: \((.*),?\)", printed) if w.count("%") == 5)
    claim, low, _, measure, n = [float(width) for width in re.findall(r"[\d.]+", found)]
    assert claim > measure > low > n


def test_main_table_has_methods_of_other_pairs_in_one_and_target_only_last(tmp_path):
    values = {"ours": "0.5", "original": "–", "others": "–", "data": "*d*"}
    rows = [
        values | {"quantity": m, "pair": p} for m, p in (("target only", "a->b"), ("M", "c->d"))
    ]
    cell = shown("#| tags: [headline]\nrows", {MIME: {"kind": "headline", "rows": rows}})
    lines = Made(tmp_path, p1_1=[cell]).soup.select(".cover tbody tr")
    assert [line.get_text(" ", strip=True).split() for line in lines[:2]] == [
        ["M", "–", "–", "–", "0.5", "–", "–"],
        ["target", "only", "0.5", "–", "–", "–", "–", "–"],
    ]


@pytest.mark.parametrize(
    ("data", "stand_ins"),
    [("embedded", True), ("embedded+folder:/mine", True), ("folder:/embedded", False)],
)
def test_stand_ins_are_a_limitation_where_there_are_any(tmp_path, data, stand_ins):
    made = Made(tmp_path, p1_1=[], data=data)
    assert ("stand-ins" in made.soup.get_text()) == stand_ins
    assert bool(made.soup.select("#ref-alpaydin1998")) == stand_ins


def test_a_single_verdict_has_no_empty_columns_beside_it(tmp_path):
    numbers = {"measure": "a", "difference": 0.3, "low": 0.2, "high": 0.4, "seeds": 3}
    claim = numbers | {"claim": "DANN is more accurate than source only", "verdict": "supported"}
    payload = {"kind": "table", "values": {"claims": [claim]}}
    made = Made(tmp_path, p3_2=[shown("", {MIME: payload})])
    printed = render._written(made.tree, "typst-citations", "report.typ")
    assert re.findall(r"#strong\[(claim|verdict)\]", printed) == ["claim", "verdict", "verdict"]


def test_headings_of_a_wide_table_do_not_touch(tmp_path):
    pairs = ("USPS → MNIST-M", "MNIST-M → SVHN", "SVHN → USPS")
    heads = ["accuracy", *(head for pair in pairs for head in (pair, "original", "others"))]
    rows = [["source only", *["0.466 ± 0.014", "0.355", "0.440"] * 3]]
    pdf = Made(tmp_path, p1_1=[text(markdown.table(rows, heads))]).pdf_bytes()
    pages = [
        p.extract_text(extraction_mode="layout") for p in pypdf.PdfReader(io.BytesIO(pdf)).pages
    ]
    (found,) = (line for page in pages for line in page.splitlines() if "others" in line)
    assert re.split(" {2,}", found.strip().replace("\xa0", " ")) == heads


def test_tables_may_leave_out_tags(tmp_path):
    """In a cell and in an output."""
    grids = [grid["html"] for grid in CASES["tables"]]
    outputs = [shown("", {"text/html": html}) for html in grids]
    made = Made(tmp_path, p1_1=[*map(text, grids), *outputs])
    rows = [
        [" ".join(td.get_text(" ").split()) for td in row.find_all(["td", "th"], recursive=False)]
        for row in made.first.select("tr")
    ]
    assert rows == 2 * [row for grid in CASES["tables"] for row in grid["rows"]]
    assert len(made.first.select("[colspan='2']")) == 2
    assert "1 2\n3 4" in re.sub("[ \n]*\n", "\n", made.pdf())


def test_only_the_head_of_a_table_is_bold_in_print(tmp_path):
    heads = "<table><tr><th>a<tr><td>b</table>", "<table><thead><tr><td>c<tbody><tr><td>d</table>"
    made = Made(tmp_path, p1_1=[text(html) for html in (*heads, "<table><tr><td>e</table>")])
    printed = render._written(made.tree, "typst-citations", "report.typ")
    assert set(re.findall(r"#strong\[(\w)\]", printed)) == {"a", "c"}


def test_a_cell_with_a_table_is_otherwise_as_any_other(tmp_path):
    """Its headings, formulas, pictures and links; an output's headings are below the notebook's."""
    source = "[to it](#sizes) $x<1$ ![p](attachment:x.png)\n\n<table><tr><td>1</table>\n\n## Sizes"
    cell = text(source, attachments={"x.png": {"image/png": CASES["png"]}})
    output = shown("", {"text/html": "<h1>Big</h1><table><tr><td>2</table>"})
    made = Made(tmp_path, first="# One\n\n<table><tr><td>0</table>", p1_1=[cell, output])
    assert [each.get_text() for each in made.first.select("h2, h3")] == ["One", "Sizes", "Big"]
    assert made.first.a["href"] == "#sizes"
    assert len(made.first.select("math, img, td")) == 5


# --- what an author writes ------------------------------------------------------------------------


@pytest.fixture
def web():
    """An address at which nothing may be asked for; the test fails if something was."""
    asked = Mock()  # what asks is told nothing
    with HTTPServer(("127.0.0.1", 0), asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    asked.assert_not_called()


def test_pictures_of_a_cell_are_embedded_linked_or_named(tmp_path, web):
    folder, secret = tmp_path / "notebooks", tmp_path / "secret.png"
    folder.mkdir()
    for path in (folder / "a b.png", folder / "d.bmp", secret):
        Image.new("RGB", (9, 9)).save(path)
    (folder / "c.svg").write_text(SVG)
    (folder / "link.png").symlink_to(secret)
    (folder / "text.png").write_text("no picture")
    good, bad = CASES["pictures"]["shown"], [*CASES["pictures"]["named"], str(secret)]
    source = "\n\n".join(f"![p{n}]({each})" for n, each in enumerate(good + bad))
    source += f"\n\n![web]({web}/e.png){{share=1}} ![r][ref]\n\n[ref]: a%20b.png"
    cell = text(source, attachments={"x y.png": {"image/png": CASES["png"]}})
    html = text(f"<img src='a b.png' width=336 onerror='x()'> <img src='{web}/f.png'>")
    made = Made(tmp_path, folder, p1_1=[cell, html])
    pictures = made.first.select("img")
    names = [picture.get("alt", "") for picture in pictures]
    assert names == [*(f"p{n}" for n in range(len(good))), "r", ""]
    assert all(picture["src"].startswith("data:image/") for picture in pictures)
    assert [a["href"] for a in made.first.select("a")] == [f"{web}/e.png", f"{web}/f.png"]
    assert re.findall(r"no picture in this project: ([^]]*)]", made.first.get_text()) == bad
    assert "no picture in this project" in made.pdf()


def test_nothing_in_a_cell_runs_or_loads(tmp_path, web):
    with_attributes = [cell.replace("ATTRIBUTES", CASES["attributes"]) for cell in CASES["active"]]
    cells = [text(cell.replace("WEB", web)) for cell in with_attributes]
    section = Made(tmp_path, p1_1=cells).first
    assert not section.select("script, iframe, link, style, [onclick], [data-src], [poster]")
    assert all(tag["src"].startswith("data:image/") for tag in section.select("[src]"))
    assert not section.select("[style*=url]")
    assert [a["href"] for a in section.select("a")] == [web]


def test_what_a_cell_leaves_open_ends_with_it(tmp_path):
    after = text("[^1] [l]\n\n[^1]: Two\n\n[l]: http://two")
    made, sections = in_sections(tmp_path, [*map(text, CASES["open"]), after, figure("a", "fig-a")])
    headings = [section.h3.get_text() for section in sections]
    assert headings == [f"Case {n}" for n in range(len(sections))]
    *_, after, last = sections
    assert [a["href"] for a in after.select("a[href^=http]")] == ["http://two"]
    assert last.select_one("#fig-a figure img")
    assert "Two" in made.pdf()


def test_headings_have_names_of_their_own(tmp_path):
    cell = text("## Same\n\n# Title {#fig-a}\n\n[to it](#same) [中](#中-文)\n\n## 中 文")
    made = Made(tmp_path, p1_1=[cell, figure("a", "fig-a")], p1_2=[cell])
    ids = [tag["id"] for tag in made.soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert {"#same", "#中-文"} <= {a["href"] for a in made.soup.select("a[href]")}
    assert "Same" in made.pdf()


def test_what_cannot_be_printed_costs_only_itself(tmp_path):
    unknown = [r"$\llbracket x\rrbracket$", r"$\nosuch{x}$"]  # to Typst, to pandoc
    cells = [shown("", {"image/svg+xml": "<x/>"}), text("![x](data:image/svg+xml,<x/>)")]
    cells = [text("Before"), *map(text, unknown), *cells, text(r"$p \otimes x$ after")]
    printed = Made(tmp_path, p1_1=cells).pdf()
    assert all(each in printed for each in ("Before", *(u.strip("$") for u in unknown), "after"))
    assert printed.count("cannot be printed") == 2
    assert "⊗" in printed


def test_hostile_text_stays_text(tmp_path):
    hostile = CASES["hostile"]
    frame = pd.DataFrame({"text": hostile})
    made = Made(tmp_path, p1_1=[table("t", frame), figure("a", "tbl-t")])
    cells = [" ".join(td.get_text().split()) for td in made.soup.select("#tbl-t td")]
    assert cells == hostile
    assert made.soup.select("main script, #tbl-t img, #tbl-t td a") == []
    printed = made.pdf().replace(" ", "").replace("\n", "")
    assert all(each.replace(" ", "") in printed for each in hostile[:3])
