"""The report as seen by a reader, another program and a later run."""

import base64
import json
import re

import pandas as pd
import pypdf
import pytest
from bs4 import BeautifulSoup
from conftest import PROBLEMS, digit_folder

from dlcvlib.config import paths
from dlcvlib.evaluation.significance import mean_text
from dlcvlib.report import execute, uptodate

# --- the smoke report -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(smoke_report):
    return BeautifulSoup((smoke_report[0] / "report.html").read_text(), "html.parser")


@pytest.fixture(scope="module")
def pdf(smoke_report):
    return pypdf.PdfReader(smoke_report[0] / "report.pdf")


def test_every_figure_is_numbered_and_described(page):
    figures = page.select(".figure figure")
    captions = [figure.figcaption.get_text(" ", strip=True) for figure in figures]
    labels = [re.match(r"Figure [1-4]-\d\.\d+\.", caption) for caption in captions]
    assert all(labels)
    assert len({label[0] for label in labels}) == len(figures) >= 25
    for figure in figures:
        assert len(figure.img["alt"]) > 30
        assert figure.img["src"].startswith("data:image/")
        assert len(base64.b64decode(figure.img["src"].split(",")[1])) > 1000


def test_every_problem_has_numbered_tables(page):
    captions = [table.caption.get_text(" ", strip=True) for table in page.select(".table table")]
    found = {match[1] for c in captions if (match := re.match(r"Table ([1-4]-\d)\.\d+\.", c))}
    assert found == set(PROBLEMS)


def test_a_deviation_is_shown_with_its_mean(page):
    texts = [each.get_text() for each in page.select("td, caption, figcaption, p")]
    signs = [text for text in texts if "±" in text]
    assert signs
    assert not [text for text in signs if " ±" in text or "± " in text]


def test_the_page_loads_nothing(page):
    assert page.find("script") is None
    assert page.find("link") is None
    assert page.find("iframe") is None
    for tag in page.find_all(src=True):
        assert tag["src"].startswith("data:")
    policy = page.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "url(" not in page.style.string
    assert page.html["lang"] == "en"


def test_references_from_notebook_to_notebook_are_links(page):
    referred = set()
    for path in uptodate.NOTEBOOKS.glob("*.ipynb"):
        referred |= set(re.findall(r"@((?:fig|tbl)-[\w-]*\w)", path.read_text()))
    assert len(referred) > 5
    assert all(page.find("a", href=f"#{label}") for label in referred)


def test_links_within_the_page_have_targets(page):
    targets = {tag["id"] for tag in page.find_all(id=True)}
    links = [a["href"] for a in page.find_all("a", href=True)]
    assert all(link.startswith("#") and link[1:] in targets for link in links)
    assert page.find("a", string="Figure 1-2.1")["href"] == "#fig-1-2-curves"


def test_ids_are_unique(page):
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids))


def test_formulas_are_mathml_and_code_is_folded(page):
    assert page.find("math")
    assert page.select("details.code > pre, details.code > div pre")
    assert all("open" not in details.attrs for details in page.select("details.code"))
    # Cells that show nothing between them share a fold.
    assert not page.select("details.code + details.code")
    assert any(len(details.select("pre")) > 1 for details in page.select("details.code"))


def test_first_page_has_abstract_main_table_and_provenance(page):
    cover = page.select_one(".cover").get_text(" ", strip=True)
    paragraphs = page.select(".abstract p")
    titles = [paragraph.strong.get_text() for paragraph in paragraphs]
    assert titles == ["The variational autoencoder.", "The GAN.", "DANN.", "PixelDA."]
    assert "profile smoke" in cover
    assert "torch " in cover


def test_pdf(pdf):
    text = "\n".join(sheet.extract_text() for sheet in pdf.pages)
    assert len(pdf.pages) >= 8
    for problem in PROBLEMS:
        assert f"Figure {problem}.1" in text
        assert f"Table {problem}.1" in text
    titles = [item.title for item in flat(pdf.outline)]
    assert any(title.startswith("1-4") for title in titles)
    assert "default-src" not in text


def flat(outline):
    for item in outline:
        if isinstance(item, list):
            yield from flat(item)
        else:
            yield item


