"""The report as seen by a reader, another program and a later run."""

import json
import re

import pandas as pd
import pypdf
import pytest
from bs4 import BeautifulSoup
from conftest import PROBLEMS, ROOT, digit_folder

from dlcvlib.evaluation.significance import mean_text
from dlcvlib.report import uptodate

# --- the smoke report -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(smoke_report):
    return BeautifulSoup((smoke_report[0] / "report.html").read_text(), "html.parser")


@pytest.fixture(scope="module")
def results(smoke_report):
    return json.loads((smoke_report[0] / "results.json").read_text())


def test_every_exhibit_is_numbered_and_described(page):
    for label, exhibit in uptodate.declared().items():
        shown = page.find(id=label)
        caption = shown.select_one("figcaption, caption").get_text(" ", strip=True)
        assert caption.startswith(f"{exhibit.number}.")
        if label.startswith("fig-"):
            assert len(shown.img["alt"]) > 30
            assert len(shown.img["src"]) > 1500


def test_a_deviation_is_shown_with_its_mean(page):
    text = "\n".join(each.get_text() for each in page.select("td, caption, figcaption, p"))
    assert "±" in text
    assert not re.search(" ±|± ", text)


def test_the_page_loads_nothing(page):
    assert not page.select("script, link, iframe")
    assert all(tag["src"].startswith("data:") for tag in page.find_all(src=True))
    policy = page.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "url(" not in page.style.string
    assert page.html["lang"] == "en"


def test_links_lead_to_what_the_page_has_once(page):
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = {a["href"] for a in page.find_all("a", href=True)}
    assert links <= {f"#{name}" for name in ids}
    notebooks = "".join(path.read_text() for path in uptodate.NOTEBOOKS.glob("*.ipynb"))
    referred = set(re.findall(r"@((?:fig|tbl)-[\w-]*\w)", notebooks))
    assert len(referred) > 5
    assert {f"#{label}" for label in referred} <= links


def test_formulas_are_mathml_and_code_is_folded(page):
    assert page.find("math")
    folds = page.select("details.code")
    assert all("open" not in details.attrs for details in folds)
    # Cells that show nothing between them share a fold.
    assert not page.select("details.code + details.code")
    assert any(len(details.select("pre")) > 1 for details in folds)


def test_first_page_has_abstract_main_table_and_provenance(page):
    cover = page.select_one(".cover").get_text(" ", strip=True)
    titles = [paragraph.strong.get_text() for paragraph in page.select(".abstract p")]
    assert titles == ["The variational autoencoder.", "The GAN.", "DANN.", "PixelDA."]
    assert "profile smoke" in cover
    assert "torch " in cover


def test_pdf(smoke_report):
    pdf = pypdf.PdfReader(smoke_report[0] / "report.pdf")
    text = "\n".join(sheet.extract_text() for sheet in pdf.pages)
    for problem in PROBLEMS:
        assert f"Figure {problem}.1" in text
        assert f"Table {problem}.1" in text
    assert "Chapter 1" in pdf.outline[0].title
    assert pdf.outline[1][0].title.startswith("1-1")


def test_results(results):
    assert results["version"] == 3
    assert len(results["1-3"]["mse_sum"]) == 10
    ten = results["1-3"]["ten_errors"]["mean"]
    assert ten == pytest.approx([sum(results["1-3"]["mse_sum"]) / 10, 91.29515], rel=1e-4)
    assert len(results["2-3"]["claims"]) == 4 + 8
    assert results["2-4"]["kid"].keys() == {"VAE", "VAE, fitted", "GAN"}


def test_provenance(results):
    provenance = results["provenance"]
    assert {"torch", "python"} <= provenance["versions"].keys()
    assert set(provenance["notebooks"]) == set(PROBLEMS)
    spent = provenance["seconds_by_work"]
    rest = "evaluation, figures, starting"
    assert {"data", "training: vae", "t-SNE", rest, "writing PDF"} <= set(spent)
    assert all(seconds > 0 for seconds in spent.values())


