"""The notebooks' form, and that they ran: question, small cells, exhibits and sentences on them."""

import ast
import json
import re
import statistics
from collections import Counter

import nbformat
import pytest

from dlcvlib.config.paths import NOTEBOOKS
from dlcvlib.config.profiles import CHAPTERS, load
from dlcvlib.report.exhibits import MIME, check, split
from dlcvlib.report.notebook import parameters

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
BOOKS = {path.name[:3]: nbformat.read(path, as_version=4) for path in PATHS}


@pytest.fixture(params=BOOKS)
def problem(request):
    return request.param


@pytest.fixture
def notebook(problem):
    return BOOKS[problem]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def bodies(notebook):
    """Code cells without the parameters and without their options."""
    cells = [c for c in code(notebook) if "parameters" not in c.metadata.get("tags", [])]
    return [split(cell.source)[1] for cell in cells]


def test_there_is_one_per_problem():
    wanted = {1: 6, 2: 4, 3: 6, 4: 4}
    assert list(BOOKS) == [
        f"{chapter}-{n}" for chapter, count in wanted.items() for n in range(1, count + 1)
    ]


def test_exhibits_are_declared_and_many():
    counts = Counter(exhibit.problem for exhibit in check(BOOKS).values())
    assert counts.total() >= 90
    assert min(counts[problem] for problem in BOOKS) >= 2


def test_committed_without_outputs(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert notebook.metadata.kernelspec.name == "python3"


def test_opens_with_a_question(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "?**" in first.source or "test here.**" in first.source


def test_begins_with_the_parameters_of_quick(problem, notebook):
    chapter, cls = list(CHAPTERS.items())[int(problem[0]) - 1]
    cell, begin, *_ = code(notebook)
    assert cell.metadata.tags == ["parameters"]
    assert parameters(cls, [cell.source]) == load("quick", chapter).model_dump()
    assert begin.source.splitlines()[-1] == f"params = begin({cls.__name__}, In)"


def test_cells_are_small(notebook):
    lengths = [len([line for line in body.splitlines() if line]) for body in bodies(notebook)]
    assert statistics.median(lengths) <= 6
    assert max(lengths) <= 30


def test_no_plumbing(notebook):
    for body in bodies(notebook):
        tree = ast.parse(body)
        assert not {type(node) for node in ast.walk(tree)} & {ast.ClassDef, ast.While}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 20
        assert not re.search(r"sys\.path|\.backward\(\)|\.note\(\)|\bpage\.", body)


def test_no_number_is_typed_into_prose(notebook):
    """Results are computed: prose contains no decimal fraction except the original's settings."""
    allowed = {"0.1", "0.5"}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            words = cell.source.replace("(", " ").replace(",", " ").split()
            decimals = {
                w.rstrip(".;:)") for w in words if w[0].isdigit() and "." in w.rstrip(".;:)")
            }
            assert decimals <= allowed


# --- executed -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(smoke_report):
    """Problem -> its executed notebook."""
    folder = smoke_report[0] / "notebooks"
    return {path.name[:3]: nbformat.read(folder / path.name, as_version=4) for path in PATHS}


def payloads(notebook):
    outputs = [output.get("data", {}) for cell in code(notebook) for output in cell.outputs]
    return [data[MIME] for data in outputs if MIME in data]


def test_all_ran_headless_and_show_what_they_declare(executed):
    declared = check(BOOKS).values()
    for problem, notebook in executed.items():
        assert all(cell.execution_count for cell in code(notebook) if cell.source.strip())
        shown = Counter(payload["kind"] for payload in payloads(notebook))
        kinds = Counter(exhibit.label[:3] for exhibit in declared if exhibit.problem == problem)
        assert (shown["figure"], shown["table"]) == (kinds["fig"], kinds["tbl"])


def test_every_figure_has_its_values(executed):
    figures = [p for n in executed.values() for p in payloads(n) if p["kind"] == "figure"]
    assert all(figure["csv"].count("\n") > 1 for figure in figures)


def test_notebooks_name_the_data_of_their_pictures(executed):
    """Synthetic faces and digits are labelled as such wherever they are shown."""
    for notebook in executed.values():
        outputs = [output.get("data", {}) for cell in code(notebook) for output in cell.outputs]
        if any("image/png" in data for data in outputs):
            assert any("Data: " in data.get("text/markdown", "") for data in outputs)


def test_executed_notebooks_have_no_stray_output(executed):
    text = json.dumps(executed)
    assert "it/s]" not in text
    assert "widget-view" not in text


def test_notebooks_share_their_run(smoke_report, executed):
    def runs_of(*problems):
        return {name for p in problems for each in payloads(executed[p]) for name in each["runs"]}

    first = runs_of("1-1", "1-2", "1-3", "1-4", "1-5")
    second = runs_of("2-1", "2-2")
    (features,) = first & second  # whose features both chapters' images are measured by
    (vae,), (gan,) = first - {features}, second - {features}
    for name, kind in ((vae, "vae"), (gan, "dcgan"), (features, "features")):
        record = json.loads((smoke_report[1] / name / "provenance.json").read_text())
        assert record["kind"] == kind
    assert runs_of("2-4") == {vae, gan, features}
