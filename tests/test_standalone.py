"""Executed notebooks by themselves: links, captions, and that the report takes them off again."""

import re
from copy import deepcopy

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dlcvlib.report.exhibits import MIME, check
from dlcvlib.report.render import Page
from dlcvlib.report.standalone import as_written, make_readable

TEXTS = {
    "@fig-a and @tbl-t.": "[Figure 1-1.1](../report.html#fig-a) and ",
    "[3-2](#nb-3-2), [top](#top)": "[3-2](../report.html#nb-3-2), [top](#top)",
    "[see @kingma2014, section 2; @ganin2016]": "[see [Kingma 2014](../report.html#ref-",
    "@kingma2014 and @fig-nowhere, a@b2014.": "[Kingma 2014](../report.html#ref-kingma2014) and @",
}


SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="144pt" height="72pt"></svg>'
FIGURE = "#| label: fig-a\n#| fig-cap: The *a*; see @tbl-t.\n#| fig-alt: A line.\nplot()"
TABLE = "#| label: tbl-t\n#| tbl-cap: A table; see @fig-a.\nframe"


def shown(source, kind="", **data):
    if kind:
        data[MIME] = {"kind": kind, "values": {kind: 1}, "runs": [], "seconds": {}, "csv": "x\n1\n"}
    return new_code_cell(source, outputs=[new_output("display_data", data)])


def executed(text):
    cells = [new_markdown_cell(f"# Title\n\n{text}"), shown("say()", **{"text/markdown": text})]
    cells.append(shown(FIGURE, "figure", **{"image/svg+xml": SVG}))
    cells.append(shown(TABLE, "table", **{"text/markdown": "| a |\n|--:|\n| 1 |", "text/html": ""}))
    book = new_notebook(cells=cells)
    readable, exhibits = deepcopy(book), check({"1-1": book}, whole=False)
    make_readable(readable, "1-1", exhibits)
    return book, readable, exhibits


@pytest.mark.parametrize(("text", "start"), TEXTS.items())
def test_references_and_citations_are_links_into_the_report(text, start):
    """Which takes them, the captions and the way back off again."""
    book, readable, exhibits = executed(text)
    back, title, say, *_ = readable.cells
    assert title.source.partition("\n\n")[2].startswith(start)
    assert say.outputs[0].data["text/markdown"] == title.source.partition("\n\n")[2]
    assert as_written(title.source) == book.cells[0].source
    assert {"../report.html#nb-1-1", "../index.html"} == {*re.findall(r"\((\S*)\)", back.source)}
    plain, other = (Page("1-1", b, exhibits) for b in (book, readable))
    heads = re.compile(r"(?m)^\x1e.*\n(\n(?=\x1e|\Z))?")  # of parts, and what is empty
    assert heads.sub("", "".join(other.parts)) == heads.sub("", "".join(plain.parts))
    assert plain.results == other.results
    assert plain.files == other.files


def test_captions_stand_under_their_exhibits():
    *_, drawn, listed = executed("")[1].cells
    for cell, caption in (
        (drawn, "**Figure 1-1.1.** The *a*; see [Table 1-1.1](../report.html#tbl-t)."),
        (listed, "**Table 1-1.1.** A table; see [Figure 1-1.1](../report.html#fig-a)."),
    ):
        exhibit, under = cell.outputs
        assert exhibit.data[MIME]["kind"] != "caption"
        assert "text/html" not in exhibit.data  # pandas' table
        assert under.data["text/markdown"] == caption
