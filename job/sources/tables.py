"""The photos that a table names. Each row becomes an entry, and messages give its number as a spreadsheet shows it."""

import shlex
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from job.console.places import refused_at_start
from job.errors import DataUnusable
from job.sections import IntakeConfig
from job.sources.base import Entry, Listing, PhotoFolder, Split, split_names
from job.sources.columns import is_unassigned, several_labels
from job.sources.folders import list_files
from job.sources.local import Files, FoundFile, from_text, to_text
from job.sources.matching import Matching
from job.sources.rows import LabelTable, Row, read_rows
from job.sources.walk import quarantined
from job.storage.bucket.downloads import local_copy
from job.storage.bucket.objects import is_remote

# If more than this share of the photos have several labels, that is the purpose of the table, and not a mistake in it.
_MAX_CONFLICTS = 0.1


@dataclass(frozen=True)
class TableSource:
    """A table of paths and labels, and perhaps splits and groups. Its paths are relative to `photos`, which opens the files.

    `table` is a path or the URI of an object. With `lists_folder`, files that no row names become entries, too.
    """

    photos: PhotoFolder
    table: str
    lists_folder: bool = False
    labelled: bool = True
    settings: IntakeConfig = IntakeConfig()

    @property
    def uri(self) -> str:
        return self.photos.uri if self.lists_folder else self.table

    @property
    def patience_s(self) -> float:
        return self.photos.patience_s

    def prepare(self) -> None:
        self.photos.prepare()

    def listing(self) -> Listing:
        """Return the photos that the table names, with its labels. Raises as `list_tables` does."""
        tables = [(self.table, "")]
        files = self.photos.files()
        return list_tables(files, tables, self.settings, lists_folder=self.lists_folder, labelled=self.labelled)

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        return self.photos.read(entries)

    def location(self, entry: Entry) -> str:
        return self.photos.location(entry)


class _Judged(NamedTuple):
    """A row, its name in messages, and the entry that it became."""

    row: Row
    name: str
    entry: Entry


def list_tables(
    files: Files, tables: Sequence[tuple[str, str]], settings: IntakeConfig, *, lists_folder: bool, labelled: bool = True
) -> Listing:
    """Return the photos that tables name, with the labels that they give.

    `tables` are paths below the root of `files`, or absolute paths or URIs, each with the folder at which the paths in the
    table begin. With `lists_folder`, files that no row names become ignored entries.

    Raises:
        DataUnusable: if a table cannot be read, has no labels, names no files, or gives photos several labels.
    """
    read = []
    for name, folder in tables:
        table = _located(files, name)
        file = local_copy(table) if is_remote(table) else Path(table)
        read.append((table, folder, read_rows(file, labelled=labelled, called=table, settings=settings)))
    called = read[0][0] if len(read) == 1 else f"{len(read)} tables in {files.uri}"
    class_names = {row.label for _, _, table in read for row in table.rows} - {""}
    if labelled and not class_names:
        raise DataUnusable(f"{called}: unlabelled: no row has a label. Fill in the label column.")
    _refuse_other_columns(called, read)
    judge = _Judge(files, labelled, _with_splits(read, tables))
    matching = Matching(files, called, read[0][2])
    judged = [
        judged
        for (location, folder, table), (name, _) in zip(read, tables, strict=True)
        for judged in judge.entries(table, folder, f" of {name}" if len(read) > 1 else "", matching)
    ]
    rows_of_photo: dict[str, list[_Judged]] = defaultdict(list)
    for one in judged:
        if one.entry.verdict is None:
            rows_of_photo[one.entry.path].append(one)
    _refuse_several_labels(called, rows_of_photo)
    settled = [one for one in judged if one.entry.verdict]
    for rows in rows_of_photo.values():
        settled += _judge_copies(rows) if len(rows) > 1 else rows
    entries = [one.entry for one in settled if one.entry.verdict is None]
    notes = tuple(dict.fromkeys(note for _, _, table in read for note in table.notes)) + judge.notes + matching.notes
    if lists_folder:
        with refused_at_start(f"--data {files.uri}", files.uri):
            below = list_files(files, labelled=False)
        own = {location for location, _, _ in read}
        entries += _unnamed(below, files.uri, own, {one.entry.path for one in judged if one.row.names_a_path})
        notes += below.notes
    entries += _with_own_paths([one for one in settled if one.entry.verdict], {entry.path for entry in entries})
    columns = read[0][2].columns
    return Listing(
        tuple(sorted(entries, key=attrgetter("path"))),
        tuple(sorted(class_names)),
        notes,
        _origin(columns.get("label"), called),
        _origin(columns.get("split"), called) if "split" in columns else "the split folders",
    )


