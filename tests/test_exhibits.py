"""Cell options, checked before anything runs; what a kernel shows and passes to the report."""

import nbformat
import pandas as pd
import pytest
from conftest import cases
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib import pyplot as plt

from dlcvlib.config.profiles import load
from dlcvlib.config.schema import VAEParams
from dlcvlib.report import exhibits, notebook
from dlcvlib.report.exhibits import MIME, check
from dlcvlib.report.tables import as_text, best, by_pair, outcome, to_markdown
from dlcvlib.utils.errors import UserError

CASES = cases("exhibits")
FIGURE = "#| label: fig-{0}\n#| fig-cap: The {0}.\n#| fig-alt: Lines.\n{1}"
TABLE = "#| label: tbl-{0}\n#| tbl-cap: The {0}.\n{1}"


def book(*cells):
    """A notebook; text that begins with ">" is a Markdown cell."""
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    cells = [text(cell[1:]) if cell.startswith(">") else code(cell) for cell in cells]
    return nbformat.v4.new_notebook(cells=cells)


# --- options ------------------------------------------------------------------------------------


def test_exhibits_are_numbered_by_kind_in_the_sources_order():
    long = '#| label: tbl-1-1-b-c\n#| tbl-cap: >\n#|   One: "two"\n#|   three.\n1'
    first = book("1", FIGURE.format("a", "f"), long, FIGURE.format("d", ""))
    found = check({"1-2": book(FIGURE.format("e", "")), "1-1": first})
    numbers = ["Figure 1-1.1", "Table 1-1.1", "Figure 1-1.2", "Figure 1-2.1"]
    assert [exhibit.number for exhibit in found.values()] == numbers
    assert [exhibits.name_of(label) for label in found] == ["a", "b_c", "d", "e"]
    assert (found["fig-a"].caption, found["fig-a"].alt) == ("The a.", "Lines.")
    assert found["tbl-1-1-b-c"].caption == 'One: "two" three.'


@pytest.mark.parametrize("case", CASES["mistakes"], ids=lambda case: case["error"])
def test_a_mistake_gives_one_error_that_names_its_cell(case):
    with pytest.raises(UserError, match=f"^notebook 1-2, cell 2: .*{case['error']}"):
        check({"1-1": book(FIGURE.format("there", "")), "1-2": book("1", case["cell"])})


def test_lookalikes_are_not_references():
    text = r">name@fig-tree.org, \@fig-x, @figure-x, @ref, `@tbl-`; @fig-there a@b2014."
    check({"1-1": book(FIGURE.format("there", ""), text, "%matplotlib inline\n@decorator")})


# --- tables -------------------------------------------------------------------------------------


def test_columns_have_their_formats_headings_and_alignment():
    names = ["<x> a|b", "usps->mnistm"]
    spread = ["0.12±0.03", "-1 ± 2"]
    frame = pd.DataFrame({"kid": [1 / 3, None], "b_c": names, "n": [-1.0, 2e4], "std": spread})
    assert to_markdown(frame).splitlines() == [
        "| KID | b c | n | std. deviation |",
        "|--------:|:-----------------|---------:|-----------------:|",
        r"| 0.333 | \<x\> a\|b | −1 | 0.12±0.03 |",
        "| – | USPS → MNIST-M | 20,000 | −1 ± 2 |",
    ]


def test_a_styler_departs_from_them_where_it_says_so():
    frame = pd.DataFrame({"kid": [0.5, None], "rule": ["a", "b"], "n": [1, 2], "mse": [-2.0, 1e3]})
    styler = frame.style.format({"kid": "{:+.0%}", "rule": str.upper}).hide(["n"], axis="columns")
    assert list(as_text(styler)) == ["KID", "measure", "squared error"]
    assert as_text(styler).to_numpy().tolist() == [["+50%", "A", "−2.0"], ["–", "B", "1000.0"]]
    renamed = as_text(frame.style.format_index(str.upper, axis="columns").hide([1]))
    assert list(renamed) == ["KID", "RULE", "N", "MSE"]
    assert renamed.to_numpy().tolist() == [["0.500", "a", "1", "−2.0"]]


