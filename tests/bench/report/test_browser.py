"""The HTML page in a real browser: offline, on a desk and on a phone, by light and by dark, by mouse and by keyboard.

Without a browser these tests are skipped; ROOBENCH_REQUIRE_BROWSER in the environment makes that a failure.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bench.figures.published import Result, Source
from bench.report import canvas, html
from bench.report.model import Image, Section
from bench.report.sections import sections
from tests import html_runs
from tests.browsing import CONTRAST, SIZES, axe_source, faults, launched

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the browser's own process, once it is closed


@pytest.fixture(scope="module")
def browser():
    yield from launched()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    canvas.save({"plot": Figure(figsize=(6.48, 3.31))}, folder)
    plots = [Image(title, folder / "plot.png", "") for title in ("Decode speedup", "CTAR")]
    run, turns = html_runs.run(), html_runs.turns()
    long = "kangaroo:" + ",".join(f"knob{i}=value{i}" for i in range(12))
    run.methods[long] = run.methods[html_runs.KANGAROO]
    for turn in [one for one in turns if one.method == html_runs.LOSSY]:
        turns.append(html_runs.copied(turn, long))
    result = Result("kangaroo", "Kangaroo", "Vicuna-7B", "A100", "", {"qa": 1.4}, {"qa": 1.9}, {})
    published = [Source("A Paper", "X: A Paper", "https://example.org", "Spec-Bench", {}, [result], [], [])]
    summary = html_runs.summary(run, turns)
    found = sections(run, summary, plots, turns=turns, token_texts=html_runs.TOKEN_TEXTS, sources=published)
    found.append(Section("More", ["- **Few questions**: see [Divergences](#divergences).\n- " + "x" * 300]))
    path = folder / "report.html"
    path.write_text(html.page(summary, found), encoding="utf-8")
    return path


@pytest.fixture
def open_page(browser, report):
    """A page at a size and colour scheme, which must neither complain nor ask for anything but itself."""
    opened, trouble = [], []

    def open_at(size: str = "desk", scheme: str = "light", **more):
        context = browser.new_context(viewport={"width": SIZES[size], "height": 900}, color_scheme=scheme, **more)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url) if request.url not in allowed(request) else None)
        page.goto(report.as_uri())
        opened.append(context)
        return page

    def allowed(request) -> list[str]:
        return [report.as_uri(), *([request.url] if request.url.startswith("data:") else [])]

    yield open_at
    for context in opened:
        context.close()
    assert trouble == []


def background(page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_page_loads_offline_and_its_script_runs(open_page):
    page = open_page(offline=True)
    assert page.locator("h1").inner_text() == "tiny-model"
    assert page.locator("#theme").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_never_scrolls_sideways(open_page, size, scheme):
    page = open_page(size, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0


def test_what_is_wider_than_a_phone_scrolls_in_its_own_box(open_page):
    page = open_page("phone")
    box = page.locator(".scroll").first
    assert box.evaluate("(one) => one.scrollWidth > one.clientWidth")
    assert box.get_attribute("tabindex") == "0"
    box.evaluate("(one) => (one.scrollLeft = 1000)")
    assert box.locator("td").last.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(open_page, scheme):
    page = open_page("desk", scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    worst, where = page.evaluate(CONTRAST)[0]
    assert worst >= 4.5, where


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(26, 26, 26)")])
def test_every_figure_has_a_size_and_fits_the_theme(open_page, scheme, ground):
    page = open_page("desk", scheme)
    images = page.locator("figure.plot img")
    assert images.count() == 2
    for image in images.all():
        assert image.evaluate("(one) => [one.complete, one.naturalWidth, one.naturalHeight]") == [True, 972, 496]
        shown = (
            "(one) => [getComputedStyle(one.parentElement).backgroundColor, getComputedStyle(one).filter !== 'none']"
        )
        assert image.evaluate(shown) == [ground, scheme == "dark"]
    page.locator("#theme").click()
    other = images.first.evaluate("(one) => getComputedStyle(one).filter !== 'none'")
    assert other == (scheme == "light")


HINT = "(one) => getComputedStyle(one.parentElement, '::before').content"


def test_a_phone_is_told_what_scrolls_sideways_and_a_desk_is_not(open_page):
    phone, desk = open_page("phone"), open_page("desk")
    boxes = [(box.evaluate(HINT), box.get_attribute("tabindex")) for box in phone.locator(".scroll:visible").all()]
    assert {("scroll sideways" in hint, tabindex) for hint, tabindex in boxes} <= {(True, "0"), (False, None)}
    assert "scroll sideways" in boxes[0][0]
    assert desk.locator(".scroll").first.evaluate(HINT) == "none"


def test_hovering_a_token_shows_the_rejected_draft(open_page):
    page = open_page()
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator(".panel:visible .t.beat").first.hover()
    assert "“ sea” (confidence 0.31)" in tip.inner_text()
    page.mouse.move(0, 0)
    assert tip.is_hidden()


def test_the_rejected_drafts_are_reached_by_keyboard(open_page):
    page = open_page()
    tokens = page.locator(".panel:visible").first.locator(".t.beat")
    tokens.first.focus()
    tip = page.locator("#tip")
    assert "“ sea”" in tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert "“ but”" in tip.inner_text()
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    assert tokens.nth(1).evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"
    page.keyboard.press("Escape")
    assert tip.is_hidden()


@pytest.mark.parametrize("size", SIZES)
def test_the_story_of_a_token_stays_on_the_screen(open_page, size):
    page = open_page(size)
    for token in page.locator(".panel:visible").first.locator(".t.beat").all():
        token.scroll_into_view_if_needed()
        token.hover()
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= SIZES[size]


def test_tabs_choose_the_method(open_page):
    page = open_page()
    answer = page.locator(".answer").first
    tabs = answer.get_by_role("tab")
    assert answer.get_by_role("tabpanel").count() == 1
    tabs.nth(1).click()
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    assert answer.locator(".panel:visible").get_attribute("aria-labelledby") == tabs.nth(1).get_attribute("id")
    page.keyboard.press("ArrowLeft")
    assert tabs.first.get_attribute("aria-selected") == "true"
    assert answer.locator(".panel:visible").get_attribute("aria-labelledby") == tabs.first.get_attribute("id")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_can_be_changed_and_is_forgotten_with_the_page(open_page, scheme):
    page = open_page("desk", scheme)
    other = open_page("desk", "dark" if scheme == "light" else "light")
    system = background(page)
    assert system != background(other)
    page.locator("#theme").click()
    assert background(page) == background(other)
    page.locator("#theme").click()
    assert background(page) == system
    page.locator("#theme").click()
    page.reload()
    assert background(page) == system


def test_without_its_script_everything_is_there_to_read(open_page):
    page = open_page(java_script_enabled=False)
    panels = page.locator(".answer").first.locator(".panel")
    assert panels.count() == 3
    assert all(panel.is_visible() for panel in panels.all())
    assert "“ sea”" in page.locator(".tokens .t.beat").first.get_attribute("title")


def test_print_shows_what_is_folded_on_white(open_page):
    page = open_page("desk", "dark")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 1000})  # A4 without its margins
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert background(page) == "rgb(255, 255, 255)"
    assert page.locator("details table").first.is_visible()
    for box in page.locator(".scroll").all():
        assert box.evaluate("(one) => one.scrollWidth <= one.clientWidth"), box.get_attribute("aria-label")
    assert page.locator("nav").is_hidden()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(open_page, scheme):
    page = open_page("desk", scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert faults(page, axe_source()) == []
