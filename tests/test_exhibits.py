"""Cell options, checked before anything runs; what a kernel shows and passes to the report."""

import base64
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot as plt

from dlcvlib.config.profiles import load
from dlcvlib.config.schema import VAEParams
from dlcvlib.report import exhibits, notebook, tables
from dlcvlib.report.exhibits import MIME, check
from dlcvlib.report.tables import to_markdown
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.markdown import table

FIGURE = "#| label: fig-{0}\n#| fig-cap: The {0}.\n#| fig-alt: Lines.\n{1}"
TABLE = "#| label: tbl-{0}\n#| tbl-cap: The {0}.\n{1}"


def book(*cells):
    """A notebook; text that begins with ">" is a Markdown cell."""
    return nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(cell[1:])
            if cell.startswith(">")
            else nbformat.v4.new_code_cell(cell)
            for cell in cells
        ]
    )


# --- options ------------------------------------------------------------------------------------


def test_exhibits_are_numbered_by_kind_in_the_sources_order():
    first = book("1", FIGURE.format("a", "f"), TABLE.format("1-1-b-c", "t"), FIGURE.format("d", ""))
    found = check({"1-2": book(FIGURE.format("e", "")), "1-1": first})
    assert {label: (e.number, exhibits.name_of(label)) for label, e in found.items()} == {
        "fig-a": ("Figure 1-1.1", "a"),
        "tbl-1-1-b-c": ("Table 1-1.1", "b_c"),
        "fig-d": ("Figure 1-1.2", "d"),
        "fig-e": ("Figure 1-2.1", "e"),
    }
    assert (found["fig-a"].caption, found["fig-a"].alt) == ("The a.", "Lines.")
    assert found["tbl-1-1-b-c"].alt == ""


def test_a_caption_may_be_long_and_contain_anything():
    cell = '#| label: tbl-x\n#| tbl-cap: >\n#|   One: "two"\n#|   three.\n1'
    assert check({"1-1": book(cell)})["tbl-x"].caption == 'One: "two" three.'


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("#| lable: fig-a", "unknown option 'lable': did you mean 'label'"),
        ("#| label: fig-a\n#| fig-cap: A: b", "not YAML .*quotes"),
        ("#| - label", "not a YAML mapping"),
        ("1\n#| label: fig-a", "must be the cell's first lines"),
        ("#| label: figure-a", "'figure-a' is not fig-… or tbl-…"),
        ("#| label: fig-a b", "'fig-a b' is not"),
        ("#| label: fig-a\n#| fig-cap: A.", "fig-a has no fig-alt"),
        ("#| label: fig-a\n#| fig-alt: A.", "fig-a has no fig-cap"),
        ("#| label: tbl-a\n#| fig-cap: A.", "tbl-a has no tbl-cap"),
        ("#| tbl-cap: A.", "tbl-cap without a label"),
        (FIGURE.format("there", ""), "label fig-there is taken by notebook 1-1"),
        (">See @fig-their.", "@fig-their refers to no exhibit: did you mean 'fig-there'"),
        ("say('see @tbl-x')", "@tbl-x refers to no exhibit"),
        ("#| label: tbl-a\n#| tbl-cap: As @fig-x.", "@fig-x refers to no exhibit"),
    ],
)
def test_a_mistake_gives_one_error_that_names_its_cell(cell, message):
    with pytest.raises(UserError, match=f"^notebook 1-2, cell 2: .*{message}"):
        check({"1-1": book(FIGURE.format("there", "")), "1-2": book("1", cell)})


def test_lookalikes_are_not_references():
    text = r">name@fig-tree.org, \@fig-x, @figure-x, @ref, `@tbl-`; @fig-there."
    check({"1-1": book(FIGURE.format("there", ""), text, "%matplotlib inline\n@decorator")})


# --- the kernel's side --------------------------------------------------------------------------


