"""A user's JupyterLab, driven by headless Chromium: run all cells, use the widgets, check them."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, poll


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    """A running JupyterLab: (its folder, its address)."""
    folder = tmp_path_factory.mktemp("lab")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.password="]
    command += [f"--ServerApp.root_dir={folder}", "--ServerApp.disable_check_xsrf=True"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url="]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    folders = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "RUNTIME")}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | folders
    with (folder / "lab.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        # The last that it writes as soon as it can be reached.
        written = folder / "lab.log"
        poll(lambda: list(folder.glob("RUNTIME/jpserver-*.html")), process, written.read_text)
        (record,) = folder.glob("RUNTIME/jpserver-*.json")
        yield folder, json.loads(record.read_text())["url"]
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def lab(server, browser, smoke_report, request):
    """A page that has run all cells of a notebook of the smoke report again, without an error.

    The parameter is (problem, steps of its training).
    """
    problem, steps = request.param
    folder, address = server
    (source,) = (smoke_report[0] / "notebooks").glob(f"{problem}-*.ipynb")
    notebook, count = re.subn(r'"steps = \d+', f'"steps = {steps}', source.read_text())
    assert count == 1
    (folder / source.name).write_text(notebook)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(60_000)
    # Else the page may ask which kernel, in a dialog, before the server has listed any.
    session = {"path": source.name, "name": source.name, "kernel": {"name": "python3"}}
    started = page.request.post(f"{address}api/sessions", data=session | {"type": "notebook"})
    # In a workspace of its own: another would open the notebooks of earlier tests again.
    page.goto(f"{address}lab/workspaces/{problem}/tree/{source.name}")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady")
    assert page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    assert page.locator(".jp-RenderedText[data-mime-type*='stderr'] >> text=Error").count() == 0
    assert page.get_by_text("Traceback").count() == 0
    yield page
    page.request.delete(f"{address}api/sessions/{started.json()['id']}")
    page.close()


def wait_for_another(picture, before):
    """Wait until a picture widget shows something else.

    The conditions are asked again and again: while pictures still follow each other, each takes
    its forerunner away, decoded or not.
    """
    picture.page.wait_for_function(
        "([node, old]) => node.src !== old && node.complete && node.naturalWidth > 0",
        arg=[picture.element_handle(), before],
    )


FIRST, SECOND, THIRD = (f".widget-slider .noUi-handle >> nth={n}" for n in range(3))
RESET = "button:has-text('Reset')"


@pytest.mark.parametrize(
    ("lab", "uses"),
    [
        (("1-5", 12), [(THIRD, "PageUp", 1), (RESET, "Enter", 1)]),
        # After smoke's 12 steps all pictures are alike.
        (("2-2", 100), [(SECOND, "PageUp", 0), (THIRD, "PageUp", 0), (FIRST, "PageDown", 0)]),
        (("4-4", 6), [(SECOND, "PageUp", 1), (FIRST, "PageUp", 0)]),
    ],
    indirect=["lab"],
)
def test_run_all_then_use_each_control(lab, uses):
    """A slider or a button, a key, and the number of the picture that then changes."""
    for control, key, number in uses:
        picture = lab.locator(".widget-image").nth(number)
        before = picture.get_attribute("src")
        lab.locator(control).press(key)
        wait_for_another(picture, before)


@pytest.mark.parametrize("lab", [("3-4", 8)], indirect=True)
def test_run_all_then_point_at_the_map(lab):
    points = lab.locator(".js-plotly-plot .scatterlayer .point")
    points.first.wait_for(state="attached")
    lab.locator(".js-plotly-plot").scroll_into_view_if_needed()
    picture = lab.locator(".widget-image").first
    before = picture.get_attribute("src")
    for number in range(60):  # one point may not do: the page still moves as its last outputs come
        points.nth(number).hover(force=True)
        lab.wait_for_timeout(1000)
        if picture.get_attribute("src") != before:
            break
    wait_for_another(picture, before)
    assert lab.get_by_text("classified as").count() == 1
