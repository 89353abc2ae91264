"""A person's JupyterLab, driven by headless Chromium: run all, move a slider, look again."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from dlcvlib import params
from dlcvlib.params import NOTEBOOKS, ROOT

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture
def lab(tmp_path):
    """A running JupyterLab on a folder with notebook 1-5 in profile smoke: its address."""
    (source,) = NOTEBOOKS.glob("1-5-*.ipynb")
    notebook = nbformat.read(source, as_version=4)
    values = params.load("smoke", "vae", {"runs_dir": str(tmp_path / "runs")}).model_dump()
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    nbformat.write(notebook, tmp_path / "1-5.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}", "--ip=127.0.0.1"]
    command += [
        "--ServerApp.password=",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
    }
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "lab.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/1-5.ipynb"
    finally:
        server.terminate()
        server.wait(20)


def test_run_all_then_move_a_slider(lab):
    from playwright.sync_api import TimeoutError, sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        # Run All before the kernel is connected does nothing at all; then again is harmless.
        page.wait_for_selector(
            '.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000
        )
        started = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|1)\]:"))
        for _ in range(10):
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()
            with contextlib.suppress(TimeoutError):
                started.first.wait_for(state="attached", timeout=5_000)
                break
        book = nbformat.read(next(NOTEBOOKS.glob("1-5-*.ipynb")), as_version=4)
        count = sum(cell.cell_type == "code" for cell in book.cells)
        done = page.locator(".jp-InputPrompt", has_text=re.compile(rf"\[{count}\]:"))
        done.first.wait_for(state="attached", timeout=180_000)
        page.wait_for_selector(".widget-image", timeout=30_000, state="attached")
        assert page.locator(".jp-RenderedText[data-mime-type*='stderr'] >> text=Error").count() == 0
        assert page.get_by_text("Traceback").count() == 0

        decoded = page.locator(".widget-image").nth(1)
        decoded.scroll_into_view_if_needed()
        before = decoded.get_attribute("src")
        slider = page.locator(".widget-slider .noUi-handle").nth(2)
        slider.focus()
        for _ in range(6):
            slider.press("ArrowRight")
        page.wait_for_function(
            "([node, old]) => node.src !== old",
            arg=[decoded.element_handle(), before],
            timeout=20_000,
        )
        assert decoded.evaluate("node => node.complete && node.naturalWidth > 0")
        page.screenshot(path=os.environ.get("DLCV_SCREENSHOT") or os.devnull, type="png")
        browser.close()
