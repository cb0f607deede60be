"""A site in a real browser: offline, on a desk and on a phone, by light and by dark, by mouse, keyboard and without its
script. Without a browser these tests are skipped; ROOBENCH_REQUIRE_BROWSER in the environment makes that a failure.
"""

from __future__ import annotations

import pytest

from tests.browsing import CONTRAST, SIZES, axe_source, faults, launched
from tests.site_runs import NEW

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the browser's own process, once it is closed
PAGES = ("index.html", "methods/kangaroo.html", "methods/vanilla.html")
UNFOLD = "document.querySelectorAll('details').forEach((one) => (one.open = true))"


@pytest.fixture(scope="module")
def browser():
    yield from launched()


@pytest.fixture
def open_page(browser, site):
    """A page of the site, which must neither complain nor ask for anything outside the site."""
    opened, trouble = [], []

    def heard(request) -> None:
        if not request.url.startswith((site.as_uri(), "data:")):
            trouble.append(request.url)

    def open_at(name: str = "index.html", size: str = "desk", scheme: str = "light", **more):
        context = browser.new_context(viewport={"width": SIZES[size], "height": 900}, color_scheme=scheme, **more)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", heard)
        page.goto((site / name).as_uri())
        opened.append(context)
        return page

    yield open_at
    for context in opened:
        context.close()
    assert trouble == []


def column(page, place: int) -> list[str]:
    """The first lines of the visible cells of a column of the leaderboard, from 0."""
    cells = page.locator("#board tbody tr:visible").all()
    return [row.locator("th, td").nth(place).inner_text().split("\n")[0].strip() for row in cells]


def head(page, title: str):
    return page.locator("#board thead").get_by_role("button", name=title)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_page_never_scrolls_sideways(open_page, name, size, scheme):
    page = open_page(name, size, scheme, offline=True)
    page.evaluate(UNFOLD)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(open_page, name, scheme):
    page = open_page(name, "desk", scheme)
    page.evaluate(UNFOLD)
    worst, where = page.evaluate(CONTRAST)[0]
    assert worst >= 4.5, where


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_serious_fault(open_page, name, size, scheme):
    axe = axe_source()
    page = open_page(name, size, scheme)
    page.evaluate(UNFOLD)
    assert faults(page, axe) == []


def test_axe_would_find_a_fault(open_page):
    axe = axe_source()
    page = open_page()
    page.evaluate("document.querySelector('#filters label').replaceWith(document.querySelector('#filters input'))")
    page.evaluate("document.querySelector('#filters input').removeAttribute('placeholder')")
    assert [fault.partition(":")[0] for fault in faults(page, axe)] == ["label"]


def test_a_heading_sorts_and_says_so(open_page):
    page = open_page()
    before = column(page, 1)
    head(page, "speedup").click()
    values = column(page, 1)
    assert values != before
    assert [float(value[:-1]) for value in values] == sorted((float(v[:-1]) for v in values), reverse=True)
    cell = page.locator("#board th[aria-sort]")
    assert (cell.inner_text(), cell.get_attribute("aria-sort")) == ("speedup", "descending")
    head(page, "speedup").click()
    assert column(page, 1) == values[::-1]
    assert cell.get_attribute("aria-sort") == "ascending"
    head(page, "method").click()
    names = column(page, 0)
    assert names == sorted(names)
    assert (cell.count(), cell.inner_text()) == (1, "method")


def test_what_is_not_known_is_last_in_both_directions(open_page):
    page = open_page()
    for _ in range(2):
        head(page, "CR").click()
        assert column(page, 4)[-1] == "-"
        assert column(page, 4).count("-") == 1


def test_sorting_and_filtering_by_keyboard(open_page):
    page = open_page()
    head(page, "tokens/s").focus()
    page.keyboard.press("Enter")
    values = [float(value) for value in column(page, 5)]
    assert values == sorted(values, reverse=True)
    page.get_by_label("Method", exact=True).focus()
    page.keyboard.type("medusa")
    assert column(page, 0) == ["medusa"]
    assert page.get_by_role("status").inner_text() == "1 of 7 rows"
    page.get_by_role("button", name="Show all").focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.getElementById('count').textContent === '7 of 7 rows'")
    assert len(column(page, 0)) == 7


def test_filters_go_together(open_page):
    page = open_page()
    page.get_by_label("Number format").select_option("bfloat16")
    assert column(page, 0) == ["kangaroo", "medusa", "pld", "hf-generate"]
    page.get_by_label("Kind of method").select_option("peer")
    assert column(page, 0) == ["hf-generate"]
    page.get_by_label("Kind of method").select_option("")
    page.get_by_label("identical output only").check()
    assert column(page, 0) == ["hf-generate"]
    page.get_by_label("Number format").select_option("")
    assert column(page, 0) == ["kangaroo", "kangaroo", "kangaroo", "hf-generate"]
    page.get_by_label("Method", exact=True).fill("nothing")
    assert column(page, 0) == []
    assert page.get_by_role("status").inner_text() == "0 of 7 rows"


def test_without_its_script_everything_is_there_to_read(open_page):
    page = open_page(java_script_enabled=False)
    assert len(column(page, 0)) == 7
    assert page.locator("#filters").is_hidden()
    assert page.locator("#board thead button").count() == 0
    assert page.locator(".curve svg").first.is_visible()
    page.get_by_role("link", name="kangaroo").first.click()
    assert page.locator("h1").inner_text() == "kangaroo"


def test_reports_and_methods_lead_there_and_back(open_page):
    page = open_page()
    page.locator("#board").get_by_role("link", name="2 Nov 2026").first.click()
    assert NEW in page.url
    page.get_by_role("link", name="Roobench").click()
    page.locator("#board").get_by_role("link", name="medusa").click()
    assert page.locator("h1").inner_text() == "medusa"
    page.get_by_role("link", name="All methods").click()
    assert page.url.endswith("index.html#methods")


def test_curves_are_within_their_panels_and_have_names(open_page):
    for size in SIZES:
        page = open_page("index.html", size)
        for curve in page.locator(".curve").all():
            outer = curve.bounding_box()
            for part in curve.locator("circle, text, line").all():
                box = part.bounding_box()
                assert outer["x"] <= box["x"]
                assert box["x"] + box["width"] <= outer["x"] + outer["width"]
                assert box["y"] + box["height"] <= outer["y"] + outer["height"]
        names = [svg.get_attribute("aria-label") for svg in page.locator(".curve svg").all()]
        assert all(name.startswith("kangaroo, 3 points: ") for name in names)


def test_on_a_phone_the_board_scrolls_in_its_box_and_the_method_stays(open_page):
    page = open_page("index.html", "phone")
    box = page.locator(".board .scroll").first
    assert box.get_attribute("tabindex") == "0"
    first = page.locator("#board tbody th").first
    before = first.bounding_box()["x"]
    box.evaluate("(one) => (one.scrollLeft = 300)")
    assert first.bounding_box()["x"] == before


def test_the_theme_can_be_changed(open_page):
    page = open_page("index.html", "desk", "light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("#theme").click()
    assert page.evaluate(background) != light
