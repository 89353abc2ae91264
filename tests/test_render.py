"""From executed notebooks to a page: what is shown, linked and escaped."""

import base64
import io
import re
import threading
from http.server import HTTPServer

import nbformat
import pandas as pd
import pypdf
import pytest
from bs4 import BeautifulSoup
from nbconvert.filters import ansi
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
    "- item",
    "/ term: x",
]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="144pt" height="72pt"></svg>'


def png(**options):
    Image.new("RGB", (100, 50)).save(buffer := io.BytesIO(), "png", **options)
    return buffer.getvalue()


PNG = png()
CODED = base64.b64encode(PNG).decode()
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

    def __init__(self, folder, beside=None, **notebooks):
        books = {
            name[1:].replace("_", "-"): nbformat.v4.new_notebook(cells=[text("# One"), *cells])
            for name, cells in notebooks.items()
        }
        exhibits = check(books | {"4-4": FAR})
        beside = beside or folder
        pages = {problem: render.Page(problem, b, exhibits, beside) for problem, b in books.items()}
        (folder / "figures").mkdir(exist_ok=True)
        about = provenance.describe({}, {}, {}, ABOUT)
        document = render.document(pages=pages, failures={}, provenance=about, params={})
        self.tree = render.parsed(document, pages)
        self.files = {name: c for page in pages.values() for name, c in page.files.items()}
        for name, content in self.files.items():
            (folder / "figures" / name).write_bytes(content)
        self.html = render.to_html(self.tree, folder)
        self.soup = BeautifulSoup(self.html, "html.parser")
        self.folder = folder

    def pdf(self):
        found = pypdf.PdfReader(io.BytesIO(render.to_pdf(self.tree, self.folder)))
        return "\n".join(sheet.extract_text() for sheet in found.pages)


def in_sections(folder, cells):
    """A report of cells under headings of their own, and a section for each."""
    headed = [each for n, cell in enumerate(cells) for each in (text(f"## Case {n}"), cell)]
    made = Made(folder, p1_1=headed)
    return made, [made.soup.find(id=f"case-{n}") for n in range(len(cells))]


def test_the_pdf_has_a_font_for_chinese_japanese_and_korean(tmp_path):
    """Other scripts that no font here covers end in no error."""
    tree = render.parsed(render.part("性别 めがね 안경 नमस्ते 😀 `眼鏡`"), {})
    pdf = pypdf.PdfReader(io.BytesIO(render.to_pdf(tree, tmp_path)))
    fonts = pdf.pages[0]["/Resources"]["/Font"].values()
    assert any("NotoSansCJK" in font.get_object()["/BaseFont"] for font in fonts)
    assert "性别" in pdf.pages[0].extract_text()


def test_an_exhibit_has_its_number_caption_alt_text_and_values(tmp_path):
    """Pictures are embedded in their natural width."""
    pixels = {"image/png": base64.b64encode(png(dpi=(200, 200))).decode()}
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
    assert widths == [("data:image/svg", "max-width: 29%"), ("data:image/png", "max-width: 7%")]
    assert Made(tmp_path, p1_1=cells).html == made.html


def test_references_link_to_what_is_there_and_name_what_is_not(tmp_path):
    prose = text("See @tbl-t, @fig-far, [1-2](#nb-1-2), [4-4](#nb-4-4) and ![a picture](x.png).")
    made = Made(tmp_path, p1_1=[prose, figure("a", "tbl-t")], p1_2=[table("t", FRAME)])
    (paragraph,) = (p for p in made.soup.select("p") if p.get_text().startswith("See"))
    assert paragraph.get_text().startswith("See Table 1-2.1, Figure 4-4.1, 1-2, 4-4 and a picture")
    assert [a["href"] for a in paragraph.select("a")] == ["#tbl-t", "#nb-1-2"]
    assert "Figure 4-4.1" in made.soup.select_one("#tbl-t caption").get_text()
    assert "a picture" in made.pdf()


def test_code_and_output_are_text_and_can_be_left_out(tmp_path):
    new = nbformat.v4.new_output
    warning = new("stream", name="stderr", text="UserWarning: w\n")
    traceback = ["\x1b[31mValueError\x1b[0m: v"]
    cell = shown("1", {"text/plain": "```\n<b>plain</b>"}, {"text/plain": " "})
    cell.outputs += [new("stream", text="printed\n"), warning, new("error", traceback=traceback)]
    silent = shown("#| warning: false\nf()")
    silent.outputs.append(warning)
    cells = [cell, silent]
    for option in ("echo", "output", "include"):
        cells.append(shown(f"#| {option}: false\ncode()", {"text/plain": "out"}))
    made = Made(tmp_path, p1_1=cells)
    texts = [pre.get_text().strip() for pre in made.soup.select("#nb-1-1 pre")]
    printed = ["printed", "UserWarning: w", "ValueError: v"]
    assert texts == ["1", "```\n<b>plain</b>", *printed, "f()", "out", "code()"]
    assert all(each in made.pdf() for each in printed)


