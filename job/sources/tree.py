"""Questions about the folders of a source, asked before its files are listed: which of them have photos or tables?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from job.sources.local import Child, Files, Target, may_be_a_photo, to_text
from job.sources.opening import raise_of_the_machine
from job.sources.walk import is_folder, is_junk, is_junk_folder

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".xlsx", ".csv.gz", ".tsv.gz", ".jsonl.gz")


class Folder(NamedTuple):
    """A folder with its path below the source, as text."""

    child: Child
    path: str

    @property
    def name(self) -> str:
        return to_text(self.child.name)


ROOT = Folder(Target("", ""), "")


@dataclass(frozen=True)
class Tree:
    """The folders of a source. Its methods look into folders, and list no files for the job."""

    files: Files
    _known: dict[str, bool] = field(default_factory=dict)
    _below: dict[str, bool] = field(default_factory=dict)

    def uri(self, folder: Folder) -> str:
        return f"{self.files.uri.rstrip('/')}/{folder.path}".rstrip("/")

    def folders(self, folder: Folder) -> list[Folder]:
        """Return the folders in a folder, without hidden ones, junk and outputs of this job."""
        prefix = f"{folder.path}/" if folder.path else ""
        return [
            Folder(child, prefix + to_text(child.name))
            for child in self.children(folder)
            if not child.name.startswith(".") and not is_junk_folder(child.name) and is_folder(child)
            if not self.files.is_output(child.path)
        ]

    def full_folders(self, folder: Folder) -> list[Folder]:
        """Return the folders in a folder that have photos, directly or below."""
        return self.with_photos(self.folders(folder))

    def tables(self, folder: Folder) -> list[str]:
        """Return the names of the tables in a folder, without hidden files: macOS leaves `._labels.csv` beside a copy."""
        children = [child for child in self.children(folder) if is_table(child.name) and not is_folder(child)]
        return [child.name for child in children if not child.name.startswith(".")]

    def has_photos(self, folder: Folder) -> bool:
        """Return whether a folder directly contains files that are named like photos or have no extension."""
        if folder.path not in self._known:
            place = self._place(folder)
            try:
                found = place is not None and any(map(is_photo, self.files.glance(place)))
            except OSError as error:
                raise_of_the_machine(error, place or "")
                found = False
            self._known[folder.path] = found
        return self._known[folder.path]

    def photos_below(self, folder: Folder) -> bool:
        """Return whether a folder, or any folder below it, has photos."""
        if folder.path not in self._below:
            found = self._first_with_photos(folder)
            self._below[folder.path] = found is not None
            while found and len(found) > len(folder.path):  # The folders on the way have photos below, too.
                self._below[found] = True
                found = found.rpartition("/")[0]
        return self._below[folder.path]

    def _first_with_photos(self, folder: Folder) -> str | None:
        """Return the path of the folder, or of a folder below it, that directly contains photos; None if there is none."""
        waiting, seen = [folder], set()
        while waiting:
            folder = waiting.pop()
            if self.has_photos(folder):
                return folder.path
            try:
                identity = self.files.identity(folder.child.path)
            except OSError:  # The folder above it may be listed, but not entered.
                continue
            if identity not in seen:  # A link may lead back to a folder above it.
                seen.add(identity)
                waiting += self.folders(folder)
        return None

    def with_photos(self, folders: Iterable[Folder]) -> list[Folder]:
        return [folder for folder in folders if self.photos_below(folder)]

    def core(self, folder: Folder) -> Folder:
        """Return the folder itself, or the first folder below it that has photos or more than one folder with photos."""
        while not self.has_photos(folder) and len(inside := self.full_folders(folder)) == 1:
            folder = inside[0]
        return folder

    def children(self, folder: Folder) -> Sequence[Child]:
        """Return the files and folders in a folder; nothing if it cannot be listed, because the walk reports that."""
        place = self._place(folder)
        try:
            return () if place is None else self.files.children(place)
        except OSError as error:
            raise_of_the_machine(error, place or "")
            return ()

    def _place(self, folder: Folder) -> str | None:
        """Return the `Child.path` of a folder, with links followed; None if a link may not be followed."""
        followed = self.files.follow(folder.child) if folder.child.is_symlink() else folder.child
        return None if isinstance(followed, str) else followed.path


def is_photo(child: Child) -> bool:
    """Return whether a child is a file that is named like a photo or has no extension."""
    return may_be_a_photo(child.name) and not is_junk(child.name) and not is_folder(child)


def is_table(name: str) -> bool:
    return name.lower().endswith(TABLE_EXTENSIONS)
