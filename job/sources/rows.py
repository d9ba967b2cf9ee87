"""What a table of labels says, row by row, before anybody looks at the files that it names.

CSV and TSV are read as people and spreadsheets write them, Parquet through pyarrow; either way a cell is text from here on.
"""

import codecs
import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from job.console.places import at_start
from job.errors import DataUnusable
from job.sources.opening import opened
from job.text.untrusted import unguarded

# The names that a column may have, best first. Of two names that stand together neither is preferred.
_COLUMN_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "path": (
        ("path",),
        ("filename", "file_name", "file", "filepath", "file_path", "image", "image_path"),
        ("image_id", "id"),
    ),
    "label": (("label",), ("labels", "class", "class_name", "category", "target")),
    "split": (("split",), ("set", "subset", "partition")),
}
_TRUTH_VALUES = frozenset({"0", "1", "0.0", "1.0", "true", "false"})
_ONE_CLASS = "This job gives each photo exactly one class, and this table is for several labels a photo"
_WAY_OUT = "Give a table with one label for each photo"


@dataclass(frozen=True)
class Row:
    """A row by its number as a spreadsheet shows it (the header of a CSV is row 1); `fault` where it cannot be read."""

    number: int
    path: str
    label: str
    split: str
    fault: str = ""


@dataclass(frozen=True)
class LabelTable:
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def read_rows(file: Path, *, labelled: bool, called: str = "") -> LabelTable:
    """The rows of a .csv, .tsv or .parquet file, with blanks around labels and splits taken away.

    `called` is what messages call it, where that isn't where it lies.

    Raises:
        DataUnusable: where it cannot be read, its columns cannot be told, or photos have more than one label.
    """
    table = called or str(file)
    try:
        grid = _read_parquet(file, table) if file.suffix.lower() == ".parquet" else _read_csv(file, table)
    except OSError as error:
        if error.errno:  # Else it is pyarrow that cannot make sense of the file.
            raise at_start(error, table, file) or error from None
        raise DataUnusable(f"{table}: cannot be read: {error}.") from error
    except (csv.Error, pa.ArrowException, ValueError) as error:  # pyarrow lets names that are not UTF-8 through.
        raise DataUnusable(f"{table}: cannot be read as a table: {error}. Save it again, as .csv in UTF-8.") from error
    columns = {kind: _column(table, grid, kind) if labelled or kind == "path" else None for kind in _COLUMN_NAMES}
    _check_columns(table, grid, columns, labelled)
    if not grid.rows:
        raise DataUnusable(f"{table}: there is no row in it but the header. Give a row for each photo.")
    rows = tuple(_row(number, cells, grid, columns) for number, cells in grid.rows)
    if labelled:
        _refuse_combined_labels(table, {row.label for row in rows})
    unused = [name for k, name in enumerate(grid.names) if k not in columns.values() and name.strip()]
    return LabelTable(rows, (f"Columns of {file.name} that are not used: {', '.join(unused)}.",) if unused else ())


def several_labels(table: str, what: str) -> DataUnusable:
    """The refusal of a table that labels photos more than once."""
    return DataUnusable(f"{table}: {what}. {_ONE_CLASS}. {_WAY_OUT}.")


@dataclass(frozen=True)
class _Grid:
    """Cells as text. A column whose values are no text (lists, pictures, dates) is named in `odd` and has empty cells."""

    names: list[str]
    rows: list[tuple[int, list[str]]]
    odd: dict[int, pa.DataType] = field(default_factory=dict)


def _read_csv(file: Path, table: str) -> _Grid:
    with opened(file) as table_file:
        data = table_file.readall()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataUnusable(f"{table}: this is not UTF-8 (byte {error.start:,}): save it as UTF-8.") from error
    options = _dialect(text)
    end = ["end", "of", "table"]  # A quotation mark that is never closed swallows this row, too.
    lines = chain(io.StringIO(text, newline=""), [options["delimiter"].join(end)])
    rows = [(number, cells) for number, cells in enumerate(csv.reader(lines, **options), 1) if cells]
    if rows[-1][1] != end:
        number, cells = rows[-1]
        raise DataUnusable(
            f"{table}: a quotation mark in row {number} is never closed ({cells[0][:60]!r}). "
            "Close it, or write it twice where it belongs to the text."
        )
    if len(rows) == 1:
        raise DataUnusable(f"{table}: this table is empty. Give it a header (path,label) and a row for each photo.")
    return _Grid(rows[0][1], [(number, list(map(unguarded, cells))) for number, cells in rows[1:-1]])


def _dialect(text: str) -> dict[str, Any]:
    """The separator under which the header makes most sense, and whether a blank behind it belongs to it."""

    def sense(options: dict[str, Any]) -> tuple[int, int]:
        header = next((cells for cells in csv.reader(io.StringIO(text, newline=""), **options) if cells), [])
        known = {_plain(name) for name in header} & {n for tiers in _COLUMN_NAMES.values() for tier in tiers for n in tier}
        return len(known), len(header)

    best = max(({"delimiter": d} for d in (",", ";", "\t")), key=sense)
    header_line = re.match(r"[\r\n]*([^\r\n]*)", text)
    return {**best, "skipinitialspace": header_line is not None and best["delimiter"] + " " in header_line[1]}


