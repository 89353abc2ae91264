"""How long a report still takes, what a log says meanwhile, and the index."""

import re
import time

import pytest
from bs4 import BeautifulSoup

from dlcvlib.report import cli, execute, progress
from dlcvlib.report.progress import SHARES, START, Progress, expected
from dlcvlib.utils.errors import UserError

A, B, C = "1-1", "2-1", "4-9"


def took(training):
    """Seconds of a notebook, by those of its training."""
    return START + training


def test_notebooks_are_expected_to_take_their_share_of_what_others_took():
    assert expected([A, C], {}) == {}
    seconds = {A: took(SHARES[A] / 2), C: took(50)}
    assert expected([A, C], {B: took(SHARES[B] / 2)}) == pytest.approx(seconds)


def test_rows_say_what_runs_how_far_and_how_long(tmp_path, monkeypatch):
    """Two at once of four, one of which is reused and another longer than all others together."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    now = Progress("notebooks", total=4, left=["1-1", "1-2", "1-3"], jobs=2)
    now.end("1-4", took(SHARES["1-4"]))  # so that 1-1 takes 319 s, 1-2 19 s and 1-3 50 s
    assert now.rows(tmp_path) == ["1 of 4 notebooks, about 05:19 left"]
    now.running |= {"1-1": 990.0, "1-2": 900.0}
    for problem, process, text in (("1-1", "7", "vae 5%, 2it/s, 01:45 left"), ("1-2", "8", "")):
        (tmp_path / problem).mkdir()
        (tmp_path / problem / process).write_text(text)
    running = ["1-1 vae 5%, 2it/s, 01:45 left", "1-2"]
    assert now.rows(tmp_path) == ["1 of 4 notebooks, about 05:09 left", *running]
    (tmp_path / "1-1" / "7").write_text("")
    now.end("1-2", 0.0)
    assert now.rows(tmp_path) == ["2 of 4 notebooks, about 05:09 left", "1-1"]
    now = Progress("runs", total=1, left=["vae-0"], jobs=2, running={"vae-0": 999.0})
    assert now.rows(tmp_path) == ["0 of 1 runs, time left not known yet", "vae-0"]


# --- without a terminal -----------------------------------------------------------------------


@pytest.mark.usefixtures("unrendered")
def test_a_log_has_lines_in_place_of_bars(small, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    small.write(p1_1=["from tqdm import tqdm\nfor _ in tqdm(range(9)): pass"])
    assert small.make()
    output, error = capsys.readouterr()
    assert "[00:00] 0 of 1 notebooks, time left not known yet; 1-1\n" in output
    line = (
        r"(\[\d\d:\d\d\] (\d of 1 notebooks, |writing the report).*|1-1 .*|writing the report|/.*)"
    )
    assert all(re.fullmatch(line, text) for text in output.splitlines())
    assert error == ""
    assert small.make()
    assert "1-1 unchanged" in capsys.readouterr().out


def test_so_has_the_log_of_a_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    words = ["train", "vae", "--profile=smoke", f"--runs-dir={tmp_path}"]
    assert cli.main([*words, "--set=vae.steps=200"]) == 0
    output, error = capsys.readouterr()
    said = (
        r"preparing data or evaluating",
        r"preparing faces, .*MB \d+%, .* left",
        r"vae \d+%, .* left",
    )
    for line in said:
        assert re.search(rf"^\[\d\d:\d\d\] {line}$", output, re.MULTILINE), line
    assert "\r" not in output + error
    assert error == ""


# --- the index --------------------------------------------------------------------------------


def links(folder):
    page = BeautifulSoup((folder / "index.html").read_text(), "html.parser")
    return page, [link["href"] for link in page.find_all("a")]


def test_the_index_leads_to_all_that_there_is(smoke_report):
    folder = smoke_report[0]
    page, found = links(folder)
    report = BeautifulSoup((folder / "report.html").read_text(), "html.parser")
    for name, _, place in (link.partition("#") for link in found):
        assert (folder / name).is_file(), name
        assert not place or report.find(id=place)
    kinds = "report.html report.pdf results.json notebooks/*.ipynb figures/*.csv"
    files = [path for kind in kinds.split() for path in folder.glob(kind)]
    assert {str(path.relative_to(folder)) for path in files} <= {*found}
    assert not page.select(".state")


def test_page_and_index_on_the_way_show_what_is_pending(small, monkeypatch):
    monkeypatch.setattr(execute, "PAGE_SHARE", 1)
    keep = """
import shutil, time
from pathlib import Path
out = Path("OUT")
while not all(w in (out / "index.html").read_text() for w in (">failed", "report.html")):
    time.sleep(0.1)
shutil.copytree(out, out / "kept")
""".replace("OUT", str(small.out))
    small.write(p1_1=["print('good')"], p1_2=["1 / 0"], p1_3=[keep], p1_4=["1"])
    assert not small.make(cell_timeout=120)  # which ends what would wait for ever
    page, found = links(small.out / "kept")
    assert all((small.out / "kept" / link.partition("#")[0]).is_file() for link in found)
    assert {"report.html", "notebooks/1-1-test.ipynb"} <= {*found}
    assert [state.text for state in page.select(".state")] == ["failed", "pending", "pending"]
    report = BeautifulSoup((small.out / "kept" / "report.html").read_text(), "html.parser")
    titles = {entry.text for entry in report.select("nav a")}
    assert {"p1_1", "p1_2", "p1_3 (pending)", "p1_4 (pending)"} <= titles
    assert "has not been run yet" in report.find(id="nb-1-3").text
    assert "2 notebooks are pending" in report.select_one(".cover").text
    whole = BeautifulSoup((small.out / "report.html").read_text(), "html.parser")
    assert not whole.select(".pending")


def test_a_page_that_cannot_be_written_on_the_way_stops_nothing(small, monkeypatch, capsys):
    def full(*_, pending):
        if pending:
            (small.out / "tried").touch()
            raise UserError("no space left")

    monkeypatch.setattr(execute, "run_in_subprocess", full)
    wait = (
        f"import os, time\nwhile not os.path.exists({str(small.out / 'tried')!r}): time.sleep(0.1)"
    )
    small.write(p1_1=["1"], p1_2=[wait])
    assert small.make(cell_timeout=120)
    assert "no page yet: no space left" in capsys.readouterr().out
