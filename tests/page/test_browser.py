"""The report page in a real browser: on a screen, on a phone, with light and dark colours, and printed."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from pypdf import PdfReader

from tests.page.printed import Element, document, text_sizes

WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
TEXT_SIZE_PT = 10  # What the page asks for in print. Chromium prints everything smaller if something is too wide.
FOLDED = "details:not([open])"

# Lists what reaches beyond the right edge of the window. The content of a box that scrolls by itself does not.
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  const scrolls = box => box && (getComputedStyle(box).overflowX !== 'visible' || scrolls(box.parentElement));
  return [...document.body.querySelectorAll('*')]
    .filter(element => element.getBoundingClientRect().right > width && !scrolls(element.parentElement))
    .map(element => element.outerHTML.slice(0, 200));
}"""


# Axe cannot tell the contrast of text over a shadow.
WITHOUT_SHADOWS = "boxes => boxes.forEach(box => box.style.background = 'none')"


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=WIDTHS, ids="{}px".format)
def shown(chromium: Browser, report_page: Path, scheme: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page in a window, with everything unfolded."""
    window = {"width": request.param, "height": 900}
    with chromium.new_page(viewport=window, color_scheme=scheme) as page:
        page.goto(report_page.as_uri())
        page.eval_on_selector_all(FOLDED, "folded => folded.forEach(details => details.open = true)")
        yield page


@pytest.fixture(scope="module")
def printed(chromium: Browser, report_page: Path) -> PdfReader:
    with chromium.new_page() as page:
        page.goto(report_page.as_uri())
        return PdfReader(io.BytesIO(page.pdf(format="A4", tagged=True)))


@pytest.fixture(scope="module")
def elements(printed: PdfReader) -> list[Element]:
    """The tagged elements of the printed page, in the order of the text."""
    return list(document(printed).walk())


def test_page_fits_its_window_and_axe_finds_no_fault(shown):
    """Among the rules of axe: contrast of text of at least 4.5, headings in order, a text for each image."""
    assert shown.evaluate(TOO_WIDE) == []
    shown.eval_on_selector_all(".scroll", WITHOUT_SHADOWS)
    found = Axe().run(shown).response
    faults = [(rule["id"], node) for kind in ("violations", "incomplete") for rule in found[kind] for node in rule["nodes"]]
    assert [
        (rule, node["html"][:200], node["failureSummary"]) for rule, node in faults if not _is_undecided(rule, node)
    ] == []


def _is_undecided(rule: str, node: Mapping[str, Any]) -> bool:
    """Return True if axe could not see all of a text, because of the edge of a box, or cells of a table that are empty."""
    if rule != "color-contrast":
        return rule == "th-has-data-cells"
    return node["any"][0]["data"]["messageKey"] == "elmPartiallyObscured"


def test_text_of_charts_has_the_contrast_of_other_text(chromium, report_page, scheme):
    """Axe does not look into images, so it gets paragraphs with the colours of the text in the charts."""
    with chromium.new_page(color_scheme=scheme) as page:
        page.goto(report_page.as_uri())
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        charts = page.eval_on_selector_all("img[src^='data:image/svg']", "images => images.map(image => image.src)")
        inks = set()
        for chart in charts:
            page.goto(chart)
            inks |= set(page.eval_on_selector_all("text", "texts => texts.map(text => getComputedStyle(text).fill)"))
        page.goto("about:blank")
        page.set_content("".join(f"<p style='color: {ink}; background: {paper}'>Text</p>" for ink in inks))
        faults = Axe().run(page, options={"runOnly": ["color-contrast"]}).response
        assert len(charts) >= 3 and inks and faults["passes"] and not faults["violations"], inks


def test_page_loads_nothing_and_logs_nothing(chromium, report_page):
    said, loaded = [], []
    with chromium.new_page() as page:
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(error.message))
        page.on("request", lambda request: loaded.append(request.url))
        page.goto(report_page.as_uri())
        page.eval_on_selector_all(FOLDED, "folded => folded.forEach(details => details.open = true)")
        assert page.eval_on_selector_all("img", "images => images.filter(image => !image.naturalWidth).length") == 0
    assert said == [] and [url for url in loaded if not url.startswith("data:")] == [report_page.as_uri()]


def test_nothing_is_wider_than_the_printed_page(printed):
    assert TEXT_SIZE_PT in text_sizes(printed.pages[0])


def test_no_row_and_no_figure_is_cut_by_the_end_of_a_printed_page(elements):
    rows = [element for element in elements if element.tag == "TR"]
    # A row with several headers is the head of a table, which is printed again on each page.
    uncut = [row for row in rows if sum(cell.tag == "TH" for cell in row.children) < 2]
    uncut += [element for element in elements if element.tag == "Figure"]
    assert len(uncut) > 50
    assert [(element.tag, element.alternative, element.pages) for element in uncut if len(set(element.pages)) > 1] == []


def test_no_heading_and_no_title_of_a_table_ends_a_printed_page(elements):
    lonely = []
    for k, title in enumerate(elements):
        if title.tag in ("H1", "H2", "H3", "H4") or (elements[k - 1].tag, title.tag) == ("Table", "Caption"):
            after = next(element for element in elements[k + len(list(title.walk())) :] if element.pages)
            lonely += [(title.tag, title.pages)] if title.pages[-1] != after.pages[0] else []
    assert lonely == []


def test_everything_folded_is_printed(chromium, report_page, elements):
    with chromium.new_page() as page:
        page.goto(report_page.as_uri())
        num_rows = page.locator("tr").count()
    assert sum(element.tag == "TR" for element in elements) == num_rows


def test_printed_figures_have_a_text(elements):
    figures = [element for element in elements if element.tag == "Figure"]
    assert all(figure.alternative or figure.children for figure in figures)
