"""Where photos come from. A source lists entries in a fixed order and reads their bytes; nothing else knows more.

This module has the folder of class folders, with or without split folders above them; `tables.py` has tables. Buckets
and named data sets will be further classes with the same three members.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path, PurePath
from typing import Literal, NamedTuple, Protocol

from job.data.files import IMAGE_EXTENSIONS, LocalFiles, read_files, to_text
from job.errors import DataUnusable, UsageError

Split = Literal["train", "val", "test"]

SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_JUNK = re.compile(
    r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini|\.gitkeep|\.keep|\.gitignore|\.gitattributes|README(\..*)?|LICEN[SC]E(\..*)?",
    re.IGNORECASE,
)
_JUNK_FOLDERS = frozenset({".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"})


class Entry(NamedTuple):
    """One thing that the source lists. A tuple, because a frozen dataclass takes longer to make than its file to look at.

    `path` is relative to the source, parts joined by `/`, always valid Unicode. `version` changes when the bytes may have.
    `verdict` is set where the listing alone decides what becomes of the entry, with `reason` in plain words.
    """

    path: str
    label: str | None
    split: Split | None
    num_bytes: int
    version: str
    verdict: Literal["ignored", "quarantined"] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Listing:
    """All entries, sorted by path, and the classes: every class that the source names, with photos or without.

    `notes`: what a user should know about the listing as a whole, in plain words.
    """

    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """Picklable, because decode processes read for themselves."""

    @property
    def uri(self) -> str: ...

    def listing(self) -> Listing: ...

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        """The bytes of each entry, in order; an error in the place of what could not be read."""
        ...


def open_source(uri: str, labels: str | None = None, *, labelled: bool = True) -> Source:
    """The source that `--data` and `--labels` name. Where labels are not wanted, every file below a folder is an entry.

    Raises:
        UsageError: for a scheme that does not exist, or a folder or table that is not there.
    """
    from job.data.tables import TABLE_EXTENSIONS, TableSource  # It builds on this module, and pyarrow takes its time.

    kinds = f"a table ({', '.join(TABLE_EXTENSIONS)})"
    scheme = re.match(r"([a-z0-9]+)://|(tfds):", uri)
    if scheme:
        raise UsageError(f"--data {uri}: there is no source for {scheme[0]} yet; give a folder of class folders or {kinds}.")
    data = Path(uri)
    if not data.exists():
        raise UsageError(f"--data {uri}: no such folder or table.")
    if not data.is_dir():
        if not data.is_file() or data.suffix.lower() not in TABLE_EXTENSIONS:
            raise UsageError(f"--data {uri}: this is a file; give a folder of class folders or {kinds}.")
        if labels is not None:
            raise UsageError(f"--labels {labels}: --data {uri} is a table itself; give the folder of the photos as --data.")
        return TableSource(data.parent.resolve(), data.parent.resolve() / data.name, labelled=labelled)
    if labels is None:
        return FolderSource(data.resolve(), labelled)
    table = Path(labels)
    if not table.is_file():
        raise UsageError(f"--labels {labels}: {'this is not a file' if table.exists() else 'no such file'}; give {kinds}.")
    if table.suffix.lower() not in TABLE_EXTENSIONS:
        raise UsageError(f"--labels {labels}: give {kinds}.")
    return TableSource(data.resolve(), table.resolve(), lists_folder=True, labelled=labelled)


@dataclass(frozen=True)
class FolderSource:
    """Class folders with photos, directly below the root or below train/, val/ and test/.

    A photo is labelled by the top folder below the root (or the split), however deep it lies. Links are followed while
    they stay inside the root, every folder once. Only regular files are ever opened.
    """

    root: Path
    labelled: bool = True

    @property
    def uri(self) -> str:
        return str(self.root)

    def listing(self) -> Listing:
        """
        Raises:
            DataUnusable: where there is no class folder, so that nothing is labelled.
        """
        walk = _Walk(LocalFiles(self.root))
        class_names: set[str] = set()
        if not self.labelled:
            walk.folder(str(self.root), "", None, None)
        for folder, split, path in _class_folders(self.root, walk) if self.labelled else ():
            label = path.rpartition("/")[2]
            class_names.add(label)
            walk.class_folder(folder, path, label, split)
        if self.labelled and not class_names:
            raise DataUnusable(
                f"{self.root}: unlabelled: there are no class folders in it ({len(walk.entries):,} files beside none). "
                "Put the photos of each class into a folder of its own, named like the class, or give a table of labels."
            )
        return Listing(tuple(sorted(walk.entries, key=attrgetter("path"))), tuple(sorted(class_names)))

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        return read_files(self.root, (entry.path for entry in entries))


@dataclass
class _Walk:
    """Goes down into folders and gathers an entry for each file.

    It asks `os.scandir`, which knows of most entries what they are without another look at the disk.
    """

    files: LocalFiles
    entries: list[Entry] = field(default_factory=list)

    def class_folder(self, folder: os.DirEntry[str], path: str, label: str, split: Split | None) -> None:
        fault = self.files.link_fault(folder.path) if folder.is_symlink() else ""
        if fault:
            self.entries.append(_quarantined(path, label, split, fault))
        else:
            self.folder(folder.path, path + "/", label, split)

    def folder(
        self, folder: str, prefix: str, label: str | None, split: Split | None, seen: set[tuple[int, int]] | None = None
    ) -> None:
        seen = set() if seen is None else seen
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            children = _children(folder)
        except OSError as error:
            self.entries.append(_quarantined(prefix.rstrip("/"), label, split, f"cannot be listed: {error.strerror}"))
            return
        for child in children:
            path = prefix + to_text(child.name)
            if child.is_symlink() and (fault := self.files.link_fault(child.path)):
                self.entries.append(_quarantined(path, label, split, fault))
            elif child.is_dir():
                if child.name in _JUNK_FOLDERS:
                    self.entries.append(_junk_folder(path))
                    continue
                if PurePath(child.name).suffix.lower() in IMAGE_EXTENSIONS:
                    self.entries.append(_ignored(path, "a folder named like a photo"))
                self.folder(child.path, path + "/", label, split, seen)
            else:
                self.entries.append(_file_entry(child, path, label, split))


def _class_folders(root: Path, walk: _Walk) -> Iterator[tuple[os.DirEntry[str], Split | None, str]]:
    """Each class folder with its split and its path; what lies beside them becomes an entry."""
    folders = _folders_beside_files(str(root), "", walk)
    splits = [f for f in folders if f.name.lower() in SPLIT_FOLDERS and any(s.is_dir() for s in _children(f.path))]
    if not splits:
        yield from ((folder, None, to_text(folder.name)) for folder in folders)
        return
    for folder in folders:
        path = to_text(folder.name)
        fault = walk.files.link_fault(folder.path) if folder.is_symlink() else ""
        if folder not in splits:
            walk.entries.append(_ignored(path, "a folder beside the split folders"))
        elif fault:
            walk.entries.append(_quarantined(path, None, None, fault))
        else:
            split = SPLIT_FOLDERS[folder.name.lower()]
            classes = _folders_beside_files(folder.path, path + "/", walk)
            yield from ((c, split, f"{path}/{to_text(c.name)}") for c in classes)


def _folders_beside_files(folder: str, prefix: str, walk: _Walk) -> list[os.DirEntry[str]]:
    folders = []
    for child in _children(folder):
        if child.name in _JUNK_FOLDERS or (child.name.startswith(".") and child.is_dir()):
            walk.entries.append(_junk_folder(prefix + to_text(child.name)))
            continue
        if child.is_dir():
            folders.append(child)
        else:
            walk.entries.append(_ignored(prefix + to_text(child.name), "outside every class folder"))
    return folders


def _children(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as children:
        return sorted(children, key=lambda child: os.fsencode(child.name))


def _file_entry(file: os.DirEntry[str], path: str, label: str | None, split: Split | None) -> Entry:
    if _JUNK.fullmatch(file.name):
        return _ignored(path, "a file that systems and people leave beside photos")
    try:
        status = file.stat()
    except OSError as error:
        return _quarantined(path, label, split, f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return _ignored(path, "not a regular file")
    return Entry(path, label, split, status.st_size, str(status.st_mtime_ns))


def _junk_folder(path: str) -> Entry:
    """One entry for the whole of it: what lies in it is nobody's photo."""
    return _ignored(f"{path}/", "a folder that systems leave beside photos")


def _ignored(path: str, reason: str) -> Entry:
    return Entry(path, None, None, 0, "", "ignored", reason)


def _quarantined(path: str, label: str | None, split: Split | None, reason: str) -> Entry:
    return Entry(path, label, split, 0, "", "quarantined", reason)
