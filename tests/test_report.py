"""The report as seen by a reader, another program and a later run."""

import json
import re

import pandas as pd
import pypdf
import pytest
from bs4 import BeautifulSoup
from conftest import PROBLEMS, ROOT, digit_folder, page_fill

from dlcvlib.config.schema import load
from dlcvlib.evaluation.adaptation import ALL
from dlcvlib.evaluation.significance import mean_text
from dlcvlib.report import cli, render, uptodate
from dlcvlib.utils import storage

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


def test_links_lead_to_what_there_is_once(page, smoke_report):
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = {a["href"] for a in page.select("a[href]:not([download], #refs a)")}
    beside = {link for link in links if link.startswith("notebooks/")}
    assert links - beside <= {f"#{name}" for name in ids}
    assert len(beside) == len(PROBLEMS)
    assert all((smoke_report[0] / link).is_file() for link in beside)
    assert len([link for link in links if link.startswith(("#fig-", "#tbl-"))]) > 5


def test_formulas_are_mathml_and_code_is_folded(page):
    assert page.find("math")
    # Cells that show nothing between them share a fold.
    assert not page.select("details.code[open], details.code + details.code")
    assert page.select("details.code")


def test_no_heading_is_without_text(page):
    for section in page.select("main section"):
        shown = section.select_one(":is(p, table, section, .csl-entry):not(details *, .runs *)")
        assert shown, section.get_text(" ", strip=True)[:80]


def test_first_page_shows_all_chapters_and_folds_how_it_was_made(page):
    (abstract,) = page.select(".abstract p")
    text = abstract.get_text(" ", strip=True)
    assert len(text.split()) <= 150
    assert len(re.findall(r"\d[\d.]*", text)) == 2 * 4  # two a chapter
    columns = page.select(".cover .summary .panels")
    assert [len(column.select("figure > img[alt]")) for column in columns] == [3, 2]
    assert "profile smoke" in page.select_one(".cover details").get_text(" ", strip=True)


def test_main_table(page, results, params):
    accuracies, faces = page.select(".cover .table table")
    lines = accuracies.select("tbody tr")
    rows = [[" ".join(cell.get_text().split()) for cell in line("td")] for line in lines]
    assert [row[0] for row in rows] == list(ALL)
    assert rows[2][2::3] == ["0.548", "0.406", "0.622"]  # the original's DANN
    assert rows[2][3::3] == ["0.610", "0.516", "0.735"]  # the best of other solutions
    ours = [results["3-2"][pair]["accuracy"] for pair in params("dann").pairs]
    assert rows[2][1::3] == [mean_text(values, 3) for values in ours]
    error = f"{results['1-3']['test_mse_per_pixel_mean']:.4f}"
    assert [td.get_text() for td in faces.select("td")][1:3] == [error, "0.0074"]


def test_each_exhibit_leads_to_the_runs_of_its_problem(page):
    """And each run names its settings, those of a method's first run all."""
    opened = page.select(".source [popovertarget]")
    assert {button["popovertarget"] for button in opened} == {f"runs-{n}" for n in PROBLEMS}
    rows = [row.get_text() for row in page.select("#runs-1-6 tbody tr")]
    first = next(row for row in rows if "vae-" in row)
    assert all(each in first for each in ("kld_weight: ", "seed: 0"))


def test_pdf(smoke_report):
    pdf = pypdf.PdfReader(smoke_report[0] / "report.pdf")
    texts = [sheet.extract_text() for sheet in pdf.pages]
    text = "\n".join(texts)
    for problem in PROBLEMS:
        assert all(f"{kind} {problem}.1" in text for kind in ("Figure", "Table"))
    assert "Chapter 1" in pdf.outline[0].title
    assert pdf.outline[1][0].title.startswith("1-1")
    assert all(each in texts[0] for each in ("at a glance", "deviation over the seeds"))
    assert "Contents" in texts[1]
    about = pdf.trailer["/Root"]["/Metadata"].get_data()
    assert all(standard in about for standard in (b"pdfuaid", b"pdfaid"))
    assert min(page_fill(smoke_report[0] / "report.pdf").values()) > 2 / 3
    first = next(n for n, page in enumerate(texts) if "Parameters." in page)
    assert len(pdf.pages) - first <= 2


def test_results(results):
    assert results["version"] == 3
    ten = results["1-3"]["ten_errors"]["mean"]
    assert ten == pytest.approx([sum(results["1-3"]["mse_sum"]) / 10, 91.29515], rel=1e-4)
    assert len(results["2-3"]["claims"]) == 7 + 10
    provenance, work = results["provenance"], ["data", "training: vae", "t-SNE", "writing PDF"]
    assert {"torch", "python"} <= provenance["versions"].keys()
    assert set(provenance["notebooks"]) == set(provenance["own_runs"]) == set(PROBLEMS)
    assert provenance["own_runs"]["1-3"]["runs"] == 0 < provenance["own_runs"]["1-6"]["runs"]
    assert provenance["changed"]["vae"] == ["runs_dir"]
    assert all(provenance["seconds_by_work"][each] > 0 for each in work)


def test_the_same_notebooks_give_the_same_bytes(smoke_report, tmp_path):
    notebooks = smoke_report[0] / "notebooks"
    executed = {name: (next(notebooks.glob(f"{name}-*.ipynb")), 1.0) for name in ("1-3", "3-4")}
    params = {chapter: load("smoke", chapter) for chapter in ("vae", "dann")}
    about = {"profile": "smoke", "command": "report", "started": 0.0, "spent": {}}
    folders = [storage.make_dir(tmp_path / name) for name in "ab"]
    for folder in folders:
        render.render(executed, {}, params, about, uptodate.declared(), folder, pending={})
    files = [{p.relative_to(f): p for p in f.rglob("*.*") if p.is_file()} for f in folders]
    assert files[0].keys() == files[1].keys()
    different = [str(n) for n in files[0] if files[0][n].read_bytes() != files[1][n].read_bytes()]
    assert different in ([], ["results.json"])
    texts = [json.loads((folder / "results.json").read_text()) for folder in folders]
    for text in texts:
        del text["provenance"]["seconds_by_work"]
    assert texts[0] == texts[1]


