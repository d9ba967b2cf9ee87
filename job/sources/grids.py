"""Tables of labels as rows of text: CSV and TSV as people and spreadsheets write them, JSON lines, Parquet and Excel."""

import codecs
import csv
import gzip
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from job.console.places import at_start
from job.errors import DataUnusable, UsageError
from job.sources.local import is_named_like_a_photo
from job.sources.opening import opened
from job.text.untrusted import unguarded

_MAX_BYTES = 2 << 30  # The largest unpacked table. A small compressed file can unpack to any size.
_SEPARATORS = (",", ";", "\t")


@dataclass(frozen=True)
class Grid:
    """The cells of a table as text. Rows have the numbers that a spreadsheet shows (the header of a CSV is row 1).

    If the values of a column are not text (lists, pictures, dates), its cells are empty, and `odd` says what they hold.
    """

    names: list[str]
    rows: list[tuple[int, list[str]]]
    odd: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    has_header: bool = True

    def values(self, column: int) -> list[str]:
        """Return the cells of a column that are not blank."""
        return [cells[column].strip() for _, cells in self.rows if column < len(cells) and cells[column].strip()]


def read_grid(file: Path, table: str, known: frozenset[str]) -> Grid:
    """Return the cells of a table.

    `table` is its name in messages. `known` are the column names that the job looks for, as `plain` writes them.

    Raises:
        DataUnusable: if the file cannot be read as a table.
        UsageError: if a library that reads it is not installed.
    """
    name = file.name.lower()
    try:
        if name.endswith(".parquet"):
            return _read_parquet(file, table)
        if name.endswith(".xlsx"):
            return _read_excel(file, table)
        data = _bytes(file, table)
        name = name.removesuffix(".gz")
        text = _decoded(data, table)
        return _read_json_lines(text, table) if name.endswith(("jsonl", "ndjson")) else _read_csv(text, table, known)
    except (gzip.BadGzipFile, EOFError, zipfile.BadZipFile) as error:
        raise DataUnusable(f"{table}: its compression is damaged ({error}). Save it again, as .csv in UTF-8.") from error
    except OSError as error:
        if error.errno:  # Without a number, the error is of pyarrow, which cannot read the file as a table.
            raise at_start(error, table, file) or error from None
        raise DataUnusable(f"{table}: cannot be read: {error}.") from error
    except (csv.Error, pa.ArrowException, ValueError) as error:  # pyarrow does not check that names are UTF-8.
        raise DataUnusable(f"{table}: cannot be read as a table: {error}. Save it again, as .csv in UTF-8.") from error


def plain(name: str) -> str:
    """Return the name of a column in one spelling: in lower case, with `_` for spaces and hyphens."""
    return name.strip().lstrip("#").strip().casefold().replace(" ", "_").replace("-", "_")


def _bytes(file: Path, table: str) -> bytes:
    with opened(file) as table_file:
        if not file.name.lower().endswith(".gz"):
            return table_file.readall()
        with gzip.open(table_file) as unpacked:
            data = unpacked.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise DataUnusable(f"{table}: it unpacks to more than {_MAX_BYTES >> 30} GiB. Give it as .parquet.")
    return data


def _decoded(data: bytes, table: str) -> str:
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataUnusable(f"{table}: this is not UTF-8 (byte {error.start:,}): save it as UTF-8.") from error


def _read_csv(text: str, table: str, known: frozenset[str]) -> Grid:
    text, skipped, options = _dialect(text, known)
    end = ["end", "of", "table"]  # If a quotation mark is never closed, this row becomes part of the cell before it.
    lines = chain(io.StringIO(text, newline=""), [options["delimiter"].join(end)])
    numbered = enumerate(csv.reader(lines, **options), 1 + skipped)
    rows = [(number, cells) for number, cells in numbered if any(map(str.strip, cells))]
    if rows[-1][1] != end:
        number, cells = rows[-1]
        raise DataUnusable(
            f"{table}: a quotation mark in row {number} is never closed ({cells[0][:60]!r}). "
            "Close it, or write it twice where it belongs to the text."
        )
    if len(rows) == 1:
        raise DataUnusable(f"{table}: this table is empty. Give it a header (path,label) and a row for each photo.")
    rows.pop()
    headless = _is_data(rows, known)
    names = [f"column {k}" for k in range(1, len(rows[0][1]) + 1)] if headless else _fitted(rows.pop(0)[1], 1)
    notes = (f"{table} has no header: its first row was read as a row.",) if headless else ()
    cells_of_rows = [(number, _fitted([unguarded(c) for c in cells], len(names))) for number, cells in rows]
    return Grid(names, cells_of_rows, notes=notes, has_header=not headless)


def _fitted(cells: list[str], width: int) -> list[str]:
    """Return the cells without blank ones behind the last column, because some programs end each row with a separator."""
    while len(cells) > width and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _is_data(rows: list[tuple[int, list[str]]], known: frozenset[str]) -> bool:
    """Return whether the first row is data: it names a photo, or all its cells but the first are in later rows, too."""
    names = rows[0][1]
    if {plain(name) for name in names} & known:
        return False
    return any(is_named_like_a_photo(name.strip()) for name in names) or (
        len(names) > 1 and all(any(cells[k : k + 1] == [name] for _, cells in rows[1:]) for k, name in enumerate(names) if k)
    )


