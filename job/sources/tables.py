"""Photos named by a table: each row is judged alone and listed, with the number by which a spreadsheet shows it."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from job.console.places import check_readable, refused_at_start
from job.errors import DataUnusable, UsageError
from job.sources.base import SPLIT_FOLDERS, Entry, Listing, PhotoFolder
from job.sources.folders import list_files
from job.sources.local import Files, FoundFile, to_text
from job.sources.rows import Row, read_rows, several_labels
from job.storage.bucket.downloads import local_copy
from job.storage.bucket.objects import is_remote

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet")
# Beyond this share of photos, different labels of one photo are what the table is for, and not a mistake in it.
_MAX_CONFLICTS = 0.1

_Judged = tuple[Row, Entry]


def local_table(labels: str) -> str:
    """The whole path of the table that `--labels` names.

    Raises:
        UsageError: where there is none.
    """
    table, kinds = Path(labels), f"a table ({', '.join(TABLE_EXTENSIONS)})"
    if not table.is_file():
        raise UsageError(f"--labels {labels}: {'this is not a file' if table.exists() else 'no such file'}; give {kinds}.")
    if table.suffix.lower() not in TABLE_EXTENSIONS:
        raise UsageError(f"--labels {labels}: give {kinds}.")
    check_readable(f"--labels {labels}", table)
    return str(table.resolve())


@dataclass(frozen=True)
class TableSource:
    """A table of path, label and perhaps split; paths are relative to `photos`, and nothing outside it is ever opened.

    `table` is a path or the URI of an object. Where `lists_folder` is set, files that no row names are listed as well.
    """

    photos: PhotoFolder
    table: str
    lists_folder: bool = False
    labelled: bool = True

    @property
    def uri(self) -> str:
        return self.photos.uri if self.lists_folder else self.table

    @property
    def patience_s(self) -> float:
        return self.photos.patience_s

    def prepare(self) -> None:
        self.photos.prepare()

    def listing(self) -> Listing:
        """
        Raises:
            DataUnusable: where the table cannot be read, labels nothing, or gives photos several labels.
        """
        file = local_copy(self.table) if is_remote(self.table) else Path(self.table)
        table = read_rows(file, labelled=self.labelled, called=self.table)
        class_names = {row.label for row in table.rows} - {""}
        if self.labelled and not class_names:
            raise DataUnusable(f"{self.table}: unlabelled: no row has a label. Fill in the label column.")
        files = self.photos.files()
        judge = _Judge(files, self.labelled, any(row.split for row in table.rows))
        judged = [(row, judge.entry(row)) for row in table.rows]
        rows_of_photo: dict[str, list[_Judged]] = defaultdict(list)
        for row, entry in judged:
            if entry.verdict is None:
                rows_of_photo[entry.path].append((row, entry))
        self._refuse_several_labels(rows_of_photo)
        settled = [(row, entry) for row, entry in judged if entry.verdict]
        for rows in rows_of_photo.values():
            settled += _judge_copies(rows) if len(rows) > 1 else rows
        entries = [entry for _, entry in settled if entry.verdict is None]
        notes = table.notes
        if self.lists_folder:
            with refused_at_start(f"--data {files.uri}", files.uri):
                below = list_files(files, labelled=False)
            entries += self._unnamed(below, files.uri, {entry.path for row, entry in judged if row.path.strip()})
            notes += below.notes
        entries += _with_own_paths([pair for pair in settled if pair[1].verdict], {entry.path for entry in entries})
        if judge.num_extensions_added:
            notes += (f"{judge.num_extensions_added:,} rows name a photo without its extension; the photo was found.",)
        return Listing(tuple(sorted(entries, key=attrgetter("path"))), tuple(sorted(class_names)), notes)

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        return self.photos.read(entries)

    def location(self, entry: Entry) -> str:
        return self.photos.location(entry)

    def _refuse_several_labels(self, rows_of_photo: dict[str, list[_Judged]]) -> None:
        several = [rows for rows in rows_of_photo.values() if len({entry.label for _, entry in rows}) > 1]
        if len(several) > _MAX_CONFLICTS * len(rows_of_photo):
            first, other = several[0][0], _other(several[0][0], several[0], "label")
            raise several_labels(
                self.table,
                f"{len(several):,} of the {len(rows_of_photo):,} photos that it names have several labels ({first[1].path}: "
                f"{first[1].label!r} in row {first[0].number}, {other[1].label!r} in row {other[0].number})",
            )

    def _unnamed(self, below: Listing, root: str, named: Collection[str]) -> Iterator[Entry]:
        """Return entries for the files below the root that are in no row."""
        root = root.rstrip("/") + "/"
        table = to_text(self.table.removeprefix(root)) if self.table.startswith(root) else None
        for entry in below.entries:
            if entry.path == table:
                yield entry._replace(verdict="ignored", reason="the labels table")
            elif entry.path not in named and entry.verdict == "ignored":
                yield entry
            elif entry.path not in named:
                yield Entry(entry.path, None, None, entry.num_bytes, "", "ignored", "no row of the labels table names it")


@dataclass
class _Judge:
    files: Files
    labelled: bool
    with_splits: bool
    num_extensions_added: int = 0

    def entry(self, row: Row) -> Entry:
        """Return the entry of a row, judged by itself."""
        label, split = row.label or None, SPLIT_FOLDERS.get(row.split.lower())
        if row.fault or not row.path.strip():
            fault = row.fault or f"row {row.number} names no path"
            return Entry(f"row {row.number}", label, split, 0, "", "quarantined", fault)
        found = self.files.find(row.path)
        if not isinstance(found, FoundFile):
            fault = f"the table names it in row {row.number}, and {found}"
            return Entry(to_text(row.path), label, split, 0, "", "quarantined", fault)
        self.num_extensions_added += found.extension_added
        path, size, version = to_text(found.path), found.num_bytes, found.version
        if fault := self._fault(row):
            return Entry(path, label, split, size, "", "quarantined", fault)
        return Entry(path, label, split, size, version, real_path=found.real_path)

    def _fault(self, row: Row) -> str:
        if self.labelled and not row.label:
            return f"row {row.number} has no label"
        if row.split and row.split.lower() not in SPLIT_FOLDERS:
            return f"row {row.number} puts it into {row.split!r}, and there are train, val and test"
        if self.with_splits and not row.split:
            return f"row {row.number} has no split, and other rows have one"
        return ""


def _judge_copies(rows: list[_Judged]) -> list[_Judged]:
    """Rows of one photo: where they contradict each other nobody knows which one is right, else the first is used."""
    for what in ("label", "split"):
        if len({getattr(entry, what) for _, entry in rows}) > 1:
            return [(row, _in_conflict((row, entry), _other((row, entry), rows, what), what)) for row, entry in rows]
    reason = f"the same photo as in row {rows[0][0].number}"
    return [rows[0], *((row, entry._replace(verdict="ignored", reason=reason)) for row, entry in rows[1:])]


def _other(one: _Judged, rows: list[_Judged], what: str) -> _Judged:
    """The first row that says something else."""
    return next(pair for pair in rows if getattr(pair[1], what) != getattr(one[1], what))


def _in_conflict(one: _Judged, other: _Judged, what: str) -> Entry:
    said = " and ".join(f"{getattr(entry, what)!r} in row {row.number}" for row, entry in (one, other))
    return one[1]._replace(verdict="quarantined", reason=f"{what} conflict: {said}")


def _with_own_paths(refused: list[_Judged], taken: set[str]) -> Iterator[Entry]:
    """Every row stays an entry of its own: a path that stands in the listing already gets the number of its row."""
    for row, entry in sorted(refused, key=lambda pair: pair[0].number):
        path = entry.path
        while path in taken:
            path += f" (row {row.number})"
        taken.add(path)
        yield entry._replace(path=path)