def test_an_index_that_says_something_becomes_columns():
    frame = pd.DataFrame({"m": list("uvuv"), "pair": list("aabb"), "accuracy": [0.5, 2, 3, 4]})
    pivot = frame.pivot_table(index="pair", columns="m", values=["accuracy"])
    plain, styled = as_text(pivot), as_text(pivot.style.format("{:.3f}"))
    assert list(styled) == list(plain) == ["pair", "accuracy u", "accuracy v"]
    assert plain.to_numpy().tolist() == [["a", "0.5", "2"], ["b", "3", "4"]]
    assert styled.to_numpy().tolist() == [["a", "0.500", "2.000"], ["b", "3.000", "4.000"]]


def test_groups_are_named_once_and_the_best_values_are_bold():
    spread = ["9.5 ± 2", "10.1", "–", "-1.0"]
    pairs = ["a->b", "a->b", "c", "c"]
    frame = pd.DataFrame({"pair": pairs, "m": list("uvuv"), "accuracy": spread})
    shown = best(frame.set_index(["pair", "m"]).assign(mse=[4, 1, 1, 2]), "accuracy")
    rows = to_markdown(best(shown, "mse", lowest=True)).splitlines()[2:]
    assert rows == [
        "| a → b | u | 9.5 ± 2 | 4.0 |",
        "|  | v | **10.1** | **1.0** |",
        "| c | u | – | **1.0** |",
        "|  | v | **−1.0** | 2.0 |",
    ]
    assert list(as_text(frame.set_index(["pair", "m"]))["pair"]) == ["a → b", "", "c", ""]
    hidden = best(frame, "accuracy").hide(["m"], axis="columns").hide([0])
    assert "| a → b | **10.1** |" in to_markdown(hidden)


def test_claims_on_pairs_are_a_row_each():
    claims = [f"{claim} {pair}" for claim in ("A on", "B,") for pair in ("u->v", "v->w")]
    numbers = {"difference": [0.1, -0.004, 1, 2], "low": [0.05, float("nan"), -1, 1], "high": 3.0}
    verdict = ["supported", "not judged", "inconclusive", "contradicted"]
    frame = pd.DataFrame({"claim": claims, "verdict": verdict} | numbers)
    shown = by_pair(frame)
    assert to_markdown(shown).splitlines()[2:] == [
        r"| A | **+0.10 \[+0.05, +3.00\]** | +0.00 |",
        r"| B | +1.00 \[−1.00, +3.00\] | **+2.00 \[+1.00, +3.00\]** |",
    ]
    assert outcome(frame.tail(1), "B") == "contradicted on all pairs"
    assert outcome(frame, "B") == "inconclusive on u → v, contradicted on v → w"


# --- the kernel's side --------------------------------------------------------------------------


@pytest.fixture
def kernel():
    """Run cells after `begin`, and collect what they show."""
    plt.close("all")  # what other tests have left open would be shown
    shell = InteractiveShell.instance()
    shell.enable_gui = lambda gui=None: None  # of a shell with a display, as kernels have
    notebook.begin(VAEParams, [parameters_cell()])

    def run(*cells):
        # Within the trap, or each cell would set the hook that is captured here.
        with shell.display_trap, capture_output() as captured:
            for cell in ["from dlcvlib.report.notebook import record, say", *cells]:
                assert shell.run_cell(cell, store_history=True).success
        return [output.data for output in captured.outputs if output.data]

    yield run
    InteractiveShell.clear_instance()


def parameters_cell(**changes):
    values = load("smoke", "vae").model_dump() | changes
    return "\n".join(f"{name}: object = {value!r}" for name, value in values.items())


PLOT = "from matplotlib import pyplot as plt; figure, ax = plt.subplots(); ax.plot([1, 2]);"
FRAME = "import pandas as pd; frame = pd.DataFrame({'kid': [1 / 3, None], 'b_c': ['x', None]});"