def test_documented_keys_are_there(results):
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(\d-\d)` (.*?) \|", readme, re.MULTILINE)
    named = [(n, name) for n, names in rows for name in re.findall(r'`"?([\w>-]+)"?`', names)]
    assert len(named) > 50
    assert [(n, name) for n, name in named if name not in results[n]] == []


def test_every_methods_accuracies_are_its_own(results):
    """Chapters 3 and 4 by pair, compared with the tables that combine them."""
    closed = pd.DataFrame(results["3-3"]["closed_runs"])
    standings = pd.DataFrame(results["4-1"]["standings"]).set_index("method")
    for pair, rows in closed.groupby("pair", sort=False):
        for problem, column in (("3-1", "low"), ("3-2", "method"), ("3-3", "high")):
            assert results[problem][pair]["accuracy"] == rows[column].tolist()
        for key, method in (("pixelda", "PixelDA"), ("adamatch", "AdaMatch")):
            accuracies = results["4-1"][pair][key]["accuracy"]
            assert standings.loc[method, pair] == mean_text(accuracies, 3)


def test_figures_are_written_beside_the_report(smoke_report):
    folder = smoke_report[0] / "figures"
    pictures = [p for p in folder.iterdir() if p.suffix in (".png", ".svg")]
    figures = [label for label in uptodate.declared() if label.startswith("fig-")]
    assert len(pictures) == len(figures) + 5  # the panels of the first page
    for picture in pictures:
        assert len(pd.read_csv(picture.with_suffix(".csv"))) > 0


def test_a_folder_with_two_domains_of_minimum_size(tmp_path, capsys):
    """As in the homework's shared data: the only pair that can be run is run."""
    root = digit_folder(tmp_path / "mine", ["usps", "mnistm"], train=60, test=20)
    arguments = ["report", "--profile=smoke", "--only=3-6,4-4", f"--data=folder:{root}"]
    arguments += ["--set=dann.validation_size=20", "--set=pixelda.validation_size=20"]
    arguments += [f"--out={tmp_path / 'out'}", f"--runs-dir={tmp_path / 'runs'}"]
    assert cli.main(arguments) == 0, capsys.readouterr()
    assert {"3-6", "4-4"} <= json.loads((tmp_path / "out" / "results.json").read_text()).keys()


# --- small notebooks of our own ---------------------------------------------------------------

GOOD = ["from dlcvlib.report import notebook\nnotebook.show_exhibits()\nnotebook.record(b=2)"]
GOOD += ["#| label: tbl-t\n#| tbl-cap: A.\nimport pandas as pd\npd.DataFrame({'a': [1.5]})"]


def test_first_page_names_authors_and_has_no_holes(small):
    """Of what has not been run there is nothing; of one problem its panel and its sentence."""
    small.write(p1_1=["1"])
    assert small.make()
    page = BeautifulSoup((small.out / "report.html").read_text(), "html.parser")
    assert not page.select(".abstract, .summary, .cover .table, .authors, meta[name=author]")
    panel = "#| tags: [summary]\n#| fig-subcap: Few.\n#| fig-alt: A line.\n"
    panel += "from matplotlib import pyplot as plt\nplt.plot([1, 2])\nplt.gca()"
    small.write(p1_1=[GOOD[0], "#| tags: [abstract]\nnotebook.say('Found {}.', 1)", panel])
    names = ["Ada *Lovelace*", 'Alan "<b>" Turing']
    assert small.make(about={"authors": names})
    page = BeautifulSoup((small.out / "report.html").read_text(), "html.parser")
    assert [tag["alt"] for tag in page.select(".summary figure > img")] == ["A line."]
    assert (page.get_text().count("Found 1."), page.select(".cover .table")) == (1, [])
    assert page.select_one(".authors").get_text().strip() == ", ".join(names)
    assert [tag["content"] for tag in page.select("meta[name=author]")] == names
    assert "Lovelace" in pypdf.PdfReader(small.out / "report.pdf").metadata.author


def test_a_failing_cell_leaves_a_notice_and_the_others_in_the_report(small):
    message = "<b>*bold* `x` #panic() ```"
    small.write(p1_1=["print('started')", f"raise ValueError('{message}')"], p1_2=GOOD)
    assert not small.make()
    page = BeautifulSoup((small.out / "report.html").read_text(), "html.parser")
    cover, notice = page.select(".failed")
    assert cover.select_one("a")["href"] == "#nb-1-1"
    assert f"ValueError: {message}" in notice.pre.text
    assert page.find(id="tbl-t")
    text = "\n".join(p.extract_text() for p in pypdf.PdfReader(small.out / "report.pdf").pages)
    assert all(each in text for each in ("This notebook failed", "#panic()"))
    assert "ValueError" in small.results()["1-1"]["failed"]
    assert small.results()["1-2"] == {"b": 2, "t": {"a": [1.5]}}
    # What an earlier report had and this one has not is removed.
    (small.out / "figures" / "old.png").touch()
    small.write(p1_1=["1"])
    assert small.make()
    assert "failed" not in small.results()["1-1"]
    left = ("notebooks/*.failed.ipynb", "figures/*.png", ".tmp*")
    assert not [path for pattern in left for path in small.out.glob(pattern)]
