"""The HTML in a browser without a network: every control, layout, accessibility, policy, size."""

import io
import re
from contextlib import contextmanager
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from bleach import html5lib_shim
from matplotlib import pyplot as plt
from nbformat.v4 import new_markdown_cell as text
from PIL import Image
from playwright.sync_api import expect
from test_render import FRAME, Made, figure, shown

from dlcvlib.plots import domains, images, style
from dlcvlib.report import interactive, notebook
from dlcvlib.report.exhibits import MIME
from dlcvlib.report.tables import to_markdown

LONG = "## {}\n\n" + "A line of its own.\n\n" * 40
PROSE = "See @fig-map, @tbl-t and @kingma2014, where a needle is.\n\n"
PROSE += "|".join(["| name of a row"] + ["a long text"] * 4) + "|\n" + "|-" * 5 + "|\n\n"
PROSE += "$$" + "a + " * 90 + "a$$\n\n" + LONG.format("Long")  # wider than any window
RECORD = {"seconds": 1.0, "device": "cpu", "precision": "fp32", "images_per_second": None}
RUNS = [RECORD | {"run": f"vae-{n}", "settings": {"steps": 9, "seed": n}} for n in range(2)]


def a_map(pair, count):
    """A `FeatureMap` whose first point is alone, far from all others."""
    generator = np.random.default_rng(0)
    points = pd.DataFrame(generator.normal(size=(count, 2)), columns=["x", "y"])
    points.loc[0, ["x", "y"]] = [-20.0, 20.0]
    label = np.arange(count) % 10
    points = points.assign(source=np.arange(count) < count // 2, label=label, prediction=label // 2)
    pixels = torch.from_numpy(generator.integers(0, 255, (count, 3, 32, 32), dtype=np.uint8))
    pixels[0] = torch.tensor([255, 0, 0])[:, None, None]  # red
    return SimpleNamespace(pair=pair, method="DANN", images=pixels, points=points)


def drawn(name, axes):
    """The executed cell that shows a figure."""
    found = axes.get_figure()
    more = {"csv": found.values.to_csv(index=False), "interactive": interactive.of_figure(found)}
    cell = figure(name, "fig-far", **notebook._picture(found, name))
    cell.outputs[0].data[MIME] |= notebook.plain(more) | {"runs": ["vae-0"]}
    plt.close(found)
    return cell


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page with a map of points, rows of images under a slider, bars, a table and code."""
    with mpl.rc_context():
        style.use()
        points = drawn("map", domains.feature_maps([[a_map("usps->mnistm", 40)]], "class"))
        rows = [torch.full((4, 3, 8, 8), value) for value in (0.0, 1.0)]
        rows = images.image_rows(rows, ["a", "b"])
        rows.figure.slider = rows, 4
        rows = drawn("rows", rows)
        runs = {"method": ["DANN", "PixelDA"], "pair": "a->b", "seed": 0, "accuracy": [1.0, 0.5]}
        bars = drawn("bars", domains.method_bars(pd.DataFrame(runs), {"DANN": {"a->b": 0.4}}))
    payload = {"values": {"t": {"kid": [1 / 3]}}, "kind": "table", "runs": ["vae-0", "vae-1"]}
    bundle = {"text/markdown": to_markdown(FRAME), MIME: payload}
    table = shown("#| label: tbl-t\n#| tbl-cap: T.\nframe", bundle)
    folder = tmp_path_factory.mktemp("page")
    cells = [text(PROSE), points, rows, bars, table]
    made = Made(folder, p1_1=cells, p1_2=[text(LONG.format("Other"))], runs=RUNS)
    (folder / "report.html").write_text(made.html)
    return made


@contextmanager
def opened(browser, path):
    """A page in a browser without a network; nothing is asked for, nothing complained of."""
    context = browser.new_context(viewport={"width": 1000, "height": 800}, offline=True)
    page, complaints, asked = context.new_page(), [], set()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.add(request.url[:200]))
    page.goto(path.as_uri())
    yield page
    assert complaints == []
    others = {url for url in asked if not url.startswith(("data:", "blob:"))}
    assert {url.partition("#")[0] for url in others} == {path.as_uri()}
    context.close()


@pytest.fixture
def page(made, browser):
    with opened(browser, made.folder / "report.html") as page:
        yield page


def colours(locator):
    """What an element looks like: (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"))


def test_contents_mark_the_section_that_is_read(page):
    current = page.locator("nav [aria-current]")
    for name in ("Long", "Other"):
        page.get_by_role("heading", name=name).evaluate("e => e.scrollIntoView()")
        expect(current).to_have_text(name)
        expect(current).to_be_visible()


def test_search_leads_to_what_it_finds(page):
    page.keyboard.press("/")
    page.keyboard.type("NEEDLE this")
    hits = page.locator("#hits a")
    expect(hits).to_have_count(0)
    page.locator("#search").fill("needle")
    expect(hits).to_have_count(1)
    assert "One" in hits.inner_text()
    assert page.evaluate("CSS.highlights.get('found').size") == 1
    hits.click()
    expect(page.locator("main").get_by_text("where a needle is")).to_be_in_viewport()
    page.locator("#search").fill("")
    expect(page.locator("#hits")).to_be_hidden()


WORK = "i, em, a"


@pytest.mark.parametrize(
    ("name", "held"), [("fig-map", "img"), ("tbl-t", "td"), ("ref-kingma2014", WORK)]
)
def test_references_show_what_they_lead_to(page, name, held):
    """Under the pointer, which may go there, and to the keyboard; Escape hides it."""
    tip, link = page.locator("#tip"), page.locator(f"main p a[href='#{name}']").first
    link.hover()
    expect(tip.locator(held).first).to_be_visible()
    tip.hover()
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.mouse.move(0, 0)
    page.keyboard.press("Tab")
    link.focus()
    expect(tip).to_be_visible()
    link.blur()
    expect(tip).to_be_hidden()


def test_a_click_enlarges_a_picture_by_a_whole_number(page):
    page.locator("#fig-rows figure img").click()
    large = page.locator("#large img")
    expect(large).to_be_visible()
    width, natural = large.evaluate("e => [e.clientWidth * devicePixelRatio, e.naturalWidth]")
    assert width % natural == 0
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()


def test_the_menu_of_an_exhibit_has_its_values_picture_notebook_code_and_runs(page, made):
    saved = {"tbl-t": {"values": f"kid\n{1 / 3}\n"}}
    saved["fig-map"] = {name: made.files[f"1-1.1-map.{name}"].decode() for name in ("csv", "svg")}
    for label, files in saved.items():
        page.locator(f"#{label} .more").click()
        menu = page.locator(f"#of-{label}")
        for name, content in files.items():
            with page.expect_download() as download:
                menu.get_by_text(name).click()
            assert download.value.path().read_text() == content
    assert menu.get_by_text("notebook 1-1").get_attribute("href") == "notebooks/1-1.ipynb"
    menu.get_by_text("vae-0").click()
    assert page.locator("#runs-1-1 td").all_inner_texts()[1::4] == ["steps: 9; seed: 0", "seed: 1"]
    page.keyboard.press("Escape")
    menu.get_by_text("code").click()
    expect(page.locator("details.code pre").first).to_be_in_viewport()
    menu = page.locator("#of-fig-rows")
    expect(menu).to_be_hidden()
    page.set_viewport_size({"width": 1920, "height": 800})
    expect(menu).to_be_visible()  # in the margin


def test_code_is_shown_by_one_switch_and_copied(page):
    # Other programs may use the machine's own clipboard.
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    fold = page.locator("details.code")
    expect(fold).to_have_count(1)
    expect(fold).to_be_hidden()
    page.locator("#code").check()
    fold.locator("summary").click()
    page.locator(".copy").last.click()
    expect(page.locator(".copy").last).to_have_text("Copied")
    assert page.evaluate("copied") == "frame"
    page.reload()
    expect(page.locator("#code")).to_be_checked()


def test_the_colours_that_are_chosen_are_remembered(page):
    page.emulate_media(color_scheme="dark")
    assert colours(page.locator("main")).mean() < 128
    page.locator("#theme").select_option("light")
    page.reload()
    assert colours(page.locator("main")).mean() > 128


def test_a_point_shows_its_image_to_pointer_keyboard_and_finger(page):
    """The first is alone at the upper left."""
    tip, picture = page.locator("#tip"), page.locator("#fig-map figure img")
    at = picture.evaluate("e => e.points.at.reduce((a, b) => (b[0] < a[0] ? b : a)).slice(0, 2)")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    place = [box["x"] + at[0] * box["width"] / 1e4, box["y"] + at[1] * box["height"] / 1e4]
    dot = page.screenshot(clip={"x": place[0] - 2, "y": place[1] - 2, "width": 4, "height": 4})
    assert np.asarray(Image.open(io.BytesIO(dot)).convert("L")).min() < 200
    page.mouse.move(*place)
    expect(tip).to_have_text("USPS: 0 classified as 0")
    red = colours(tip.locator("canvas")).mean((0, 1))
    assert red[0] > 200 > 60 > max(red[1:])
    page.mouse.move(place[0] + 40, place[1])
    expect(tip).to_be_hidden()
    picture.press("ArrowLeft")
    expect(tip).to_contain_text("classified as")
    picture.blur()
    page.mouse.click(*place)
    expect(tip).to_have_text("USPS: 0 classified as 0")
    expect(page.locator("#large")).to_be_hidden()


def test_a_slider_leads_from_one_row_of_images_to_the_other(page):
    """Of black ones over white ones."""
    canvas, slider = page.locator("#fig-rows canvas"), page.locator("#fig-rows input")
    shares = []
    for value in ("0", "50", "100"):
        slider.fill(value)
        shares.append((colours(canvas) < 64).mean())
    gaps = 3 * images.GAP / (4 * 8 + 3 * images.GAP)
    assert shares == pytest.approx([0, (1 - gaps) / 2, 1 - gaps], abs=0.05)


def test_a_method_is_hidden_by_its_box_and_shown_again(page):
    """DANN's colour is blue, PixelDA's green."""
    picture, box = page.locator("#fig-bars figure img"), page.get_by_label("DANN")

    def shares():
        picture.evaluate("e => e.decode()")
        _, green, blue = np.moveaxis(colours(picture).astype(int), 2, 0)
        return [(blue > green + 25).mean(), (green > blue + 25).mean()]

    before = shares()
    assert min(before) > 0.05
    box.uncheck()
    assert shares() == pytest.approx([0, before[1]], abs=0.01)
    box.check()
    assert shares() == before


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_no_width_makes_the_page_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    used = page.locator("#fig-map").bounding_box()
    assert used["x"] + used["width"] > 0.8 * width


def test_a_wide_window_has_the_page_in_its_middle(page):
    page.set_viewport_size({"width": 2560, "height": 900})
    contents, text = (page.locator(part).bounding_box() for part in ("nav", "main"))
    right = 2560 - text["x"] - text["width"]
    assert text["x"] - contents["width"] == pytest.approx(right, abs=1)
    assert right > 100


def test_rows_of_a_wide_table_keep_their_names_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 900})
    table = page.locator(".scroll", has_text="name of a row")
    table.evaluate("e => e.scrollTo(1000, 0)")
    assert table.evaluate("e => e.scrollLeft") > 0
    expect(table.get_by_text("name of a row")).to_be_in_viewport(ratio=1)
    assert table.get_by_text("a long text").first.bounding_box()["height"] < 40  # on one line


