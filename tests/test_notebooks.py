"""The notebooks' form, and that they ran: question, small cells, figures read in a sentence."""

import ast
import json
import statistics

import nbformat
import pytest

from dlcvlib.config.paths import NOTEBOOKS
from dlcvlib.report.exhibits import MIME

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def told(notebook):
    """Code cells without the parameters."""
    return [c for c in code(notebook) if "parameters" not in c.metadata.get("tags", [])]


def test_there_is_one_a_problem():
    wanted = {1: 6, 2: 4, 3: 6, 4: 4}
    assert [path.name[:3] for path in PATHS] == [
        f"{chapter}-{n}" for chapter, count in wanted.items() for n in range(1, count + 1)
    ]


def test_committed_without_outputs(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert notebook.metadata.kernelspec.name == "python3"


def test_opens_with_a_question(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "?**" in first.source or "test here.**" in first.source


def test_cells_are_small(notebook):
    lengths = [len(cell.source.splitlines()) for cell in told(notebook)]
    assert statistics.median(lengths) <= 10
    assert statistics.quantiles(lengths, n=10)[-1] <= 22


def test_no_plumbing(notebook):
    for cell in told(notebook):
        tree = ast.parse(cell.source)
        kinds = {type(node) for node in ast.walk(tree)}
        assert not kinds & {ast.ClassDef, ast.While}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 8
        assert "sys.path" not in cell.source
        assert ".backward()" not in cell.source


def test_one_exhibit_a_cell(notebook):
    for cell in told(notebook):
        assert cell.source.count("page.figure(") + cell.source.count("page.table(") <= 1


def test_no_number_is_typed_into_prose(notebook):
    """Results are computed: no prose may hold a decimal fraction but the original's settings."""
    allowed = {"0.1", "0.5"}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            words = cell.source.replace("(", " ").replace(",", " ").split()
            decimals = {
                w.rstrip(".;:)") for w in words if w[0].isdigit() and "." in w.rstrip(".;:)")
            }
            assert decimals <= allowed


def test_all_ran_headless(smoke_report):
    out, _ = smoke_report
    for path in PATHS:
        executed = nbformat.read(out / "notebooks" / path.name, as_version=4)
        assert all(cell.execution_count for cell in code(executed) if cell.source.strip())
        payloads = [
            o.data[MIME] for c in code(executed) for o in c.outputs if MIME in o.get("data", {})
        ]
        assert sum(p["kind"] in ("figure", "table") for p in payloads) >= 2


def test_pictures_tell_what_data_they_are_of(smoke_report):
    """Drawn faces and digits are called synthetic wherever they are seen."""
    out, _ = smoke_report
    pictures = 0
    for path in PATHS:
        executed = nbformat.read(out / "notebooks" / path.name, as_version=4)
        for output in (o for c in code(executed) for o in c.outputs):
            if "image/png" in output.get("data", {}):
                assert "Data: " in output.data[MIME]["caption"], path.name
                pictures += 1
    assert pictures > 20


def test_executed_notebooks_hold_no_litter(smoke_report):
    out, _ = smoke_report
    for path in (out / "notebooks").glob("*.ipynb"):
        text = path.read_text()
        assert "it/s]" not in text
        assert "widget-view" not in text


def runs_of(out, problem):
    (path,) = (out / "notebooks").glob(f"{problem}-*.ipynb")
    cells = code(nbformat.read(path, as_version=4))
    payloads = [o.data[MIME] for c in cells for o in c.outputs if MIME in o.get("data", {})]
    return {name for p in payloads for name in p.get("runs", [])}


def test_notebooks_share_their_run(smoke_report):
    out, runs = smoke_report
    first = {n for p in ("1-1", "1-2", "1-3", "1-4", "1-5") for n in runs_of(out, p)}
    second = {n for p in ("2-1", "2-2") for n in runs_of(out, p)}
    (judge,) = first & second  # whose features both chapters' images are measured by
    (vae,), (gan,) = first - {judge}, second - {judge}
    for name, kind in ((vae, "vae"), (gan, "dcgan"), (judge, "features")):
        assert json.loads((runs / name / "provenance.json").read_text())["kind"] == kind
    assert runs_of(out, "2-4") == {vae, gan, judge}
