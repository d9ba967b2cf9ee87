"""The reasons that docs/data.md explains, to hold those that come out against them."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "data.md"
# Python at work instead of plain words: representations, exception names, addresses, byte literals.
NOT_PLAIN = re.compile(r"<[\w.]+ object|\b0x[0-9a-f]{11,}|\b[A-Z]\w*(Error|Exception|Warning)\b|\bb['\"]|Traceback|NoneType")


def documented() -> list[str]:
    """The first column of the tables, with braces around what differs from file to file."""
    return re.findall(r"^\| `(.+?)` \| [^|]+ \| [^|]+ \|$", PAGE.read_text(), re.MULTILINE)


def pattern(text: str) -> re.Pattern[str]:
    return re.compile(".+".join(re.escape(part) for part in re.split(r"\{[^}]*\}", text)), re.DOTALL)


_PATTERNS = [pattern(text) for text in documented()]


def unexplained(reason: str) -> list[str]:
    """The parts of a reason that the page has no row for, or that are not plain words."""
    whole = any(p.fullmatch(reason) for p in _PATTERNS)
    parts = [reason] if whole else reason.split("; ")
    return [p for p in parts if p and (NOT_PLAIN.search(p) or not any(d.fullmatch(p) for d in _PATTERNS))]
