"""Help for rows whose path finds no file: other spellings of the path, and changes that would make the rows match."""

import os
import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from job.errors import DataUnusable
from job.sources.local import Files, FoundFile, LocalFiles, is_named_like_a_photo
from job.sources.rows import LabelTable, Row
from job.sources.walk import Walk

_NAMES_COMPARED = 5_000
_FOLDERS_ABOVE = 3
_FOLDERS_BESIDE = 20
_BUCKETS = ("gs://", "s3://")

Find = Callable[[str], str | None]


class _Remedy(NamedTuple):
    """A change that would make rows match: how many rows, what to change, and an example: a path and its file."""

    num_rows: int
    change: str
    path: str
    file: str


@dataclass
class Matching:
    """The search for the files of rows that find none, among all files below the root. `table` is its name in messages."""

    files: Files
    table: str
    label_table: LabelTable
    notes: tuple[str, ...] = field(default=())

    def forgive(self, missing: Sequence[tuple[int, str]], num_rows: int) -> Iterator[tuple[int, str]]:
        """Yield (index, path of the file) for each row that finds exactly one file under another spelling of its path.

        Spellings differ in letter case, Unicode form or a missing extension. If no row finds a file, a beginning that all
        paths share is dropped, but only if then every row finds one. `missing` has (index, path) of the rows without a file,
        and `num_rows` is the number of rows that name a path.
        """
        spelled = {k: file for k, path in missing if (file := self._find_spelled(path))}
        if spelled:
            self.notes += (
                f"{len(spelled):,} rows write a path in other letters (case, Unicode form) than its file has it.",
            )
        yield from spelled.items()
        if missing and not spelled and len(missing) == num_rows:
            prefix = _shared_prefix([path for _, path in missing], self._find_spelled)
            if prefix:
                self.notes += (
                    f"Each path in {self.table} begins with {prefix}, which was dropped: then all rows find a file.",
                )
                for k, path in missing:
                    yield k, self._find_spelled(_slashes(path)[len(prefix) :]) or ""

    def refuse(self, rows: Sequence[Row], missing: Sequence[Row]) -> None:
        """Add a note that says what would make the rows match that find no file. Raises: DataUnusable, if none does."""
        if not missing:
            return
        lines = self._diagnosis(rows, missing)
        if len(missing) == len(rows):
            raise DataUnusable(*lines)
        self.notes += (" ".join(lines[:-1]),)

    def _diagnosis(self, rows: Sequence[Row], missing: Sequence[Row]) -> list[str]:
        remedies = [remedy for remedy in self._remedies([_slashes(row.path) for row in missing]) if remedy.num_rows]
        best = max(remedies, key=lambda remedy: remedy.num_rows, default=None)
        row = next((row for row in missing if best and _slashes(row.path) == best.path), missing[0])
        nearest = best.file if best else self._nearest(_slashes(row.path))
        columns = self.label_table.columns
        lines = [
            f"{self.table}: {len(missing):,} of {len(rows):,} rows find no file. Row {row.number} names {row.path!r}. "
            f"Looked in {self.files.uri}"
            + (f"; the nearest file is {nearest!r}." if nearest else ", which holds no files."),
        ]
        if all("://" in row.path for row in missing):
            lines.append(
                "These are URLs, and the job downloads no photos: download them, and write their paths into the table."
            )
        if all(row.path.startswith(_BUCKETS) for row in missing):
            bucket = os.path.commonpath([row.path.partition("://")[2].strip("/").rpartition("/")[0] for row in missing])
            if bucket:
                uri = f"{missing[0].path.partition('://')[0]}://{bucket}"
                lines.append(f"To read them in their bucket: --data {shlex.quote(uri)} --labels {shlex.quote(self.table)}")
        if best:
            lines.append(f"{best.num_rows:,} of {len(missing):,} of these rows would match: {best.change}")
        named = ", ".join(f"{kind} from {name!r}" for kind, name in columns.items())
        header = ", ".join(repr(name[:60]) for name in self.label_table.names[:20])
        lines.append(
            f"The header is {header}, and the job takes {named}. To take others: --path-column NAME --label-column NAME"
        )
        return lines

    @cached_property
    def _paths(self) -> list[str]:
        walk = Walk(self.files)
        walk.below("")
        return [entry.path for entry in walk.entries if entry.verdict is None]

    @cached_property
    def _spelled(self) -> dict[str, list[str]]:
        return _by(_spelling, self._paths)

    @cached_property
    def _without_extension(self) -> dict[str, list[str]]:
        return _by(lambda path: _stem(_spelling(path)), self._paths)

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        return _by(lambda path: _spelling(path).rpartition("/")[2], self._paths)

    def _find_spelled(self, path: str) -> str | None:
        spelling = _spelling(_slashes(path))
        return _only(self._spelled, spelling) or _only(self._without_extension, spelling)

    def _files_of_name(self, path: str) -> list[str]:
        """Return the files below the root with the name of a path, or with that name and another extension."""
        if "://" in path:
            path = re.sub(r"[?#].*", "", path)
        name = _spelling(path).rpartition("/")[2]
        return self._names.get(name) or self._stems_of_names.get(_stem(name), [])

    @cached_property
    def _stems_of_names(self) -> dict[str, list[str]]:
        return _by(lambda path: _stem(_spelling(path).rpartition("/")[2]), self._paths)

    def _remedies(self, paths: list[str]) -> Iterator[_Remedy]:
        """Yield changes that may help, the simplest first."""
        prefixes = Counter(prefix for path in paths[:100] for prefix in _prefixes(path))
        for prefix, _ in prefixes.most_common(20):
            rests = {path: path[len(prefix) :] for path in paths if path.startswith(prefix)}
            found = {path: file for path, rest in rests.items() if (file := self._find_spelled(rest))}
            yield _remedy(f"drop {prefix!r} at the beginning of each path.", paths, found.get)
        yield _remedy(
            "change the extension to that of the file.", paths, lambda p: _only(self._without_extension, _stem(_spelling(p)))
        )
        zeros = _by(lambda path: _without_zeros(_stem(_spelling(path))), self._paths)
        yield _remedy(
            "write the characters for which codes such as %20 stand.", paths, lambda p: self._find_spelled(unquote(p))
        )
        yield _remedy(
            "write the leading zeros of the names, which spreadsheets drop.",
            paths,
            lambda p: _only(zeros, _without_zeros(_stem(_spelling(p)))),
        )
        yield from self._other_roots(paths)

    def _other_roots(self, paths: list[str]) -> Iterator[_Remedy]:
        table = shlex.quote(self.table)
        of_folder: dict[str, dict[str, str]] = defaultdict(dict)
        for path in paths:
            for file in self._files_of_name(path):
                of_folder[file[: file.rfind("/") + 1]].setdefault(path, file)
        if of_folder:  # Of folders with the same names, such as train/ and test/, that of train.csv is train/.
            stem = os.path.basename(self.table).lower()  # noqa: PTH119
            folder = max(
                of_folder, key=lambda name: (len(of_folder[name]), name.rstrip("/").rpartition("/")[2].lower() in stem)
            )
            below = shlex.quote(f"{self.files.uri.rstrip('/')}/{folder}".rstrip("/"))
            how_many = "all" if len(of_folder[folder]) == len({*paths}) else "many"
            change = f"{how_many} of these names are in one folder: --data {below} --labels {table}"
            yield _remedy(change, paths, of_folder[folder].get)
            found = {path: files[0] for path in paths if len(files := self._files_of_name(path)) == 1}
            yield _remedy("write the path below --data: the names are there, in other folders.", paths, found.get)
        root = self.files.uri
        if root.startswith("/"):
            for _ in range(_FOLDERS_ABOVE):
                root = os.path.dirname(root)  # noqa: PTH120
                there = {path: path for path in paths[:200] if not path.startswith("/") and _is_file(f"{root}/{path}")}
                change = f"the paths begin in another folder: --data {shlex.quote(root)} --labels {table}"
                yield _remedy(change, paths[:200], there.get)
            outside = {path: os.path.normpath(os.path.join(self.files.uri, path)) for path in paths[:200]}  # noqa: PTH118
            outside = {path: file for path, file in outside.items() if path.startswith(("/", "../")) and _is_file(file)}
            if outside:
                root = shlex.quote(os.path.commonpath([os.path.dirname(file) for file in outside.values()]))  # noqa: PTH120
                change = f"these files are in another folder: --data {root} --labels {table}"
                yield _remedy(change, paths[:200], outside.get)
            if not any(map(is_named_like_a_photo, self._paths)):
                yield from self._beside(paths[:200])

    def _beside(self, paths: list[str]) -> Iterator[_Remedy]:
        """Yield a change for each folder beside --data: the table may be in one folder, and the photos in another."""
        with suppress(OSError):
            beside = sorted(folder for folder in Path(self.files.uri).parent.iterdir() if folder.is_dir())
            for folder in beside[:_FOLDERS_BESIDE]:
                files = LocalFiles(folder)
                found = {path: f"{folder}/{file.path}" for path in paths if isinstance(file := files.find(path), FoundFile)}
                change = (
                    f"the photos are in another folder: --data {shlex.quote(str(folder))} --labels {shlex.quote(self.table)}"
                )
                yield _remedy(change, paths, found.get)

    def _nearest(self, path: str) -> str:
        names = list(self._names)[:_NAMES_COMPARED]
        found = get_close_matches(_spelling(path).rpartition("/")[2], names, n=1, cutoff=0.0)
        return self._names[found[0]][0] if found else ""


