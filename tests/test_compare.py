"""Two reports side by side."""

import json

import pytest
from bs4 import BeautifulSoup
from PIL import Image

from dlcvlib.report import cli, compare, render

SEEDS = [0, 1, 2, 3, 4]
NOISE = [-0.01, 0.0, 0.01, 0.02, -0.02]


def report(folder, shift=0.0, **more):
    """A report's folder, with the accuracies of two methods over five seeds."""
    folder.mkdir(exist_ok=True)
    runs = {
        "method": ["DANN"] * 5 + ["AdaBN"] * 5,
        "seed": SEEDS * 2,
        "accuracy": [0.6 + shift + each for each in NOISE] + [0.5 + each for each in NOISE],
        "seconds": [1.0 + shift] * 10,
    }
    claims = [{"claim": "c<d", "verdict": "supported"}]
    found = {"runs": runs, "best": 0.6 + shift, "claims": claims}
    found = found | more if "failed" not in more else more
    results = {"version": render.RESULTS_VERSION, "provenance": {"profile": "smoke"}}
    (folder / "results.json").write_text(json.dumps(results | {"3-2": found}))
    return folder


def judged(*folders):
    return compare.judged(*(compare._read(each / "results.json")[1] for each in folders))


@pytest.mark.parametrize(
    ("shift", "verdicts"),
    [
        (0.0, ["the same", "the same"]),
        (0.005, ["agrees", "the same"]),
        (0.2, ["differs", "the same"]),
    ],
)
def test_a_difference_is_judged_by_the_spread_over_the_seeds(tmp_path, shift, verdicts):
    a, b = report(tmp_path / "a"), report(tmp_path / "b", shift)
    table = judged(a, b)
    assert table["measure"].tolist() == ["runs: accuracy of DANN", "runs: accuracy of AdaBN"]
    assert table["verdict"].tolist() == verdicts
    assert table["difference"].tolist() == pytest.approx([shift, 0], abs=1e-9)
    assert cli.main(["compare", str(a), str(b), "--out", str(tmp_path / "page.html")]) == (
        "differs" in verdicts
    )


@pytest.mark.parametrize(("measures", "verdict"), [(1, "differs"), (100, "agrees")])
def test_holm_counts_all_that_is_tested(tmp_path, measures, verdict):
    def runs(shift):  # each with a p of .02
        own = {f"m{n}": [each + shift for each in NOISE] for n in range(measures)}
        return {"seed": SEEDS, **own}

    a, b = report(tmp_path / "a", runs=runs(0)), report(tmp_path / "b", runs=runs(0.03))
    assert set(judged(a, b)["verdict"]) == {verdict}


@pytest.mark.parametrize(("seeds", "agree"), [([0], True), ([0, 1], False)])
def test_a_value_without_a_spread_is_not_judged(tmp_path, seeds, agree):
    folders = [
        report(tmp_path / name, runs={"seed": seeds, "accuracy": [value] * len(seeds)})
        for name, value in (("a", 0.5), ("b", 0.6))
    ]
    assert compare.compare(*folders, tmp_path / "page.html") == agree


def test_the_page_marks_what_is_not_the_same(tmp_path):
    picture = render.FIGURES + "/3-2.1-bars.png"
    a, b = report(tmp_path / "a"), report(tmp_path / "b", 0.2, extra={"x": [1]})
    for folder in (a, b):
        (folder / render.FIGURES).mkdir()
        Image.new("RGB", (9, 9)).save(folder / picture)
    assert not compare.compare(a, b, tmp_path / "page.html")
    page = BeautifulSoup((tmp_path / "page.html").read_text(), "html.parser")
    assert "They do not agree." in page.text
    assert "c<d" in [cell.text for cell in page.select("td")]
    assert len(page.select("img[src^='data:image/']")) == 2
    marked = {mark.text for mark in page.select("mark")}
    assert {"0.600", "0.800", "0.580", "0.780"} < marked
    assert "DANN" not in marked


def test_a_notebook_that_failed_in_one_report(tmp_path):
    a, b = report(tmp_path / "a"), report(tmp_path / "b", failed="ValueError: no")
    assert not compare.compare(a, b, tmp_path / "page.html")
    assert compare.compare(b, b, tmp_path / "page.html")
    assert "ValueError: no" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("text", [None, "", "[1]", "{}", '{"version": 1}'])
def test_what_is_no_report_is_named(tmp_path, capsys, text):
    bad = tmp_path / "bad.json"
    if text is not None:
        bad.write_text(text)
    out = tmp_path / "page.html"
    assert cli.main(["compare", str(report(tmp_path / "a")), str(bad), "--out", str(out)]) == 2
    assert str(bad) in capsys.readouterr().err
    assert not out.exists()
