"""The tags of a PDF file: which headings, rows and figures it has, and on which pages they are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pypdf import PageObject, PdfReader


@dataclass(frozen=True)
class Element:
    """A tagged element.

    `tag` is for example H2, TR or Figure, and `alternative` the text of a figure for people who cannot see it. `pages` are
    the numbers of the pages with its content, in the order of the text.
    """

    tag: str
    alternative: str
    children: tuple["Element", ...]
    pages: tuple[int, ...]

    def walk(self) -> Iterator["Element"]:
        """Yield this element and all below it, in the order of the text."""
        yield self
        for child in self.children:
            yield from child.walk()


def document(pdf: PdfReader) -> Element:
    """Return the root of the tagged elements."""
    numbers = {page.indirect_reference.idnum: number for number, page in enumerate(pdf.pages, 1)}
    return _element(pdf.trailer["/Root"]["/StructTreeRoot"], None, numbers)


def _element(node: Any, page: int | None, numbers: dict[int, int]) -> Element:
    """Return an element. `page` is the number of the page that applies unless a node names its own."""
    children, pages = [], []
    kids = node.get("/K", [])
    for reference in kids if isinstance(kids, list) else [kids]:
        kid = reference.get_object()
        if isinstance(kid, int):
            pages.append(page)
            continue
        own = numbers[kid.raw_get("/Pg").idnum] if "/Pg" in kid else page
        if "/S" in kid:
            children.append(_element(kid, own, numbers))
            pages.extend(children[-1].pages)
        else:
            pages.append(own)
    return Element(node.get("/S", "")[1:], node.get("/Alt", ""), tuple(children), tuple(pages))


def text_sizes(page: PageObject) -> set[float]:
    """Return the sizes of the text of a page, in points."""
    sizes = set()

    def visit(text: str, of_page: list[float], of_text: list[float], _: object, font_size: float) -> None:
        if text.strip():
            sizes.add(round(abs(font_size * of_text[3] * of_page[3]), 1))

    page.extract_text(visitor_text=visit)
    return sizes
