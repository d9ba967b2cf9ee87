"""A report page as a reader sees it: its text, the cells of its tables, and what it says of each copy."""

import html
import re


class Page:
    """The text of a page, of its header (`top`) and of each section, and the rows of all tables."""

    def __init__(self, text: str) -> None:
        self.text = words(text)
        self.top = words(text[text.index("<header>") : text.index("</header>")])
        sections = re.findall(r'<section id="([\w-]+)">(.*?)</section>', text, re.DOTALL)
        self.sections = {name: words(part) for name, part in sections}
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
        self.rows = [[words(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]
        self._copies = "".join(re.findall(r'<ul class="copies">(.*?)</ul>', text, re.DOTALL))

    def fates(self) -> list[tuple[str, str]]:
        """The path of each copy and what is said of it. A photo of two lists is there twice."""
        items = [item.partition("<br>") for item in self._copies.split("<li>")[1:]]
        return [(words(path), words(fate)) for path, _, fate in items]


def words(part: str) -> str:
    """Return the text between the tags."""
    part = re.sub(r'<style>.*?</style>|<wbr>|<span class="nowrap">(?=[^<]*</span></code>)', "", part, flags=re.DOTALL)
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", part)).split())
    return re.sub(r" (?=[.,;:])", "", text)
