"""A look into the folders of a source, before anything is listed: which of them hold photos, and which hold tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from job.sources.local import IMAGE_EXTENSIONS, Child, Files, to_text
from job.sources.opening import raise_of_the_machine
from job.sources.walk import is_folder, is_junk, is_junk_folder

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".xlsx", ".csv.gz", ".tsv.gz", ".jsonl.gz")


class _Root(NamedTuple):
    """The source itself, as if it were in a folder."""

    name: str = ""
    path: str = ""

    def is_dir(self) -> bool:
        return True

    def is_symlink(self) -> bool:
        return False


class Folder(NamedTuple):
    """A folder with its path below the source as text."""

    child: Child
    path: str

    @property
    def name(self) -> str:
        return to_text(self.child.name)


ROOT = Folder(_Root(), "")


@dataclass(frozen=True)
class Tree:
    """Looks into folders, and gathers nothing."""

    files: Files

    def uri(self, folder: Folder) -> str:
        return f"{self.files.uri.rstrip('/')}/{folder.path}".rstrip("/")

    def folders(self, folder: Folder) -> list[Folder]:
        """Return the folders in a folder that may hold photos."""
        prefix = f"{folder.path}/" if folder.path else ""
        return [
            Folder(child, prefix + to_text(child.name))
            for child in self.children(folder)
            if not child.name.startswith(".") and not is_junk_folder(child.name) and is_folder(child)
            if not self.files.is_output(child.path)
        ]

    def full_folders(self, folder: Folder) -> list[Folder]:
        """Return the folders in a folder that hold photos, or whose folders do."""
        return self.with_photos(self.folders(folder))

    def tables(self, folder: Folder) -> list[str]:
        """Return the names of the tables in a folder."""
        return [child.name for child in self.children(folder) if is_table(child.name) and not is_folder(child)]

    def has_photos(self, folder: Folder) -> bool:
        """Return whether a folder itself holds files that are named like photos, or have no extension."""
        place = self._place(folder)
        try:
            return place is not None and any(map(is_photo, self.files.glance(place)))
        except OSError as error:
            raise_of_the_machine(error, place or "")
            return False

    def photos_below(self, folder: Folder) -> bool:
        """Return whether a folder, or any folder below it, holds photos."""
        waiting, seen = [folder], set()
        while waiting:
            folder = waiting.pop()
            if self.has_photos(folder):
                return True
            identity = self.files.identity(folder.child.path)
            if identity not in seen:  # A link may lead back to a folder above it.
                seen.add(identity)
                waiting += self.folders(folder)
        return False

    def with_photos(self, folders: Iterable[Folder]) -> list[Folder]:
        return [folder for folder in folders if self.photos_below(folder)]

    def core(self, folder: Folder) -> Folder:
        """Return the first folder on the way down that holds photos or several folders with photos."""
        while not self.has_photos(folder) and len(inside := self.full_folders(folder)) == 1:
            folder = inside[0]
        return folder

    def children(self, folder: Folder) -> Sequence[Child]:
        """Return what is in a folder; nothing where it cannot be listed, which the walk will say."""
        place = self._place(folder)
        try:
            return () if place is None else self.files.children(place)
        except OSError as error:
            raise_of_the_machine(error, place or "")
            return ()

    def _place(self, folder: Folder) -> str | None:
        """Return the path of a folder, with links followed; None where a link may not be followed."""
        followed = self.files.follow(folder.child) if folder.child.is_symlink() else folder.child
        return None if isinstance(followed, str) else followed.path


def is_photo(child: Child) -> bool:
    """Return whether a child is named like a photo or has no extension, and is no folder."""
    _, dot, extension = child.name.rpartition(".")
    return (not dot or f".{extension.lower()}" in IMAGE_EXTENSIONS) and not is_junk(child.name) and not is_folder(child)


def is_table(name: str) -> bool:
    return name.lower().endswith(TABLE_EXTENSIONS)
