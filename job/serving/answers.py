"""The table that predict writes: where it may go, and what is in it."""

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from job.console.places import refused_at_start
from job.errors import JobError, UsageError
from job.runtime.context import Context
from job.serving.folder import is_below
from job.sources.base import Entry, Source
from job.sources.opening import opened
from job.storage.bucket.downloads import local_copy, scratch
from job.storage.bucket.objects import Conflict, is_remote, join, split_object
from job.storage.bucket.open import is_there, open_objects
from job.storage.claim import is_claimed
from job.storage.files import beside, storage_errors, writing
from job.storage.ledger import MARK, is_reserved
from job.text.untrusted import guarded

_COLUMNS = ("path", "label", "probability", "top_3", "error")
_METADATA = {b"transfer-job": b"predict"}
_MAX_HEADER_CHARACTERS = 1000


class Row(TypedDict):
    """The prediction for one photo; only `error` if it could not be read."""

    path: str
    label: NotRequired[str]
    probability: NotRequired[float]
    top_3: NotRequired[dict[str, float]]
    error: str


@dataclass(frozen=True)
class Place:
    """A file that predict may write.

    `is_foreign` where somebody else's file has the name and may be replaced. In a bucket, `version` is that of the object
    which is there, the empty text where there is none.
    """

    out: str
    overwrite: bool
    is_foreign: bool
    version: str

    def refuse_inputs(self, source: Source, entries: Iterable[Entry]) -> None:
        """Refuse to replace a file that one of the entries is read from. Raises: UsageError."""
        if self.is_foreign and any(_is_same(self.out, source.location(entry)) for entry in entries):
            raise UsageError(f"--out {self.out}: this is one of the files of --data. Give another name.")

    def write(self, rows: Sequence[Row], context: Context) -> pa.Table:
        """Write the answer, and return it. Where that fails, it is kept in scratch space, and the error says where.

        Raises:
            StorageFailed: where it cannot be written.
            UsageError: where somebody else's file has got the name meanwhile.
        """
        table, kept = _table(rows), scratch(self.out) / split_object(self.out)[1]
        kept_in = f"The photos are labelled; the answer is in {kept}."
        if is_remote(self.out):
            _write_file(table, kept)
            context.stop.next_time = kept_in
        try:
            if is_remote(self.out):
                self._upload(kept)
            else:
                _is_foreign(self.out, self.overwrite)
                _write_file(table, Path(self.out).resolve(), self.out)
        except JobError as error:
            if not is_remote(self.out):
                _write_file(table, kept)
            raise type(error)(*error.args, kept_in) from error
        return table

    def _upload(self, file: Path) -> None:
        folder, name = split_object(self.out)
        try:
            open_objects(folder).write(name, file, replaces=None if self.overwrite else self.version)
        except Conflict as error:
            raise UsageError(f"--out {self.out}: another object has got this name meanwhile. Give another one.") from error
        file.unlink()


def place(out: str, *, overwrite: bool, model: str, data: str) -> Place:
    """Return where the answer goes. Nothing is left there yet.

    Raises:
        UsageError: where `out` is neither .parquet nor .csv, lies in the folder of the model, is the table of photos, or is
            a file that predict did not write, unless `overwrite` is set; where it lies in a folder that this user may not
            write to, or in a bucket that is not there or that these credentials may not see.
        StorageFailed: where its disk is full or fails.
    """
    if not out.endswith((".parquet", ".csv")):
        raise UsageError(f"--out {out}: give a name that ends in .parquet or .csv.")
    if is_below(out, model):
        raise UsageError(f"--out {out} lies in --model {model}, where nothing is written. Give a name elsewhere.")
    if (owner := _output_around(out)) is not None:
        raise UsageError(
            f"--out {out} lies in the output of a run, {owner}, under a name that the job writes itself. Give another place."
        )
    if _is_same(out, data):
        raise UsageError(f"--out {out}: this is the table that --data names. Give another name.")
    scratch(out)  # For its error, before there is an answer that it has to keep.
    version = ""
    if is_remote(out):
        folder, name = split_object(out)
        objects = open_objects(folder)
        found = objects.find(name)
        if found is None:
            next(objects.list(name), None)  # For its error where there is no bucket.
            return Place(out, overwrite, is_foreign=False, version="")
        version = found.version
    else:
        _try_to_write(out)
    return Place(out, overwrite, _is_foreign(out, overwrite), version)