TABLE = "<table onclick='x()'><tr><td colspan=2><b>1</b></td></tr></table>"
# Outputs, and what a page shows of them.
KINDS = [
    ({"text/html": TABLE}, "table strong"),
    ({"text/html": "<b>x</b><script>alert(1)</script>"}, "strong"),
    ({"text/html": "<script>alert(1)</script>", "text/plain": "<plot>"}, "pre"),
    ({"text/html": "<svg><script>1</script></svg>"}, "img[src^='data:image/svg']"),
    ({"text/html": "<b>a</b>", "image/png": CODED}, "img[src^='data:image/png']"),
    ({"image/svg+xml": SVG}, "img[src^='data:image/svg']"),
    ({"image/jpeg": CODED}, "img[src^='data:image/png']"),  # what it is, not what it says
    ({"image/gif": "R0lGODlhAQABAAAAACw="}, ".failed"),
    ({"image/svg+xml": "<svg"}, ".failed"),
    ({"text/latex": r"\begin{align}a&=b\end{align}"}, "math"),
    ({"text/plain": "\x1b[31mred\x1b[0m"}, "pre .ansi-red-fg"),
    ({"application/vnd.plotly.v1+json": {}}, "pre"),
]


def test_each_kind_of_output_is_shown_without_what_could_run(tmp_path):
    made, sections = in_sections(tmp_path, [shown("", data) for data, _ in KINDS])
    for (data, selector), section in zip(KINDS, sections, strict=True):
        found = section.select(selector)
        assert len(found) == 1, (data, section)
        assert not section.select("script, [onclick]"), data
        assert "\x1b" not in found[0].get_text()
        assert found[0].name != "pre" or found[0].get_text().strip(), data
    assert made.pdf()


TYPED = {
    "\x1b[1;31mE\x1b[0m: x\n": ("E: x", {"ansi-red-intense-fg ansi-bold": "E"}),
    "\x1b[38;2;1;2;3;4mE\x1b[m": ("E", {"ansi-underline": "E"}),
    "\x1b[7m\x1b[48;5;196mE": ("E", {"ansi-default-inverse-bg": "E"}),
    "\x1b[32m<b>&amp;\n": ("<b>&amp;", {"ansi-green-fg": "<b>&amp;"}),
    '\x1b[31m"><script>x()\x1b[38;5;1;"mz</script>': (
        '"><script>x()z</script>',
        {"ansi-red-fg": '"><script>x()z</script>'},
    ),
    "\x1b]8;;http://x.y\x1b\\link\x1b]8;;\x07 \x1b(B\x1b[2K\x1b[3;4Hz\x1b7\x1b": ("link z", {}),
    "a\x08b\x00\x07\x1bPq#0\x1b\\c\x1b[?25l\x1b[>4;2md\x1b[<u\x1b]0;open": ("abcd0;open", {}),
    "```\n\x1b[34m`x`\n": ("```\n`x`", {"ansi-blue-fg": "`x`"}),
    'style="color\x1b[0m': ('style="color', {}),
    "\x1b[0m\n": None,
}
"""What is printed -> what is shown of it, and its colours; None if it is nothing."""


@pytest.mark.parametrize("kind", ["stream", "plain", "traceback", "html"])
def test_colours_are_shown_in_html_and_nothing_else_of_a_terminal(tmp_path, kind):
    """As text beside HTML that shows nothing, too."""
    cells = [shown("", {"text/plain": typed}) for typed in TYPED]
    for cell, typed in zip(cells, TYPED, strict=True):
        if kind == "html":
            cell.outputs[0].data["text/html"] = "<script>x()</script>"
        elif kind == "stream":
            cell.outputs = [nbformat.v4.new_output("stream", text=typed)]
        elif kind == "traceback":
            error = {"ename": "", "evalue": "", "traceback": [typed]}
            cell.outputs = [nbformat.v4.new_output("error", **error)]
    made = Made(tmp_path, p1_1=cells)
    blocks = [block for block in made.soup.select("#nb-1-1 pre") if block.get_text().strip()]
    found = [
        (
            block.get_text().strip(),
            {" ".join(span.get("class", [])): span.get_text().strip() for span in block("span")},
        )
        for block in blocks
    ]
    assert found == [seen for seen in TYPED.values() if seen]
    assert not made.soup.select("script, pre b")
    assert "\x1b" not in made.html
    printed = made.pdf()
    assert all(line in printed for text, _ in found for line in text.split("\n"))
    assert not re.search("[\x00-\x08\x1b]", printed)


