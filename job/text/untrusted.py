"""Text that comes from data, made harmless where people look at it: on terminals and in spreadsheets.

Names of files, folders and classes, cells of tables and texts of libraries that quote them may hold anything. They are kept
as they are; only what is shown is changed.
"""

import csv
import io
import re
from collections.abc import Iterable

# Control characters, marks that turn the direction of writing, invisible characters, line separators, half surrogates.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
# Spreadsheets run cells that begin like this. The apostrophe is what they take for "this is text".
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")


def escaped(text: str) -> str:
    r"""Write out what a terminal would obey or not show: a line break becomes `\n`, Escape `\x1b`. The result is one line.

    To escape twice is to escape once, so every place that shows text may do it.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def guarded(cell: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run as a formula; see `unguarded`."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def csv_of(rows: Iterable[Iterable[object]]) -> bytes:
    """A table as CSV in UTF-8 with every text guarded. One with line breaks is quoted, so it begins no row of its own."""
    table = io.StringIO(newline="")
    for row in rows:
        line = io.StringIO(newline="")
        csv.writer(line).writerow([guarded(cell) if isinstance(cell, str) else cell for cell in row])
        table.write(line.getvalue().removesuffix("\r\n") + "\n")
    return table.getvalue().encode("utf-8", "backslashreplace")


def unguarded(cell: str) -> str:
    """Undo `guarded`: every text comes back as it was."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