def test_paper_has_the_text_alone(page):
    page.emulate_media(media="print")
    expect(page.locator("#fig-map figure")).to_be_visible()
    for left_out in ("nav", "#of-fig-map", "#fig-map .more", "#fig-rows input"):
        expect(page.locator(left_out).first).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_accessibility(page, scheme, width):
    """axe-core's rules, with code, hits and a menu open."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.locator("#code").check()
    page.locator("#search").fill("line")
    found = Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] != "minor"] == []


def test_the_whole_report_is_valid_asks_for_nothing_and_runs_no_other_script(browser, smoke_report):
    path = smoke_report[0] / "report.html"
    html5lib_shim.HTMLParser(strict=True).parse(html := path.read_text())
    policy = re.search('Security-Policy" content="(.*?)"', html)[1].split("; ")
    assert [each for each in policy if "unsafe" in each] == ["style-src-attr 'unsafe-inline'"]
    with opened(browser, path) as page:
        expect(page.locator("#nb-4-4")).to_be_attached()
    page = browser.new_page()
    page.set_content(html.replace("</main>", "<script>window.ran = 1</script></main>"))
    expect(page.locator(".copy")).not_to_have_count(0)  # its own script has run
    assert page.evaluate("window.ran") is None


def test_maps_of_many_points_are_small(tmp_path):
    with mpl.rc_context():
        style.use()
        maps = [[a_map(f"{name}->b", 1000) for name in "xyz"]] * 2
        cell = drawn("map", domains.feature_maps(maps, "class"))
    noise = 1_000 * 32 * 32  # the images of this test, of which many share a page
    assert len(Made(tmp_path, p1_1=[cell]).html) < 1_000_000 + noise
