"""The notebooks' form, and that they ran: question, small cells, exhibits and sentences on them."""

import ast
import json
import math
import re
import statistics
from collections import Counter
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA

from dlcvlib.config.paths import NOTEBOOKS
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


def test_committed_without_outputs(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert notebook.metadata.kernelspec.name == "python3"


def test_opens_with_a_question(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .*(\?|test here\.)\*\*", first.source, re.DOTALL)


def test_begins_with_its_parameters(notebook):
    """Which are those of `quick`: see test_params.py."""
    cell, begin, *_ = code(notebook)
    assert cell.metadata.tags == ["parameters"]
    assert re.match(r"params = begin\(\w+Params, In\)", begin.source.splitlines()[-1])


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


# --- degenerate data ----------------------------------------------------------------------------


def run_cells(problem, names, **namespace):
    """The namespace after some cells of a notebook, by their ids."""
    for cell in BOOKS[problem].cells:
        if cell.id in names:
            exec(cell.source, namespace)
    return namespace


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("contrast", [[0, 0, 0, 0], [1, 2, 4, 3]])
def test_a_rank_correlation_with_a_constant_is_undefined(contrast):
    errors = [5.0, 6.0, 7.0, 8.0]
    measures = pd.DataFrame({"contrast": contrast, "mse_sum": errors})
    found = run_cells("1-3", ["1-3-21"], measures=measures, say=str.format)["correlation"]
    assert found == pytest.approx(math.nan if not any(contrast) else 0.8, nan_ok=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("images", ["one colour", "one picture", "two pictures"])
def test_images_without_variance_have_no_probe_and_axes_without_length(images):
    picture = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    count = 32  # a power of two: means are exact, so that scikit-learn would divide 0 by 0
    drawn = {
        "one colour": torch.zeros_like(picture).repeat(count, 1, 1, 1),
        "one picture": picture.repeat(count, 1, 1, 1),
        "two pictures": torch.cat([picture, 255 - picture]).repeat(count // 2, 1, 1, 1),
    }[images]
    varied = images == "two pictures"
    split = SimpleNamespace(images=drawn, attributes={"Male": torch.arange(count) % 2})
    latents = drawn.flatten(1)[:, :8].float()
    names = ["1-5-03", "1-5-r01", "1-5-r02", "1-5-14", "1-5-15", "1-5-26"]
    found = run_cells(
        "1-5",
        names,
        faces=SimpleNamespace(train=split, test=split),
        tests=drawn,
        means=latents,
        latents={"train": latents, "test": latents},
    )
    (row,) = found["probes"].to_dict("records")
    expected = 1.0 if varied else math.nan
    assert [row["latent"], row["pixels"]] == pytest.approx([expected] * 2, nan_ok=True)
    assert (found["deviations"][0] > 0) == varied
    if varied:  # scikit-learn's own
        pca = PCA(1, svd_solver="full").fit(latents.numpy())
        axis = np.sqrt(pca.explained_variance_) * pca.components_[0]
        assert found["axes"][0].numpy() == pytest.approx(axis, rel=1e-4, abs=1e-4)


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
        if any("image/png" in data for data in shown):
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