def test_documented_keys_are_there(results):
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(\d-\d)` (.*?) \|", readme, re.MULTILINE)
    named = [(n, name) for n, names in rows for name in re.findall(r'`"?([\w>-]+)"?`', names)]
    assert len(named) > 50
    assert [(n, name) for n, name in named if name not in results[n]] == []


def test_every_methods_accuracies_are_its_own(results):
    """Chapters 3 and 4 by pair, compared with the tables that combine them."""
    closed = pd.DataFrame(results["3-3"]["closed_runs"])
    standings = pd.DataFrame(results["4-1"]["standings"]).set_index(["pair", "method"])["accuracy"]
    for pair, rows in closed.groupby("pair", sort=False):
        for problem, column in (("3-1", "low"), ("3-2", "method"), ("3-3", "high")):
            assert results[problem][pair]["accuracy"] == rows[column].tolist()
        for key, method in (("pixelda", "PixelDA"), ("adamatch", "AdaMatch")):
            assert standings[pair, method] == mean_text(results["4-1"][pair][key]["accuracy"], 3)


def test_figures_are_written_beside_the_report(smoke_report):
    folder = smoke_report[0] / "figures"
    pictures = [p for p in folder.iterdir() if p.suffix in (".png", ".svg")]
    figures = [label for label in uptodate.declared() if label.startswith("fig-")]
    assert len(pictures) == len(figures)
    for picture in pictures:
        assert len(pd.read_csv(picture.with_suffix(".csv"))) > 0


def test_a_folder_with_two_domains_of_minimum_size(tmp_path, capsys):
    """As in the homework's shared data: the only pair that can be run is run."""
    from dlcvlib.report.cli import main

    root = digit_folder(tmp_path / "mine", ["usps", "mnistm"], train=60, test=20)
    arguments = ["report", "--profile", "smoke", "--only", "3-6,4-4", "--data", f"folder:{root}"]
    arguments += ["--set", "dann.validation_size=20", "--set", "pixelda.validation_size=20"]
    arguments += ["--out", str(tmp_path / "out"), "--runs-dir", str(tmp_path / "runs")]
    assert main(arguments) == 0, capsys.readouterr()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"3-6", "4-4"} <= results.keys()


# --- small notebooks of our own ---------------------------------------------------------------

GOOD = [
    "from dlcvlib.report import notebook\nnotebook.show_exhibits()",
    """\
#| label: tbl-N-M-numbers
#| tbl-cap: A caption.
import pandas as pd
notebook.record(b=2)
pd.DataFrame({"a": [1.5]})""",
]


def test_a_failing_cell_leaves_a_notice_and_the_others_in_the_report(small, capsys):
    message = "<b>*bold* `x` #panic() ```"
    small.write(p1_1=["print('started')", f"raise ValueError('{message}')", "'never'"])
    small.write(p1_2=[GOOD])
    assert not small.make()
    error = capsys.readouterr().err
    assert f"1-1 failed: the cell \"raise ValueError('{message}')\"" in error
    kept = small.out / "notebooks" / "1-1-test.failed.ipynb"
    assert str(kept) in error
    page = BeautifulSoup((small.out / "report.html").read_text(), "html.parser")
    cover, notice = page.select(".failed")
    assert cover.select_one("a")["href"] == "#nb-1-1"
    assert f"ValueError: {message}" in notice.pre.text
    assert page.find(id="tbl-1-2-numbers")
    text = "\n".join(p.extract_text() for p in pypdf.PdfReader(small.out / "report.pdf").pages)
    assert "This notebook failed" in text
    assert "#panic()" in text
    assert "ValueError" in small.results()["1-1"]["failed"]
    assert small.results()["1-2"]["b"] == 2
    small.write(p1_1=[GOOD])
    # What an earlier report had and this one has not is removed.
    (small.out / "figures" / "old.png").write_bytes(b"x")
    assert small.make()
    assert not kept.exists()
    assert "failed" not in small.results()["1-1"]
    assert not list((small.out / "figures").iterdir())
    assert not list(small.out.glob(".tmp*"))