def test_results(smoke_report):
    results = json.loads((smoke_report[0] / "results.json").read_text())
    assert results["version"] == 3
    assert len(results["1-3"]["mse_sum"]) == 10
    assert 0 < results["1-3"]["test_mse_per_pixel_mean"] < 1
    assert results["1-3"]["ten_errors"]["ours"] == pytest.approx(results["1-3"]["mse_sum"])
    assert results["1-3"]["ten_errors"]["original"][0] == 92.3118
    assert {"kid_prior", "kid_fitted", "nearest_ratio"} <= results["1-4"].keys()
    assert 0 <= results["1-5"]["auc"] <= 1
    assert len(results["1-6"]["sweep_runs"]["seed"]) == 8
    assert len(results["2-3"]["variant_runs"]["seed"]) == 2 * 12
    verdicts = ("supported", "contradicted", "inconclusive")
    assert set(results["2-3"]["verdicts"]["verdict"]) <= set(verdicts)
    assert results["2-4"]["kid"].keys() == {"VAE", "VAE, fitted", "GAN"}
    provenance = results["provenance"]
    assert provenance["profile"] == "smoke"
    assert {"torch", "python"} <= provenance["versions"].keys()
    assert set(provenance["notebooks"]) == set(PROBLEMS)
    spent = provenance["seconds_by_work"]
    rest = "evaluation, figures, starting"
    assert {"data", "training: vae", "t-SNE", rest, "writing PDF"} <= set(spent)
    assert all(seconds > 0 for seconds in spent.values())


def test_documented_keys_are_there(smoke_report):
    results = json.loads((smoke_report[0] / "results.json").read_text())
    readme = (paths.ROOT / "README.md").read_text()
    named = 0
    for problem, names in re.findall(r"^\| `(\d-\d)` (.*?) \|", readme, re.MULTILINE):
        for name in re.findall(r'`"?([\w>-]+)"?`', names):
            assert name in results[problem]
            named += 1
    assert named > 50


def test_every_methods_accuracies_are_its_own(smoke_report):
    """Chapters 3 and 4 by pair, compared with the tables that combine them."""
    results = json.loads((smoke_report[0] / "results.json").read_text())
    closed, standings = (
        pd.DataFrame(results[problem][name])
        for problem, name in (("3-3", "closed_runs"), ("4-1", "standings"))
    )
    for pair, rows in closed.groupby("pair", sort=False):
        for problem, column in (("3-1", "low"), ("3-2", "method"), ("3-3", "high")):
            assert results[problem][pair]["accuracy"] == rows[column].tolist()
        theirs = standings[standings["pair"] == pair].set_index("method")["accuracy"]
        for key, method in (("pixelda", "PixelDA"), ("adamatch", "AdaMatch")):
            assert theirs[method] == mean_text(results["4-1"][pair][key]["accuracy"], 3)


def test_figures_are_written_beside_the_report(smoke_report):
    folder = smoke_report[0] / "figures"
    pictures = [p for p in folder.iterdir() if p.suffix in (".png", ".svg")]
    assert len(pictures) >= 15
    for picture in pictures:
        assert len(pd.read_csv(picture.with_suffix(".csv"))) > 0
    assert (folder / "1-2.1-curves.svg").is_file()
    assert (folder / "1-3.1-reconstructions.png").is_file()


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
    small.write(p1_1=["print('started')", "raise ValueError('<b>*bold* `x` #panic()')", "'never'"])
    small.write(p1_2=[GOOD])
    assert not small.make()
    error = capsys.readouterr().err
    assert "1-1 failed" in error
    assert "ValueError" in error
    kept = small.out / "notebooks" / "1-1-test.failed.ipynb"
    assert str(kept) in error
    assert "ValueError" in kept.read_text()
    page = BeautifulSoup((small.out / "report.html").read_text(), "html.parser")
    cover, notice = page.select(".failed")
    assert cover.select_one("a")["href"] == "#nb-1-1"
    assert "ValueError: <b>*bold* `x` #panic()" in notice.text
    assert page.find(id="tbl-1-2-numbers")
    text = "\n".join(p.extract_text() for p in pypdf.PdfReader(small.out / "report.pdf").pages)
    assert "This notebook failed" in text
    results = json.loads((small.out / "results.json").read_text())
    assert "ValueError" in results["1-1"]["failed"]
    assert results["1-2"]["b"] == 2
    small.write(p1_1=[GOOD])
    assert small.make()
    assert not kept.exists()
    assert "failed" not in json.loads((small.out / "results.json").read_text())["1-1"]


def test_figures_of_earlier_reports_are_removed(small):
    (small.out / "figures").mkdir(parents=True)
    (small.out / "figures" / "old.png").write_bytes(b"x")
    (small.out / execute.MARK).touch()
    small.write(p1_1=[GOOD])
    assert small.make()
    assert not list((small.out / "figures").iterdir())
    assert not list(small.out.glob(".tmp*"))
