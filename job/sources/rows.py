"""The rows of a table of labels, as they are written. `tables.py` looks for the files that they name."""

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from job.errors import DataUnusable
from job.sections import IntakeConfig
from job.sources.columns import KNOWN_NAMES, TRUE, WAY_OUT, Columns, several_labels
from job.sources.grids import Grid, read_grid

_LIST = re.compile(r"(\[.*,.*\]|\{.*\[.*,.*\].*\})", re.DOTALL)
_NO_LABELS = frozenset({"nan", "null", "<na>", "#n/a"})  # Programs write these words for an empty cell.


@dataclass(frozen=True)
class Row:
    """A row of a table, with its number as a spreadsheet shows it (the header of a CSV is row 1).

    `split` is train, val, test or empty, and `says` is the text in the split column. `fault` says why the row is refused.
    """

    number: int
    path: str
    label: str
    split: str
    fault: str = ""
    group: str = ""
    says: str = ""

    @property
    def names_a_path(self) -> bool:
        return bool(self.path.strip())


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table, and notes for the user. `names` is its header.

    `columns` has the names of the columns that were chosen for path, label, split and group.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    names: tuple[str, ...]
    columns: dict[str, str]


def read_rows(file: Path, *, labelled: bool, called: str = "", settings: IntakeConfig = IntakeConfig()) -> LabelTable:
    """Return the rows of a table, without spaces around labels, splits and groups.

    `called` is the name of the table in messages; by default it is the path of `file`. Without `labelled`, only the paths
    are read.

    Raises:
        DataUnusable: if it cannot be read, its columns are not clear, or photos have more than one label.
        UsageError: if a column that a setting names does not exist.
    """
    table = called or str(file)
    grid = read_grid(file, table, KNOWN_NAMES)
    columns = Columns(table, grid, settings)
    found = columns.find() if labelled else {"path": columns.find_path()}
    if not grid.rows:
        raise DataUnusable(f"{table}: it has a header, and no row below it. Add a row for each photo.")
    rows = tuple(_row(number, cells, grid, found, columns) for number, cells in grid.rows)
    if labelled and not settings.allow_joined_labels:
        _refuse_joined_labels(table, {row.label for row in rows})
    taken = {*found.values(), *columns.classes}
    unused = [name for k, name in enumerate(grid.names) if k not in taken and name.strip()]
    notes = grid.notes + columns.notes
    if unused:
        notes += (f"Columns of {Path(table).name} that are not used: {', '.join(unused)}.",)
    named = {kind: grid.names[k] for kind, k in found.items() if k is not None}
    return LabelTable(rows, notes, tuple(grid.names), named)


def _row(number: int, cells: list[str], grid: Grid, found: dict[str, int | None], columns: Columns) -> Row:
    if len(cells) != len(grid.names):
        return Row(number, "", "", "", f"row {number} has {len(cells)} fields instead of {len(grid.names)}")
    path, label, says, group = (
        "" if k is None else cells[k] for k in (found.get(kind) for kind in ("path", "label", "split", "group"))
    )
    fault = ""
    if columns.classes:
        label = next((grid.names[k] for k in columns.classes if cells[k].strip().lower() in TRUE), "")
        fault = "" if label else f"row {number} has no 1 in any column of a class"
    says, label = _trimmed(says), _trimmed(label)
    label = "" if label.lower() in _NO_LABELS else label
    return Row(number, path, label, columns.split_of(says) if says else "", fault, _trimmed(group), says)


def _trimmed(text: str) -> str:
    """Return the text without spaces around it, in valid Unicode."""
    text = text.strip()
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _refuse_joined_labels(table: str, labels: Collection[str]) -> None:
    """Refuse labels such as `cat|dog` and `cat dog`, if cat and dog are labels, too, and lists such as `['cat', 'dog']`.

    Classes such as `Tomato, red`, `Tomato, green` and `Apple, red` are accepted: none of the parts is a label by itself, and
    each part is always at the same place. Names of two words are common. So if a space joins the parts, the label is refused
    only if all parts are labels.
    """
    for label in sorted(labels):
        if _LIST.fullmatch(label):
            raise several_labels(table, f"the label {label!r} is a list")
    for separator in "|;, ":
        split = {label: map(str.strip, label.split(separator)) for label in labels if separator in label}
        joined = {label: list(filter(None, parts)) for label, parts in split.items()}
        alone = {label for label in labels if label not in joined}
        owners: dict[str, set[str]] = defaultdict(set)
        places: dict[str, set[int]] = defaultdict(set)
        for label, parts in joined.items():
            for place, part in enumerate(parts):
                owners[part].add(label)
                places[part].add(place)
        for label, parts in sorted(joined.items()):
            known = len(parts) > 1 and all(part in alone or (separator != " " and owners[part] - {label}) for part in parts)
            if known and any(part in alone or len(places[part]) > 1 for part in parts):
                raise several_labels(
                    table,
                    f"the label {label!r} combines others ({' and '.join(map(repr, parts))}) with {separator!r}",
                    f"{WAY_OUT}, or, if it is a class of its own, say so (--set intake.allow_joined_labels=true)",
                )