def _origin(column: str | None, called: str) -> str:
    name = PurePosixPath(called).name if " tables in " not in called else called
    return f"column {column!r} of {name}" if column else f"the columns of {name}"


def _located(files: Files, name: str) -> str:
    return name if is_remote(name) or name.startswith("/") else f"{files.uri.rstrip('/')}/{from_text(name)}"


def _with_splits(read: Sequence[tuple[str, str, LabelTable]], tables: Sequence[tuple[str, str]]) -> dict[str, Split] | bool:
    """Return True if rows have a split, the splits by folder name if the photos are in split folders, otherwise False."""
    if any(row.says and not is_unassigned(row.says) for _, _, table in read for row in table.rows):
        return True
    folders = {folder for _, folder in tables if folder}
    folders |= {
        row.path.replace("\\", "/").partition("/")[0] + "/" for _, _, table in read for row in table.rows if "/" in row.path
    }
    splits = split_names(folder.rstrip("/") for folder in folders)
    return splits if "train" in splits.values() and len(set(splits.values())) > 1 else False


def _refuse_other_columns(called: str, read: Sequence[tuple[str, str, LabelTable]]) -> None:
    """Refuse tables that have their labels in different columns, because one of the columns may not be labels."""
    tables = {table.columns.get("label", ""): location for location, _, table in read}
    if len(tables) > 1:
        (one, first), (other, second), *_ = tables.items()
        training = max(tables.values(), key=lambda location: "train" in location)
        raise DataUnusable(
            f"{called}: the labels would come from column {one!r} of {first}, and from column {other!r} of {second}.",
            f"Give the column that all tables have (--label-column NAME), or one table: --data {shlex.quote(training)}",
        )


def _refuse_several_labels(table: str, rows_of_photo: dict[str, list[_Judged]]) -> None:
    several = [rows for rows in rows_of_photo.values() if len({one.entry.label for one in rows}) > 1]
    if len(several) > _MAX_CONFLICTS * len(rows_of_photo):
        first = several[0][0]
        other = _other(first, several[0], "label")
        raise several_labels(
            table,
            f"{len(several):,} of the {len(rows_of_photo):,} photos that it names have several labels ({first.entry.path}: "
            f"{first.entry.label!r} in row {first.name}, {other.entry.label!r} in row {other.name})",
        )


def _unnamed(below: Listing, root: str, tables: Collection[str], named: Collection[str]) -> Iterator[Entry]:
    """Yield an ignored entry for each file below the root that no row names."""
    root = root.rstrip("/") + "/"
    own = {to_text(table.removeprefix(root)) for table in tables if table.startswith(root)}
    for entry in below.entries:
        if entry.path in own:
            yield entry._replace(verdict="ignored", reason="the labels table")
        elif entry.path not in named and entry.verdict == "ignored":
            yield entry
        elif entry.path not in named:
            yield Entry(entry.path, None, None, entry.num_bytes, "", "ignored", "no row of the labels table names it")


