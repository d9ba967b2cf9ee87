"""The table of predictions that `predict` writes: its columns, and the checks of `--out`."""

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from job.console.places import refused_at_start
from job.errors import JobError, UsageError
from job.runtime.stop import StopRequest
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

_COLUMNS = ("path", "label", "probability", "familiarity", "accepted", "top_3", "error")
_BEFORE_0_13 = ("path", "label", "probability", "top_3", "error")
_OF_A_CLASS = "probability:"  # Before the name of the class, which may be anything, so that no two columns have one name.
_METADATA = {b"transfer-job": b"predict"}
_MAX_HEADER_CHARACTERS = 1000


class Row(TypedDict):
    """The prediction for one photo; only `error` if it could not be read.

    `probabilities_C` has one value for each class. `neighbours` are paths of training photos with their similarities.
    """

    path: str
    label: NotRequired[str]
    probability: NotRequired[float]
    familiarity: NotRequired[float]
    accepted: NotRequired[bool]
    top_3: NotRequired[dict[str, float]]
    probabilities_C: NotRequired[np.ndarray]
    neighbours: NotRequired[dict[str, float]]
    error: str


@dataclass(frozen=True)
class Place:
    """A file or object that predict may write.

    `is_foreign` is true if it exists, predict did not write it, and it may be replaced. `version` is the version of the
    existing object in a bucket; empty if there is none.
    """

    out: str
    overwrite: bool
    is_foreign: bool
    version: str

    def refuse_inputs(self, source: Source, entries: Iterable[Entry]) -> None:
        """Refuse to replace a file that predict will read. Raises: UsageError."""
        if self.is_foreign and any(_is_same(self.out, source.location(entry)) for entry in entries):
            raise UsageError(f"--out {self.out}: this is one of the files of --data. Give another name.")

    def write(
        self, rows: Sequence[Row], stop: StopRequest, class_names: Sequence[str] = (), *, with_neighbours: bool = False
    ) -> pa.Table:
        """Write and return the table. If that fails, keep it in scratch space; the error then says where.

        It has a column with the probabilities of each of `class_names` and, `with_neighbours`, one with similar photos.

        Raises:
            StorageFailed: if it cannot be written.
            UsageError: if another file or object has got this name in the meantime.
        """
        table, kept = _table(rows, class_names, with_neighbours), scratch(self.out) / split_object(self.out)[1]
        kept_in = f"The photos are labelled; the answer is in {kept}."
        if is_remote(self.out):
            _write_file(table, kept)
        try:
            if is_remote(self.out):
                with stop.during(next_time=kept_in):
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
            raise UsageError(
                f"--out {self.out}: another object has got this name in the meantime. Give another name."
            ) from error
        file.unlink()


def place(out: str, *, overwrite: bool, model: str, data: str) -> Place:
    """Check that predict may write `out`, before it does any work. Nothing is left there.

    Raises:
        UsageError: if `out` is neither .parquet nor .csv; is in the folder of the model or, under a reserved name, in the
            output of a run; is the table of photos; is a file that predict did not write, unless `overwrite` is set; is in a
            folder that this user may not write to; or is in a bucket that does not exist or is not accessible.
        StorageFailed: if the disk is full or fails.
    """
    if not out.endswith((".parquet", ".csv")):
        raise UsageError(f"--out {out}: give a name that ends in .parquet or .csv.")
    if is_below(out, model):
        raise UsageError(f"--out {out} lies in --model {model}, which predict does not change. Give a name elsewhere.")
    if (owner := output_around(out)) is not None:
        raise UsageError(
            f"--out {out} lies in the output of a run, {owner}, under a name that the job writes itself. Give another name."
        )
    if _is_same(out, data):
        raise UsageError(f"--out {out}: this is the table that --data names. Give another name.")
    scratch(out)  # Raises an error now, if there is no scratch space to keep the table in.
    version = ""
    if is_remote(out):
        folder, name = split_object(out)
        objects = open_objects(folder)
        found = objects.find(name)
        if found is None:
            next(objects.list(name), None)  # Raises an error if there is no bucket.
            return Place(out, overwrite, is_foreign=False, version="")
        version = found.version
    else:
        try_to_write(out)
    return Place(out, overwrite, _is_foreign(out, overwrite), version)


