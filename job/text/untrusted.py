"""Text from data, made safe to show on terminals and in spreadsheets.

Names of files, folders and classes, cells of tables, and library messages that quote them may contain anything. The data
is kept as it is; only the text that is shown is changed.
"""

import csv
import io
import re
from collections.abc import Iterable

# Control characters, marks that change the writing direction, invisible characters, line separators, lone surrogates.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
# Spreadsheets run cells that begin like this as formulas. A leading apostrophe tells them that the cell is text.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")

# Signs that begin a link, a mention, markup, HTML or a cell in GitHub's and Hugging Face's Markdown.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>()#+|~$&@!]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def escaped(text: str) -> str:
    r"""Escape characters that a terminal would obey or not show: a line break becomes `\n`. The result is one line.

    Escaping twice gives the same text as escaping once, so every place that shows text may do it.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_markdown(text: str) -> str:
    r"""Escape text so that Markdown shows it as it is, on one line: `<b>` becomes `\<b\>`."""
    return _MARKDOWN.sub(r"\\\g<0>", escaped(text))


def guarded(cell: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run as a formula; see `unguarded`."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def csv_of(rows: Iterable[Iterable[object]]) -> bytes:
    """Return a table as CSV in UTF-8, with every text guarded. Text with line breaks is quoted, so it starts no new row."""
    table = io.StringIO(newline="")
    for row in rows:
        line = io.StringIO(newline="")
        csv.writer(line).writerow([guarded(cell) if isinstance(cell, str) else cell for cell in row])
        table.write(line.getvalue().removesuffix("\r\n") + "\n")
    return table.getvalue().encode("utf-8", "backslashreplace")


def unguarded(cell: str) -> str:
    """Undo `guarded`: return the original text."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