@dataclass
class _Judge:
    """The state while rows become entries. `splits` is the result of `_with_splits`."""

    files: Files
    labelled: bool
    splits: dict[str, Split] | bool
    num_extensions_added: int = 0
    num_unassigned: int = 0
    num_without_group: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        counted = {
            "rows name a photo without its extension; the photo was found.": self.num_extensions_added,
            "rows are in no split, and others are: their photos are training photos.": self.num_unassigned,
            "rows have no group; their photos may be in another split than others.": self.num_without_group,
        }
        return tuple(f"{count:,} {what}" for what, count in counted.items() if count)

    def entries(self, table: LabelTable, folder: str, of_table: str, matching: Matching) -> Iterator[_Judged]:
        """Yield each row with its entry. Rows that name the same photo are compared later, in `_judge_copies`."""
        found = [self.files.find(folder + row.path) if row.names_a_path else "" for row in table.rows]
        rows = [row for row in table.rows if row.names_a_path]
        missing = [k for k, row in enumerate(table.rows) if row.names_a_path and not isinstance(found[k], FoundFile)]
        for k, path in matching.forgive([(k, folder + table.rows[k].path) for k in missing], len(rows)):
            found[k] = self.files.find(from_text(path))
        matching.refuse(rows, [table.rows[k] for k in missing if not isinstance(found[k], FoundFile)])
        for row, file in zip(table.rows, found, strict=True):
            name = f"{row.number}{of_table}"
            yield _Judged(row, name, self._entry(row, name, file, "group" in table.columns))

    def _entry(self, row: Row, name: str, found: FoundFile | str, has_groups: bool) -> Entry:
        label = row.label or None
        if not row.names_a_path:
            fault = row.fault or f"row {name} names no path"
            return quarantined(f"row {name}", label, self._split(row, ""), fault)
        if not isinstance(found, FoundFile):
            fault = f"the table names it in row {name}, and {found}"
            return quarantined(to_text(row.path), label, self._split(row, ""), fault)
        self.num_extensions_added += found.extension_added
        self.num_without_group += has_groups and not row.group
        path = to_text(found.path)
        split = self._split(row, path)
        if fault := self._fault(row, name):
            return quarantined(path, label, split, fault, found.num_bytes)
        return Entry(path, label, split, found.num_bytes, found.version, real_path=found.real_path, group=row.group)

    def _split(self, row: Row, path: str) -> Split | None:
        if isinstance(self.splits, dict):
            return self.splits.get(path.partition("/")[0])
        if self.splits and is_unassigned(row.says):
            self.num_unassigned += 1
            return "train"
        return row.split or None  # type: ignore[return-value]

    def _fault(self, row: Row, name: str) -> str:
        if row.fault:
            return row.fault
        if self.labelled and not row.label:
            return f"row {name} has no label"
        if row.says and not row.split and not is_unassigned(row.says):
            return f"row {name} puts it into {row.says!r}, and there are train, val and test"
        if self.splits is True and not row.says:
            return f"row {name} has no split, and other rows have one"
        return ""


def _judge_copies(rows: list[_Judged]) -> list[_Judged]:
    """Settle rows that name the same photo: use the first and ignore the others, or quarantine all if they contradict."""
    for what in ("label", "split", "group"):
        if len({getattr(one.entry, what) for one in rows}) > 1:
            return [one._replace(entry=_in_conflict(one, _other(one, rows, what), what)) for one in rows]
    reason = f"the same photo as in row {rows[0].name}"
    return [rows[0], *(one._replace(entry=one.entry._replace(verdict="ignored", reason=reason)) for one in rows[1:])]


def _other(one: _Judged, rows: list[_Judged], what: str) -> _Judged:
    """Return the first row that has another value for `what`."""
    return next(other for other in rows if getattr(other.entry, what) != getattr(one.entry, what))


def _in_conflict(one: _Judged, other: _Judged, what: str) -> Entry:
    said = " and ".join(f"{getattr(each.entry, what)!r} in row {each.name}" for each in (one, other))
    return one.entry._replace(verdict="quarantined", reason=f"{what} conflict: {said}")


def _with_own_paths(refused: list[_Judged], taken: set[str]) -> Iterator[Entry]:
    """Yield an entry with a unique path for each refused row: the number of the row is added to a path that is taken."""
    for one in sorted(refused, key=lambda one: one.row.number):
        path = one.entry.path
        while path in taken:
            path += f" (row {one.name})"
        taken.add(path)
        yield one.entry._replace(path=path)