def test_colours_can_be_read_in_light_and_dark_mode():
    """All of nbconvert's, by the contrast that WCAG 2 (1.4.3) asks of text."""
    css = (render.TEMPLATE / "report.html").read_text()
    named = re.findall(r"\.ansi-[a-z]+(?:-intense)?-fg", css)
    assert {name[1:-3] for name in named} == set(ansi._ANSI_COLORS)
    for mode in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", mode))
        for name in ("ink", "soft", "red", "green", "yellow", "blue", "magenta", "cyan"):
            darker, lighter = sorted(luminance(colours[each]) for each in (name, "wash"))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (name, mode)


def luminance(colour):
    """Relative luminance of "#rrggbb", as WCAG 2 defines it."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (byte / 255 for byte in bytes.fromhex(colour[1:]))
    ]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_long_line_is_broken_in_print(tmp_path):
    cell = shown("", {"text/plain": "x" * 300 + "\nshort"})
    lines = Made(tmp_path, p1_1=[cell]).pdf().split("\n")
    broken = [line for line in lines if "xxx" in line]
    assert sum(line.count("x") for line in broken) == 300
    assert max(map(len, broken)) < 120
    assert "short" in lines


GRIDS = {
    "<table><tr><td>1<td>2</table>": [["1", "2"]],
    "<TABLE><TR><TD>1<TD>2<TR><TD>3<TD>4</TABLE>": [["1", "2"], ["3", "4"]],
    "<table><tr><td>1</td><td>2</td><tr><td>3</td><td>4</td></table>": [["1", "2"], ["3", "4"]],
    "<table><caption>c<thead><tr><th>a<th>b<tbody><tr><td>1<td>2": [["a", "b"], ["1", "2"]],
    "<table><tr><td colspan=2>1<tr><td>3<td>4</table>": [["1"], ["3", "4"]],
    "<table><td>1<td title='a>b'>2 < 3</table>": [["1", "2 < 3"]],
    "<table><tr><td>\n\n<p>1<p>one\n<td><ul><li>2<li>3</ul>\n</table>": [["1 one", "2 3"]],
    "<div><table><tr><td>1<td><!-- <td> --><script>'<td>'</script>2</table>": [["1", "2"]],
    "<table><tr><td>1<td><table><tr><td>x<td>y</table><tr><td>3<td>4": [
        *(["1", "x y"], ["x", "y"], ["3", "4"]),
    ],
}
"""Tables that leave out tags -> their rows."""


@pytest.mark.parametrize("kind", ["cell", "output"])
def test_tables_may_leave_out_tags(tmp_path, kind):
    cells = [text(html) if kind == "cell" else shown("", {"text/html": html}) for html in GRIDS]
    made = Made(tmp_path, p1_1=cells)
    rows = [
        [" ".join(td.get_text(" ").split()) for td in row.find_all(["td", "th"], recursive=False)]
        for row in made.soup.select("#nb-1-1 tr")
    ]
    assert rows == [row for grid in GRIDS.values() for row in grid]
    assert made.soup.select("#nb-1-1 [colspan='2']")
    assert "1 2\n3 4" in re.sub("[ \n]*\n", "\n", made.pdf())


def test_only_the_head_of_a_table_is_bold_in_print(tmp_path):
    heads = "<table><tr><th>a<tr><td>b</table>", "<table><thead><tr><td>c<tbody><tr><td>d</table>"
    made = Made(tmp_path, p1_1=[text(html) for html in (*heads, "<table><tr><td>e</table>")])
    printed = render._written(made.tree, "typst", "report.typ")
    assert set(re.findall(r"#strong\[(\w)\]", printed)) == {"a", "c"}


def test_a_cell_with_a_table_is_otherwise_as_any_other(tmp_path):
    """Its headings, formulas, pictures and links."""
    source = "## Sizes\n\n[to it](#sizes) $x<1$ ![p](attachment:x.png) ![q](gone.png)\n\n"
    cell = text(source + "<table><tr><td>1<td>2</table>")
    cell.attachments = {"x.png": {"image/png": CODED}}
    section = Made(tmp_path, p1_1=[cell]).soup.select_one("#nb-1-1")
    assert section.select_one("#sizes h3").get_text() == "Sizes"
    assert section.a["href"] == "#sizes"
    assert len(section.select("math, img, td")) == 4
    assert "no picture in this project: gone.png" in section.get_text()


def test_a_title_beside_a_table_is_the_notebooks(tmp_path):
    book = nbformat.v4.new_notebook(cells=[text("# One\n\n<table><tr><td>1</table>\n\n## Two")])
    page = render.Page("1-1", book, {}, tmp_path)
    tree = render.parsed("".join(page.parts), {"1-1": page})
    soup = BeautifulSoup(render.to_html(tree, tmp_path), "html.parser")
    assert [each["id"] for each in soup.select("section")] == ["nb-1-1", "two"]


def test_headings_of_an_output_are_below_the_notebooks(tmp_path):
    cell = shown("", {"text/html": "<h1>Big</h1><table><tr><td>1</table>"})
    section = Made(tmp_path, p1_1=[cell, text("After")]).soup.select_one("#nb-1-1")
    assert section.h3.get_text() == "Big"
    assert "After" in section.get_text()


# --- what an author writes ------------------------------------------------------------------------


@pytest.fixture
def web():
    """An address at which nothing may be asked for; the test fails if something was."""
    asked = []
    # What asks is told nothing.
    server = HTTPServer(("127.0.0.1", 0), lambda request, *_: asked.append(request.recv(1000)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    assert asked == []


def test_pictures_of_a_cell_are_embedded_linked_or_named(tmp_path, web):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for path in (folder / "a b.png", tmp_path / "secret.png"):
        path.write_bytes(PNG)
    (folder / "c.svg").write_text(SVG)
    Image.open(io.BytesIO(PNG)).save(folder / "d.bmp")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "text.png").write_text("no picture")
    good = ["a%20b.png", "<a b.png>", "c.svg", "d.bmp", "attachment:x%20y.png"]
    good += [f"data:image/png;base64,{CODED}"]
    bad = ["gone.png", "../secret.png", f"{tmp_path}/secret.png", "link.png", "text.png", "."]
    bad += ["/etc/hostname", "file:///etc/hostname", "attachment:z.png", "figures/../x.png"]
    source = "\n\n".join(f"![p{n}]({each})" for n, each in enumerate(good + bad))
    source += f"\n\n![web]({web}/e.png){{share=1}} ![r][ref]\n\n[ref]: a%20b.png"
    cell = text(source, attachments={"x y.png": {"image/png": CODED}})
    html = text(f"<img src='a b.png' width=336 onerror='x()'> <img src='{web}/f.png'>")
    made = Made(tmp_path, folder, p1_1=[cell, html])
    section = made.soup.select_one("#nb-1-1")
    pictures = section.select("img")
    names = [picture.get("alt", "") for picture in pictures]
    assert names == [*(f"p{n}" for n in range(len(good))), "r", ""]
    assert all(picture["src"].startswith("data:image/") for picture in pictures)
    links = [a["href"] for a in section.select("a")]
    assert links == [f"{web}/e.png", f"{web}/f.png"]
    assert re.findall(r"no picture in this project: ([^]]*)]", section.get_text()) == bad
    assert "no picture in this project" in made.pdf()


def test_nothing_in_a_cell_runs_or_loads(tmp_path, web):
    its = f'src="{web}/a" poster="{web}/b" data-src="file:///etc/hostname" onclick="x()"'
    cells = [
        f'[s]{{{its} style="background:url({web}/c)"}} `c`{{{its}}}',
        f"::: {{{its}}}\nd\n:::\n\n## H {{{its}}}",
        f"<div {its}><script>x()</script><iframe src='{web}/d'></iframe></div>",
        f"<table {its}><tr {its}><td {its}>t</table>",
        f"<style>@import url({web}/e)</style><link rel=stylesheet href={web}/f><svg onload=x()>",
        "[j](javascript:x()) [d](data:text/html,x) [f](file:///etc/passwd) [p](a.ipynb)",
        f"$\\href{{javascript:x()}}{{y}}$ `<script>x()</script>`{{=html}} <{web}>",
    ]
    section = Made(tmp_path, p1_1=list(map(text, cells))).soup.select_one("#nb-1-1")
    assert not section.select("script, iframe, link, style, [onclick], [data-src], [poster]")
    assert all(tag["src"].startswith("data:image/") for tag in section.select("[src]"))
    assert not section.select("[style*=url]")
    assert [a["href"] for a in section.select("a")] == [web]


OPEN = [
    "```python\n# unclosed",
    "::: {.note}\nopen",
    "---\ntitle: a: b\n---",
    "<div><details><b>open",
    "$$\nx",
    "<!-- open",
    "% title",
    "[^1] [l]\n\n[^1]: One\n\n[l]: http://one",
    "> quoted\n- a\n  1. b",
    "| a |\n|--",
    "\x00\x1e{}\x1b",
]


def test_what_a_cell_leaves_open_ends_with_it(tmp_path):
    after = text("[^1] [l]\n\n[^1]: Two\n\n[l]: http://two")
    made, sections = in_sections(tmp_path, [*map(text, OPEN), after, figure("a", "fig-a")])
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
    cells = [text("Before"), *map(text, unknown), *cells, text("$x^2$ after")]
    printed = Made(tmp_path, p1_1=cells).pdf()
    assert all(each in printed for each in ("Before", *(u.strip("$") for u in unknown), "after"))
    assert printed.count("cannot be printed") == 2


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