def _remedy(change: str, paths: Sequence[str], find: Find) -> _Remedy:
    found = [(path, file) for path in paths if (file := find(path))]
    return _Remedy(len(found), change, *(found[0] if found else ("", "")))


def _shared_prefix(paths: Sequence[str], find: Find) -> str:
    """Return the shortest beginning that all paths share and without which each finds a file; empty if there is none."""
    paths = [_slashes(path) for path in paths]
    for prefix in _prefixes(paths[0]):
        if "://" not in prefix and all(path.startswith(prefix) and find(path[len(prefix) :]) for path in paths):
            return prefix
    return ""


def _prefixes(path: str) -> list[str]:
    return [path[: found.end()] for found in re.finditer("/", path) if found.end() < len(path)]


def _slashes(path: str) -> str:
    return path.strip().replace("\\", "/").removeprefix("./")


def _spelling(path: str) -> str:
    """Return a name in one spelling. Names that differ only in letter case or Unicode form have the same spelling."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _stem(path: str) -> str:
    return path.rpartition(".")[0] if is_named_like_a_photo(path) else path


def _without_zeros(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + re.sub(r"(?<!\d)0+(?=\d)", "", name)


def _by(key: Callable[[str], str], paths: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        found[key(path)].append(path)
    return found


def _only(paths: dict[str, list[str]], key: str) -> str | None:
    found = paths.get(key, ())
    return found[0] if len(found) == 1 else None


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)  # noqa: PTH113
    except ValueError:  # It holds a zero byte.
        return False