def try_to_write(out: str, option: str = "--out") -> None:
    """Write an unnamed temporary file to the nearest existing folder of `out`. Raises: UsageError, StorageFailed."""
    file = Path(out).resolve()
    with storage_errors(file), refused_at_start(f"{option} {out}", file, writing=True):
        folder = next(folder for folder in file.parents if os.path.lexists(folder))
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"\0")


def _is_foreign(out: str, overwrite: bool) -> bool:
    """Return whether `out` exists and predict did not write it. Raises: UsageError, if it must not be replaced."""
    file = local_copy(out) if is_remote(out) else Path(out).resolve()
    if not os.path.lexists(file) or _is_answer(file, out):
        return False
    if not file.is_file():
        raise UsageError(f"--out {out}: this is {'a folder' if file.is_dir() else 'no regular file'}. Give another name.")
    if not overwrite:
        raise UsageError(
            f"--out {out}: there is such a file, and predict did not write it. Give another name, or add --overwrite to "
            "replace it."
        )
    return True


def output_around(out: str) -> str | None:
    """Return the output folder of a run in which `out` has a name that the job uses itself; None otherwise."""
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
    """Return whether predict wrote this file. `called` is its name in --out, which decides the format."""
    with suppress(OSError, ValueError, csv.Error, pa.ArrowException), opened(file) as stream:
        if called.endswith(".parquet"):
            return (pq.read_schema(stream).metadata or {}).items() >= _METADATA.items()
        header = stream.read(_MAX_HEADER_CHARACTERS).partition(b"\n")[0].decode(errors="replace")
        found = tuple(next(csv.reader([header])))
        return any(found[: len(columns)] == columns for columns in (_COLUMNS, _BEFORE_0_13))
    return False


def _table(rows: Sequence[Row], class_names: Sequence[str], with_neighbours: bool) -> pa.Table:
    columns = (
        pa.array([row["path"] for row in rows], pa.string()),
        pa.array([row.get("label") for row in rows], pa.string()),
        pa.array([row.get("probability") for row in rows], pa.float64()),
        pa.array([row.get("familiarity") for row in rows], pa.float64()),
        pa.array([row.get("accepted") for row in rows], pa.bool_()),
        _as_json([row.get("top_3") for row in rows]),
        pa.array([row["error"] for row in rows], pa.string()),
    )
    found = dict(zip(_COLUMNS, columns, strict=True))
    if with_neighbours:
        found["neighbours"] = _as_json([row.get("neighbours") for row in rows])
    if class_names:
        unknown_C = np.full(len(class_names), np.nan)
        found_NC = [row.get("probabilities_C", unknown_C) for row in rows]
        probabilities_NC = np.reshape(found_NC, (len(rows), len(class_names)))  # Also without rows.
        for name, column_N in zip(class_names, probabilities_NC.T, strict=True):
            found[_OF_A_CLASS + name] = pa.array(column_N, pa.float64(), from_pandas=True)  # NaN becomes null.
    return pa.table(found).replace_schema_metadata(_METADATA)


def _as_json(values: Iterable[dict[str, float] | None]) -> pa.Array:
    return pa.array([None if of is None else json.dumps(of, ensure_ascii=False) for of in values], pa.string())


def _write_file(table: pa.Table, final: Path, called: str = "") -> None:
    with writing(final, beside(final)) as path, path.open("wb") as file:
        if (called or final.name).endswith(".csv"):
            pyarrow.csv.write_csv(_guarded(table), file)
        else:
            pq.write_table(table, file)


def _guarded(table: pa.Table) -> pa.Table:
    """Return the table with texts that a spreadsheet would run as formulas turned into plain text."""
    for k, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            texts = [None if text is None else guarded(text) for text in column.to_pylist()]
            table = table.set_column(k, table.column_names[k], pa.array(texts, pa.string()))
    return table
