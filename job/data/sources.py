"""Where photos come from. A source lists entries in a fixed order and reads their bytes; nothing else knows more.

This module has the folder of class folders, with or without split folders above them. Tables, buckets and named
data sets are further classes with the same three members.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from job.errors import DataUnusable, UsageError

Split = Literal["train", "val", "test"]

SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IMAGE_EXTENSIONS = frozenset(
    [
        ".avif",
        ".bmp",
        ".dcm",
        ".dib",
        ".gif",
        ".heic",
        ".heif",
        ".ico",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".jxl",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".svg",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
_JUNK = re.compile(
    r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini|\.gitkeep|\.keep|\.gitignore|\.gitattributes|README(\..*)?|LICEN[SC]E(\..*)?",
    re.IGNORECASE,
)
_JUNK_FOLDERS = frozenset({".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"})


@dataclass(frozen=True)
class Entry:
    """One thing that the source lists.

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
    """All entries, sorted by path, and the classes: every class folder, photos in it or not."""

    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]


class Source(Protocol):
    """Picklable, because decode processes read for themselves."""

    @property
    def uri(self) -> str: ...

    def listing(self) -> Listing: ...

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        """The bytes of each entry, in order; an error in the place of what could not be read."""
        ...


def open_source(uri: str, *, labelled: bool = True) -> Source:
    """The source that `--data` names. Where labels are not wanted, every file below a folder is an entry.

    Raises:
        UsageError: for a scheme that does not exist, or a folder that is not there.
    """
    scheme = re.match(r"([a-z0-9]+)://|(tfds):", uri)
    if scheme:
        raise UsageError(f"--data {uri}: there is no source for {scheme[0]}; give a folder of class folders.")
    folder = Path(uri)
    if not folder.exists():
        raise UsageError(f"--data {uri}: no such folder.")
    if not folder.is_dir():
        raise UsageError(f"--data {uri}: this is a file; give a folder of class folders.")
    return FolderSource(folder.resolve(), labelled)


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
        entries: list[Entry] = []
        class_names: set[str] = set()
        if not self.labelled:
            self._walk(self.root, "", None, None, entries, set())
        for class_folder, split, prefix in self._class_folders(entries) if self.labelled else ():
            class_names.add(_to_text(class_folder.name))
            self._walk(
                class_folder, f"{prefix}{_to_text(class_folder.name)}/", _to_text(class_folder.name), split, entries, set()
            )
        if self.labelled and not class_names:
            raise DataUnusable(
                f"{self.root}: unlabelled: there are no class folders in it ({len(entries):,} files beside none). "
                "Put the photos of each class into a folder of its own, named like the class."
            )
        return Listing(tuple(sorted(entries, key=lambda e: e.path)), tuple(sorted(class_names)))

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        for entry in entries:
            try:
                descriptor = os.open(self.root / _from_text(entry.path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                with open(descriptor, "rb") as file:
                    yield file.read()
            except OSError as error:
                yield error
            except MemoryError:
                yield OSError(errno.ENOMEM, "the file is larger than the memory of a decode process")

    def _class_folders(self, entries: list[Entry]) -> Iterator[tuple[Path, Split | None, str]]:
        """Each class folder with its split and the path of the folder above; what lies beside them becomes an entry."""
        folders = self._folders_beside_files(self.root, "", entries)
        splits = [f for f in folders if f.name.lower() in SPLIT_FOLDERS and any(s.is_dir() for s in _children(f))]
        if not splits:
            yield from ((folder, None, "") for folder in folders)
            return
        for folder in folders:
            if folder not in splits:
                entries.append(_ignored(_to_text(folder.name), "a folder beside the split folders"))
                continue
            prefix = _to_text(folder.name) + "/"
            split = SPLIT_FOLDERS[folder.name.lower()]
            yield from ((c, split, prefix) for c in self._folders_beside_files(folder, prefix, entries))

    def _folders_beside_files(self, folder: Path, prefix: str, entries: list[Entry]) -> list[Path]:
        folders = []
        for child in _children(folder):
            if child.name in _JUNK_FOLDERS or (child.name.startswith(".") and child.is_dir()):
                continue
            if child.is_dir():
                folders.append(child)
            else:
                entries.append(_ignored(prefix + _to_text(child.name), "outside every class folder"))
        return folders

    def _walk(
        self,
        folder: Path,
        prefix: str,
        label: str | None,
        split: Split | None,
        entries: list[Entry],
        seen: set[tuple[int, int]],
    ) -> None:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        try:
            children = _children(folder)
        except OSError as error:
            entries.append(_quarantined(prefix.rstrip("/"), label, split, f"cannot be listed: {error.strerror}"))
            return
        for child in children:
            path = prefix + _to_text(child.name)
            if child.is_symlink() and not child.exists():
                entries.append(_quarantined(path, label, split, "a link that points to nothing"))
            elif child.is_symlink() and not child.resolve().is_relative_to(self.root):
                entries.append(_quarantined(path, label, split, "a link that leaves the source folder"))
            elif child.is_dir():
                if child.name in _JUNK_FOLDERS:
                    continue
                if child.suffix.lower() in IMAGE_EXTENSIONS:
                    entries.append(_ignored(path, "a folder named like a photo"))
                self._walk(child, path + "/", label, split, entries, seen)
            else:
                entries.append(_file_entry(child, path, label, split))


def _file_entry(file: Path, path: str, label: str | None, split: Split | None) -> Entry:
    if _JUNK.fullmatch(file.name):
        return _ignored(path, "a file that systems and people leave beside photos")
    try:
        status = file.stat()
    except OSError as error:
        return _quarantined(path, label, split, f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return _ignored(path, "not a regular file")
    return Entry(path, label, split, status.st_size, str(status.st_mtime_ns))


def _ignored(path: str, reason: str) -> Entry:
    return Entry(path, None, None, 0, "", "ignored", reason)


def _quarantined(path: str, label: str | None, split: Split | None, reason: str) -> Entry:
    return Entry(path, label, split, 0, "", "quarantined", reason)


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda p: os.fsencode(p.name))


def _to_text(name: str) -> str:
    r"""A file name as valid Unicode, reversibly: bytes that are not UTF-8 become \xNN, and a backslash becomes \\."""
    if "\\" not in name and name.isprintable():
        return name
    return os.fsencode(name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def _from_text(path: str) -> str:
    """Undo `_to_text` for every part of a path."""
    if "\\" not in path:
        return path
    raw = re.sub(rb"\\(?:\\|x(..))", lambda m: bytes.fromhex(m[1].decode()) if m[1] else b"\\", path.encode())
    return os.fsdecode(raw)