@pytest.fixture
def kernel(monkeypatch):
    """Run cells after `begin`, and collect what they show."""
    shell = InteractiveShell.instance()
    shown = []
    monkeypatch.setattr(
        type(shell.display_pub), "publish", lambda self, data, **_: shown.append(data)
    )
    monkeypatch.setattr(
        type(shell.displayhook), "write_format_data", lambda self, data, *_: shown.append(data)
    )
    notebook.begin(VAEParams, [parameters_cell()])

    def run(*cells):
        shown.clear()
        for cell in cells:
            assert shell.run_cell(cell, store_history=True).success
        return list(shown)

    yield run
    InteractiveShell.clear_instance()


def parameters_cell(**changes):
    values = load("smoke", "vae").model_dump() | changes
    return "\n".join(f"{name}: object = {value!r}" for name, value in values.items())


PLOT = "from matplotlib import pyplot as plt; figure, ax = plt.subplots(); ax.plot([1, 2]);"


def test_a_figure_is_shown_once_with_its_values(kernel):
    (data,) = kernel(
        FIGURE.format(
            "a", f"{PLOT}\nimport pandas as pd\nfigure.values = pd.DataFrame({{'x': [1]}})\nax"
        )
    )
    assert "<svg" in data["image/svg+xml"]
    assert "image/png" not in data
    assert (data[MIME]["kind"], data[MIME]["csv"]) == ("figure", "x\n1\n")
    assert plt.get_fignums() == []


def test_pixels_are_png_and_the_same_figure_gives_the_same_bytes(kernel):
    (pixels,) = kernel(f"{PLOT}\nax.imshow([[0, 1]])\nfigure")
    assert base64.b64decode(pixels["image/png"]).startswith(b"\x89PNG")
    assert MIME not in pixels
    lines = [kernel(FIGURE.format("a", f"{PLOT}\nax.legend(['b'])\nfigure")) for _ in range(2)]
    assert lines[0][0]["image/svg+xml"] == lines[1][0]["image/svg+xml"]


FRAME = """\
import pandas as pd
frame = pd.DataFrame({"kid": [1 / 3, float("nan")], "b_c": ["x", None]})
"""


def test_a_frame_is_an_exhibit_only_under_a_label(kernel):
    (data,) = kernel(TABLE.format("1-4-t", f"{FRAME}frame"))
    assert data[MIME]["values"] == {"t": {"kid": [1 / 3, None], "b_c": ["x", None]}}
    assert data["text/markdown"].splitlines()[0] == "| KID | b c |"
    assert data["text/markdown"].splitlines()[2:] == ["| 0.333 | x |", "| – | – |"]
    assert "<td>0.333</td>" in data["text/html"]
    plain, styled = kernel(f"{FRAME}frame", "frame.style.format('{:.1f}', subset=['kid'])")
    assert "0.333333" in plain["text/html"]
    assert ">0.3</td>" in styled["text/html"]
    assert not {MIME, "text/markdown"} & (plain.keys() | styled.keys())


def test_a_label_stands_for_one_exhibit_of_its_kind(kernel):
    cell = f"{FRAME}{PLOT}\ndisplay(frame)\ndisplay(figure)\ndisplay(frame)"
    kinds = [data.get(MIME, {}).get("kind") for data in kernel(TABLE.format("t", cell))]
    assert kinds == ["table", None, None]


def test_named_indices_become_columns_and_two_level_headings_are_joined():
    frame = pd.DataFrame({"m": list("uvuv"), "pair": list("aabb"), "accuracy": [0.5, 2, 3, 4]})
    pivot = frame.pivot_table(index="pair", columns="m", values=["accuracy"])
    assert tables.flat(pivot).to_dict("list") == {
        "pair": ["a", "b"],
        "accuracy_u": [0.5, 3],
        "accuracy_v": [2, 4],
    }
    text = tables.as_text(pivot.style.format("{:.1%}").hide())
    assert text.to_dict("list") == {
        "accuracy u": ["50.0%", "300.0%"],
        "accuracy v": ["200.0%", "400.0%"],
    }