def _dialect(text: str, known: frozenset[str]) -> tuple[str, int, dict[str, Any]]:
    """Return the text from its header on, the number of lines before it, and the options for csv.reader.

    A first line such as `sep=;`, which Excel understands, sets the separator. Lines that begin with # are comments, unless
    they are the header itself.
    """
    skipped = 0
    delimiters: tuple[str, ...] = _SEPARATORS
    if found := re.match(r'"?sep=(.)"?[ \t]*(\r\n|\r|\n)', text, re.IGNORECASE):
        text, skipped, delimiters = text[found.end() :], 1, (str(found[1]),)
    while text.startswith("#") and not _header(text, delimiters, known)[0]:
        text = re.sub(r"^[^\r\n]*(\r\n|\r|\n)?", "", text, count=1)
        skipped += 1
    _, _, delimiter = _header(text, delimiters, known)
    first_line = re.match(r"[\r\n]*([^\r\n]*)", text)
    return (
        text,
        skipped,
        {"delimiter": delimiter, "skipinitialspace": first_line is not None and f"{delimiter} " in first_line[1]},
    )


def _header(text: str, delimiters: tuple[str, ...], known: frozenset[str]) -> tuple[int, int, str]:
    """Return the numbers of known columns and of columns, with the separator that finds the most of them."""

    def sense(delimiter: str) -> tuple[int, int]:
        header = next((cells for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if cells), [])
        return len({plain(name) for name in header} & known), len(header)

    best = max(delimiters, key=sense)
    return *sense(best), best


def _read_json_lines(text: str, table: str) -> Grid:
    rows: list[tuple[int, Mapping[str, object]]] = []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):  # Not splitlines: it also splits at U+2028 in a text.
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataUnusable(f"{table}: line {number} is not JSON: {error}. Give one object in each line.") from error
        if not isinstance(row, dict):
            raise DataUnusable(f"{table}: line {number} holds no JSON object. Give one object in each line.")
        rows.append((number, row))
    if not rows:
        raise DataUnusable(f'{table}: this table is empty. Give a line such as {{"file_name": "a.jpg", "label": "cat"}}.')
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    odd = {
        k: "lists" if any(isinstance(row.get(name), list) for _, row in rows) else "objects"
        for k, name in enumerate(names)
        if any(isinstance(row.get(name), list | dict) for _, row in rows)
    }
    return Grid(names, [(number, [_text(row.get(name)) for name in names]) for number, row in rows], odd)


def _read_excel(file: Path, table: str) -> Grid:
    try:
        import openpyxl
    except ImportError:
        raise UsageError(
            f"{table}: reading Excel files needs openpyxl: pip install 'transfer-job[xlsx]'. Or save the table as .csv."
        ) from None
    with opened(file) as table_file:
        with zipfile.ZipFile(table_file) as parts:
            if sum(part.file_size for part in parts.infolist()) > _MAX_BYTES:
                raise DataUnusable(f"{table}: it unpacks to more than {_MAX_BYTES >> 30} GiB. Give it as .csv.")
        try:
            book = openpyxl.load_workbook(table_file, read_only=True, data_only=True)
            sheet = book.worksheets[0]
            cells = [
                (number, [_text(value) for value in row]) for number, row in enumerate(sheet.iter_rows(values_only=True), 1)
            ]
        except (KeyError, IndexError, TypeError, AttributeError, SyntaxError) as error:  # Damaged XML raises them.
            raise DataUnusable(f"{table}: cannot be read as an Excel table: {error}. Save it as .csv.") from error
    rows = [(number, row) for number, row in cells if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise DataUnusable(f"{table}: its first sheet, {sheet.title!r}, has no header with rows below it.")
    names = _fitted(rows[0][1], 1)
    others = len(book.worksheets) - 1
    notes = (f"{table}: only its first sheet, {sheet.title!r}, is read; it has {others} more.",) if others else ()
    width = len(names)
    return Grid(names, [(n, _fitted(row, width) + [""] * (width - len(row))) for n, row in rows[1:]], notes=notes)


def _read_parquet(file: Path, table: str) -> Grid:
    with opened(file) as table_file, pq.ParquetFile(table_file) as parquet:
        schema = parquet.schema_arrow
        names = list(schema.names)
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataUnusable(f"{table}: several columns are called {min(twice)!r}. Rename all but one of them.")
        kinds = {k: kind for k, kind in enumerate(schema.types) if not _is_text(kind)}
        odd = {k: f"lists ({kind})" if _is_list(kind) else str(kind) for k, kind in kinds.items()}
        columns = parquet.read(columns=[name for k, name in enumerate(names) if k not in odd])
        num_rows = parquet.metadata.num_rows
    cells = [[""] * num_rows if k in odd else _texts(columns.column(name)) for k, name in enumerate(names)]
    return Grid(names, list(enumerate(map(list, zip(*cells, strict=True)), 1)), odd)


def _is_text(kind: pa.DataType) -> bool:
    """Return whether there is only one way to write the values of a type as text."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    texts = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.bool_(), pa.null())
    return kind in texts or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _texts(column: pa.ChunkedArray) -> list[str]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())  # So text that is not UTF-8 does not stop the reading.
    return [_text(value) for value in column.to_pylist()]


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)) or isinstance(value, list | dict):
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")  # So a file name that is not UTF-8 finds its file.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # pandas makes floats of all numbers if one is missing.
        return str(int(value))
    return str(value)