def _try_to_write(out: str) -> None:
    """Write a file without a name where the answer will be, or its folder. Raises: UsageError, StorageFailed."""
    file = Path(out).resolve()
    with storage_errors(file), refused_at_start(f"--out {out}", file, writing=True):
        folder = next(folder for folder in file.parents if os.path.lexists(folder))
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"\0")


def _is_foreign(out: str, overwrite: bool) -> bool:
    """Return whether there is a file that predict did not write. Raises: UsageError, where it must not be replaced."""
    file = local_copy(out) if is_remote(out) else Path(out).resolve()
    if not os.path.lexists(file) or _is_answer(file, out):
        return False
    if not file.is_file():
        raise UsageError(f"--out {out}: this is {'a folder' if file.is_dir() else 'no regular file'}. Give another name.")
    if not overwrite:
        raise UsageError(
            f"--out {out}: there is such a file, and predict did not write it. Give another name, or --overwrite if it may "
            "be replaced."
        )
    return True


def _output_around(out: str) -> str | None:
    """Return the output of this job in which a file has a name that the job may write itself."""
    if is_remote(out):
        parts = out.split("/")
        around = [("/".join(parts[:k]), "/".join(parts[k:])) for k in range(len(parts) - 1, 3, -1)]
        return next((uri for uri, name in around if is_reserved(name) and is_there(join(uri, MARK))), None)
    file = Path(out).resolve()
    found = (p for p in file.parents if is_claimed(p) and is_reserved(file.relative_to(p).as_posix()))
    return next(map(str, found), None)


def _is_same(out: str, other: str) -> bool:
    if is_remote(out) or is_remote(other):
        return out == other
    with suppress(OSError):
        return Path(out).samefile(other)
    return False


def _is_answer(file: Path, called: str) -> bool:
    """Return whether predict has written a file. It may be called otherwise where links lead to it."""
    with suppress(OSError, ValueError, csv.Error, pa.ArrowException), opened(file) as stream:
        if called.endswith(".parquet"):
            return (pq.read_schema(stream).metadata or {}).items() >= _METADATA.items()
        header = stream.read(_MAX_HEADER_CHARACTERS).partition(b"\n")[0].decode()
        return tuple(next(csv.reader([header])))[: len(_COLUMNS)] == _COLUMNS
    return False


def _table(rows: Sequence[Row]) -> pa.Table:
    best = [json.dumps(row["top_3"], ensure_ascii=False) if "top_3" in row else None for row in rows]
    columns = (
        [row["path"] for row in rows],
        pa.array([row.get("label") for row in rows], pa.string()),
        pa.array([row.get("probability") for row in rows], pa.float64()),
        pa.array(best, pa.string()),
        [row["error"] for row in rows],
    )
    return pa.table(dict(zip(_COLUMNS, columns, strict=True))).replace_schema_metadata(_METADATA)


def _write_file(table: pa.Table, final: Path, called: str = "") -> None:
    with writing(final, beside(final)) as path, path.open("wb") as file:
        if (called or final.name).endswith(".csv"):
            pyarrow.csv.write_csv(_guarded(table), file)
        else:
            pq.write_table(table, file)


def _guarded(table: pa.Table) -> pa.Table:
    """Return the table with what a spreadsheet would run made text."""
    for k, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            texts = [None if text is None else guarded(text) for text in column.to_pylist()]
            table = table.set_column(k, table.column_names[k], pa.array(texts, pa.string()))
    return table