def test_values_become_plain_and_others_are_refused(kernel):
    import torch

    assert notebook.plain({"n": torch.tensor([1.5]), "i": pd.Series([1])}) == {"n": [1.5], "i": [1]}
    (data,) = kernel("from dlcvlib.report.notebook import record\nrecord(n=float('inf'))")
    assert data.keys() == {MIME}
    assert data[MIME]["values"] == {"n": None}
    with pytest.raises(TypeError, match=r"results\.json"):
        notebook.plain({"x": object()})


def test_prose_is_markdown_but_text_values_are_escaped(kernel):
    (data,) = kernel(
        "from dlcvlib.report.notebook import say\nsay('*{:.0%}* {}', 0.25, '<b> @fig-x')"
    )
    assert data["text/markdown"] == r"*25%* \<b\> \@fig-x"


def test_negative_numbers_have_a_true_minus(kernel):
    texts = "'{} {:+.1f} {:.0e} {}', -1, -0.5, 1e-5, '-2±1, x-1'"
    (data,) = kernel(f"from dlcvlib.report.notebook import say\nsay({texts})")
    assert data["text/markdown"] == "−1 −0.5 1e-05 −2±1, x-1"
    frame = pd.DataFrame({"a": [-1.0], "b": [-0.25], "c": ["usps-1"]})
    assert to_markdown(frame.style.format("{:.2f}", subset=["b"])).splitlines()[1:] == [
        "|-----:|--------:|:---------|",
        "| −1 | −0.25 | usps-1 |",
    ]


def test_runs_are_named_once(kernel, monkeypatch):
    runs = SimpleNamespace(handed_out=["vae-1", "vae-1"])
    monkeypatch.setitem(notebook.sys.modules, "dlcvlib.training.runs", runs)
    first = kernel("from dlcvlib.report.notebook import record\nrecord(a=1)")
    runs.handed_out.append("gan-1")
    (second,) = kernel("record(a=1)")
    assert [first[-1][MIME]["runs"], second[MIME]["runs"]] == [["vae-1"], ["gan-1"]]


def test_a_table_escapes_its_content_and_aligns_numbers():
    lines = table([["<c>", "0.12±0.03"], ["1", "–"]], ["a|b", "n"]).splitlines()
    assert lines == [
        r"| a\|b | n |",
        "|:------|------------:|",
        r"| \<c\> | 0.12±0.03 |",
        "| 1 | – |",
    ]


# --- parameters ---------------------------------------------------------------------------------


def begin(*cells):
    return VAEParams.parse(notebook.parameters(VAEParams, cells), "parameters")


def test_parameters_are_those_of_their_cell_and_papermills():
    own, later = parameters_cell(), "steps: int = 7\nx = 1\nimport os"
    assert begin("", own).steps == load("smoke", "vae").steps
    assert begin("", own, "# Parameters\nsteps = 5\nseed = 3", later).steps == 5
    # Run again in JupyterLab, after an edit: the cell as it is now, not what it was or papermill's.
    typo = own.replace("steps:", "stepz:", 1)
    assert (
        begin("", typo, "# Parameters\nsteps = 5", later, parameters_cell(steps=9), later).steps
        == 9
    )


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["import os"], r"no cell of this notebook sets the parameters \(VAEParams\)"),
        (["# Parameters\nseed = 1", parameters_cell()], "papermill's parameters come before"),
        ([parameters_cell(), "# Parameters\nsteep = 1"], "'steep': did you mean 'steps'"),
        ([parameters_cell(steps=-1)], "'steps'"),
    ],
)
def test_impossible_parameters_are_refused(cells, message):
    with pytest.raises(UserError, match=message):
        begin(*cells)


def test_headline_rows_keep_their_names(kernel):
    row = "pd.DataFrame([{'quantity': 'KID', 'ours': 0.1234, 'original': None, 'data': 'faces'}])"
    (data,) = kernel(f"#| tags: [headline]\nimport pandas as pd\n{row}")
    assert data[MIME]["rows"] == [
        {"quantity": "KID", "ours": "0.123", "original": "–", "data": "faces"}
    ]
    assert exhibits.options("#| tags: [headline]") == {"tags": ["headline"]}