def test_a_figure_is_shown_once_with_its_values(kernel):
    cell = FIGURE.format("a", f"{PLOT}{FRAME}\nfigure.values = frame[['kid']].head(1)\nax")
    (data,), (again,) = kernel(cell), kernel(cell)
    assert "<svg" in data["image/svg+xml"]
    assert [data[f"image/{k}"] == again[f"image/{k}"] for k in ("svg+xml", "png")] == [True, True]
    assert (data[MIME]["kind"], data[MIME]["csv"]) == ("figure", f"kid\n{1 / 3}\n")
    assert plt.get_fignums() == []
    (pixels,) = kernel(f"{PLOT}\nax.imshow([[0, 1]])\nfigure")
    assert pixels.keys() == {"image/png", "text/plain"}


def test_plots_of_the_users_own_are_shown_as_they_are_drawn(kernel):
    show = f"{PLOT}\nplt.show()"
    (data,) = kernel(FIGURE.format("b", show))
    assert data[MIME]["kind"] == "figure"
    (plain,) = kernel(show)
    assert "<svg" in plain["image/svg+xml"]
    assert not {"image/svg+xml", MIME} & kernel("plt.figure()")[0].keys()


def test_a_frame_is_an_exhibit_only_under_a_label(kernel):
    (data,) = kernel(TABLE.format("1-4-t", f"{FRAME}\nframe.style.hide(['b_c'], axis=1)"))
    assert data[MIME]["values"] == {"t": {"kid": [1 / 3, None], "b_c": ["x", None]}}
    assert data["text/markdown"].splitlines()[0] == "| KID |"
    again = TABLE.format("t", "display(frame)\nframe")
    assert [MIME in data for data in kernel(again)] == [True, False]
    plain, styled = kernel(f"{FRAME}\nframe", "frame.style.format('{:.1f}', subset=['kid'])")
    assert "0.333333" in plain["text/html"]
    assert ">0.3</td>" in styled["text/html"]
    assert not {MIME, "text/markdown"} & (plain.keys() | styled.keys())


def test_values_become_plain_and_others_are_refused(kernel):
    values = "n=torch.tensor([1.5]), i=pd.Series([1]), infinite=float('inf')"
    (data,) = kernel(f"import torch\nimport pandas as pd\nrecord({values})")
    assert data.keys() == {MIME}
    assert data[MIME]["values"] == {"n": [1.5], "i": [1], "infinite": None}
    with pytest.raises(TypeError, match=r"results\.json"):
        notebook.record(x=object())


@pytest.mark.parametrize("case", CASES["prose"], ids=lambda case: case["cell"])
def test_prose_is_markdown_but_values_are_escaped(kernel, case):
    """They have a true minus, and a number that is undefined is a dash."""
    (data,) = kernel(f"import torch\nimport numpy as np\n{case['cell']}")
    assert data["text/markdown"] == case["shown"]


# --- parameters ---------------------------------------------------------------------------------


def begin(*cells):
    return VAEParams.parse(notebook.parameters(VAEParams, cells), "parameters")


def test_parameters_are_those_of_their_cell_and_papermills():
    own, later = parameters_cell(), "steps: int = 7\nx = 1\nimport os"
    assert begin("", own).steps == load("smoke", "vae").steps
    assert begin("", own, "# Parameters\nsteps = 5\nseed = 3", later).steps == 5
    # Run again in JupyterLab, after an edit: the cell as it is now, not what it was or papermill's.
    typo = own.replace("steps:", "stepz:", 1)
    cells = ["", typo, "# Parameters\nsteps = 5", later, parameters_cell(steps=9), later]
    assert begin(*cells).steps == 9


@pytest.mark.parametrize("case", CASES["parameters"], ids=lambda case: case["error"])
def test_impossible_parameters_are_refused(case):
    with pytest.raises(UserError, match=case["error"]):
        begin(*(parameters_cell() if cell == "valid" else cell for cell in case["cells"]))
