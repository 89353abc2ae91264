"""The notebooks' form, and that they ran: question, small cells, exhibits and sentences on them."""

import ast
import json
import re
import statistics
from collections import Counter

import nbformat
import pandas as pd
import pytest

from dlcvlib.config.paths import NOTEBOOKS
from dlcvlib.evaluation import gan_health
from dlcvlib.report import exhibits

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
BOOKS = {path.name[:3]: nbformat.read(path, as_version=4) for path in PATHS}


@pytest.fixture(params=BOOKS)
def notebook(request):
    return BOOKS[request.param]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_is_one_per_problem_with_several_exhibits():
    counts = Counter(exhibit.problem for exhibit in exhibits.check(BOOKS).values())
    assert Counter(problem[0] for problem in BOOKS) == {"1": 6, "2": 4, "3": 6, "4": 4}
    assert all(counts[problem] >= 2 for problem in BOOKS)


def test_form(notebook):
    """A question, the parameters (those of `quick`: see test_params.py), and no outputs yet."""
    assert re.match(r"# .*(\?|test here\.)\*\*", notebook.cells[0].source, re.DOTALL)
    cell, begin, *_ = code(notebook)
    assert cell.metadata.tags == ["parameters"]
    assert re.match(r"params = begin\(\w+Params, In\)", begin.source.splitlines()[-1])
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert notebook.metadata.kernelspec.name == "python3"


def test_cells_are_small_and_without_plumbing(notebook):
    bodies = [exhibits.code(cell.source) for cell in code(notebook)[1:]]  # 0: the parameters
    lengths = [len([line for line in body.splitlines() if line]) for body in bodies]
    assert statistics.median(lengths) <= 6
    assert max(lengths) <= 30
    for body in bodies:
        assert not re.search(r"sys\.path|\.backward\(\)", body)
        for node in ast.walk(ast.parse(body)):
            assert not isinstance(node, ast.ClassDef | ast.While)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 20


def test_no_number_is_typed_into_prose(notebook):
    """Results are computed: prose contains no decimal fraction except the original's settings."""
    prose = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert set(re.findall(r"(?<![\w.-])\d+\.\d+", prose)) <= {"0.1", "0.5"}


# --- analysis in a notebook ---------------------------------------------------------------------


SIGNS = [
    (["discriminator overpowers"], [0.9] * 15 + [0.995] * 5, [0.2]),
    ([], [0.9, 1.0] * 10, [0.2]),  # now and then is not for long
    (["discriminator at chance"], [0.5] * 10, [0.2]),
    (["few real faces covered"], [0.9] * 4, [0.5, 0.05]),
    ([], [0.9] * 4, [float("nan")]),
]


@pytest.mark.parametrize(("signs", "accuracies", "recalls"), SIGNS)
def test_signs_of_failure(signs, accuracies, recalls):
    history = pd.DataFrame({"d_accuracy": accuracies})
    history["step"] = 10.0 * (history.index + 1)
    history["validation_recall"] = pd.Series(recalls, history.index[-len(recalls) :])
    (cell,) = (cell for cell in BOOKS["2-1"].cells if cell.id == "2-1-31")
    exec(cell.source, namespace := {"gan_health": gan_health, "pd": pd})
    frame = namespace["signs_of"](history)
    assert frame.loc[frame["seen"], "sign"].tolist() == signs


# --- executed -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(smoke_report):
    """Problem -> what its cells show in the smoke report, as exhibits.MIME bundles."""
    folder = smoke_report[0] / "notebooks"
    executed = {path.name[:3]: nbformat.read(folder / path.name, as_version=4) for path in PATHS}
    return {
        problem: [output.get("data", output) for cell in code(book) for output in cell.outputs]
        for problem, book in executed.items()
    }


def test_notebooks_name_the_data_of_their_pictures(outputs):
    """Synthetic faces and digits are labelled as such wherever they are shown."""
    for shown in outputs.values():
        if any("image/png" in data and "image/svg+xml" not in data for data in shown):
            assert any("Data: " in data.get("text/markdown", "") for data in shown)


def test_executed_notebooks_have_no_stray_output(outputs):
    streams = [data for shown in outputs.values() for data in shown if "name" in data]
    assert streams == []  # no progress, no warning, nothing that a library has logged
    assert "widget-view" not in json.dumps(outputs)


def test_notebooks_share_their_runs(outputs):
    """One VAE, one GAN, and the features that the images of both chapters are measured by."""
    problems = ("1-1", "1-2", "1-3", "1-4", "1-5", "2-1", "2-2", "2-4")
    payloads = [data.get(exhibits.MIME, {}) for p in problems for data in outputs[p]]
    runs = {name for payload in payloads for name in payload.get("runs", [])}
    assert sorted(name.split("-")[0] for name in runs) == ["dcgan", "features", "vae"]