def _read_parquet(file: Path, table: str) -> _Grid:
    with opened(file) as table_file, pq.ParquetFile(table_file) as parquet:
        schema = parquet.schema_arrow
        names = list(schema.names)
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataUnusable(f"{table}: several columns are called {min(twice)!r}. Rename all but one of them.")
        odd = {k: kind for k, kind in enumerate(schema.types) if not _is_text(kind)}
        columns = parquet.read(columns=[name for k, name in enumerate(names) if k not in odd])
        num_rows = parquet.metadata.num_rows
    cells = [[""] * num_rows if k in odd else _texts(columns.column(name)) for k, name in enumerate(names)]
    return _Grid(names, list(enumerate(map(list, zip(*cells, strict=True)), 1)), odd)


def _is_text(kind: pa.DataType) -> bool:
    """Whether values of this type have one obvious spelling."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _texts(column: pa.ChunkedArray) -> list[str]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())  # Text that is not UTF-8 would end the reading of all rows.
    return [_text(value) for value in column.to_pylist()]


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")  # A file name that is not UTF-8 finds its file.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # Where a number is missing, pandas makes floats of them all.
        return str(int(value))
    return str(value)


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _column(table: str, grid: _Grid, kind: str) -> int | None:
    for tier in _COLUMN_NAMES[kind]:
        found = [k for k, name in enumerate(grid.names) if _plain(name) in tier]
        if len(found) > 1:
            which = " and ".join(repr(grid.names[k]) for k in found)
            raise DataUnusable(f"{table}: the columns {which} may each be the {kind}. Call only the one to take {kind!r}.")
        if found:
            return found[0]
    return None


def _check_columns(table: str, grid: _Grid, columns: dict[str, int | None], labelled: bool) -> None:
    """
    Raises:
        DataUnusable: where a column is missing, or holds what is no text.
    """
    label = columns["label"]
    if label is not None and label in grid.odd and _is_list(grid.odd[label]):
        raise several_labels(table, f"its column {grid.names[label]!r} holds lists ({grid.odd[label]})")
    if labelled and columns["path"] is not None and label is None and (classes := _class_columns(grid, columns)):
        listed = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
        raise several_labels(table, f"it has no label column, but {len(classes)} columns of only 0 and 1 ({listed})")
    missing = [kind for kind in ("path", "label") if columns[kind] is None and (labelled or kind == "path")]
    if missing:
        raise DataUnusable(
            f"{table}: there is no column {' and no column '.join(missing)} in it; its header is "
            f"{', '.join(repr(name[:60]) for name in grid.names[:20])}. The first row has to name the columns: "
            "path,label or path,label,split."
        )
    for kind, column in columns.items():
        if column is not None and column in grid.odd:
            raise DataUnusable(
                f"{table}: the {kind} is to come from the column {grid.names[column]!r}, which holds {grid.odd[column]}. "
                f"Give a column {kind!r} of text."
            )


def _class_columns(grid: _Grid, columns: dict[str, int | None]) -> list[str]:
    """The columns that look like a class each; none where only one does."""
    values: dict[int, set[str]] = defaultdict(set)
    for _, cells in grid.rows:
        if len(cells) == len(grid.names):
            for k, cell in enumerate(cells):
                values[k].add(cell.strip().lower())
    found = [k for k in values if k not in columns.values() and k not in grid.odd and values[k] <= _TRUTH_VALUES]
    return [grid.names[k] for k in found] if len(found) > 1 else []


def _row(number: int, cells: list[str], grid: _Grid, columns: dict[str, int | None]) -> Row:
    if len(cells) != len(grid.names):
        return Row(number, "", "", "", f"row {number} has {len(cells)} fields instead of {len(grid.names)}")
    path, label, split = ("" if k is None else cells[k] for k in (columns["path"], columns["label"], columns["split"]))
    return Row(number, path, _trimmed(label), _trimmed(split))


def _trimmed(text: str) -> str:
    """Without blanks around it, and in valid Unicode."""
    text = text.strip()
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _refuse_combined_labels(table: str, labels: Collection[str]) -> None:
    """Labels like cat|dog, where cat and dog are labels, too.

    `Tomato, red` beside `Tomato, green` and `Apple, red` names single classes in two parts: there every part keeps its
    place, and none stands alone.

    Raises:
        DataUnusable
    """
    for separator in "|;,":
        combined = {label: _pieces(label, separator) for label in labels if separator in label}
        alone = {label for label in labels if label not in combined}
        owners: dict[str, set[str]] = defaultdict(set)
        places: dict[str, set[int]] = defaultdict(set)
        for label, parts in combined.items():
            for place, part in enumerate(parts):
                owners[part].add(label)
                places[part].add(place)
        for label, parts in sorted(combined.items()):
            known = len(parts) > 1 and all(part in alone or owners[part] - {label} for part in parts)
            if known and any(part in alone or len(places[part]) > 1 for part in parts):
                raise several_labels(
                    table, f"the label {label!r} combines others ({' and '.join(map(repr, parts))}) with {separator!r}"
                )


def _pieces(label: str, separator: str) -> Sequence[str]:
    return [piece for piece in map(str.strip, label.split(separator)) if piece]
