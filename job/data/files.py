"""Files below a folder, as sources need them: their names, their links, their bytes; and the local ones."""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

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
NO_SUCH_FILE = "there is no such file"
OUTSIDE = "it leaves the source folder"
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class FoundFile:
    """A regular file: its path below the root as the storage has it, and whether an extension was added to find it."""

    path: str
    num_bytes: int
    version: str
    extension_added: bool = False


class Child(Protocol):
    """What lies in a folder: as much of `os.DirEntry` as a walk asks for."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str: ...

    def is_dir(self) -> bool: ...

    def is_symlink(self) -> bool: ...


class Files(Protocol):
    """Files below a root, in folders. The root itself is the folder "", every other one goes by its child's `path`."""

    @property
    def uri(self) -> str: ...

    def children(self, folder: str) -> Sequence[Child]:
        """In the order of their names. Raises: OSError."""
        ...

    def identity(self, folder: str) -> object:
        """The same for each way that leads to one folder. Raises: OSError."""
        ...

    def status(self, file: Child) -> tuple[int, str] | None:
        """Bytes and version of a regular file, None for what is none. Raises: OSError."""
        ...

    def link_fault(self, link: str) -> str:
        """What is wrong with a link; empty where it points to something below the root."""
        ...

    def find(self, text: str) -> FoundFile | str:
        """The file that somebody calls `text`, or why there is none that may be opened; see `find_file`."""
        ...


def find_file(
    text: str, look: Callable[[str], FoundFile | str], with_extension: Callable[[str], Sequence[str]]
) -> FoundFile | str:
    """The file that somebody calls `text`, or why there is none that may be opened.

    The plain name goes first. Where it does not exist, it may be written as `to_text` writes it, with the backslashes
    of Windows, or with blanks around it; and then without the extension, if only one photo is called so.
    `look` gives the regular file of exactly this name, what is there instead, or the empty string for nothing at all;
    `with_extension` the paths of the photos that a name without its extension may mean.
    """
    fault = ""
    for spelling in _spellings(text):
        found = look(spelling)
        if isinstance(found, FoundFile):
            return found
        fault = fault or found
    for spelling in _spellings(text):
        names = with_extension(spelling)
        if len(names) == 1:
            found = look(names[0])
            return FoundFile(found.path, found.num_bytes, found.version, True) if isinstance(found, FoundFile) else found
        if names:
            return f"{NO_SUCH_FILE}, and several that it may mean: {', '.join(map(to_text, names))}"
    return fault or NO_SUCH_FILE


def by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """The photos among names, by what they are without the extension."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, _, extension = name.rpartition(".")
        if stem and f".{extension.lower()}" in IMAGE_EXTENSIONS:
            stems.setdefault(stem, []).append(name)
    return stems


@dataclass(frozen=True)
class LocalFiles:
    """The files below `root`, which is a resolved path. What it found out about folders it remembers."""

    root: Path
    _fault_of_folder: dict[str, str] = field(default_factory=dict)
    _stems_of_folder: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return str(self.root)

    def children(self, folder: str) -> list[os.DirEntry[str]]:
        """`os.scandir` knows of most children what they are without another look at the disk."""
        with os.scandir(folder or self.root) as children:
            return sorted(children, key=lambda child: os.fsencode(child.name))

    def identity(self, folder: str) -> tuple[int, int]:
        status = os.stat(folder or self.root)  # noqa: PTH116  # A Path for each costs more than all the rest of a listing.
        return status.st_dev, status.st_ino

    def status(self, file: Child) -> tuple[int, str] | None:
        status = os.stat(file.path)  # noqa: PTH116
        return (status.st_size, str(status.st_mtime_ns)) if stat.S_ISREG(status.st_mode) else None

    def find(self, text: str) -> FoundFile | str:
        return find_file(text, self._look, self._with_extension)

    def link_fault(self, link: str) -> str:
        try:
            os.stat(link)  # noqa: PTH116
        except OSError:
            return "a link that points to nothing"
        return "" if self._is_inside(os.path.realpath(link)) else "a link that leaves the source folder"

    def _look(self, name: str) -> FoundFile | str:
        """The regular file of this name, what is there instead, or the empty string for nothing at all."""
        path = self._below_root(name)
        if not path:
            return OUTSIDE if path is None else ""
        folder = path.rpartition("/")[0]
        if folder not in self._fault_of_folder:
            inside = self._is_inside(os.path.realpath(self._full(folder)))
            self._fault_of_folder[folder] = "" if inside else "its folder is a link that leaves the source folder"
        if self._fault_of_folder[folder]:
            return self._fault_of_folder[folder]
        try:
            status = os.lstat(self._full(path))
            if stat.S_ISLNK(status.st_mode):
                if fault := self.link_fault(self._full(path)):
                    return f"it is {fault}"
                status = os.stat(self._full(path))  # noqa: PTH116
        except OSError as error:
            return "" if error.errno in _NOTHING_THERE else f"it cannot be read: {error.strerror}"
        except UnicodeError:  # No file can be called so.
            return ""
        if stat.S_ISREG(status.st_mode):
            return FoundFile(path, status.st_size, str(status.st_mtime_ns))
        return f"it is {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}"

    def _below_root(self, name: str) -> str | None:
        """The name as a path below the root; empty where no file can be called so, None where it lies elsewhere."""
        if not name or "\0" in name:
            return ""
        path = os.path.normpath(name)
        if path.startswith("/"):
            if not self._is_inside(path):  # The root may have been reached through a link.
                path = os.path.realpath(path)
            if not self._is_inside(path):
                return None
            path = path[len(self._full("")) :] or "."
        return None if path == ".." or path.startswith("../") else path

    def _with_extension(self, name: str) -> list[str]:
        path = self._below_root(name)
        if not path:
            return []
        folder, _, last = path.rpartition("/")
        if folder not in self._stems_of_folder:
            self._stems_of_folder[folder] = self._stems(folder)
        names = self._stems_of_folder[folder].get(last, [])
        return [f"{folder}/{name}" for name in names] if folder else names

    def _stems(self, folder: str) -> dict[str, list[str]]:
        """The photos in a folder, by their names without the extension."""
        if self._fault_of_folder.get(folder):
            return {}
        try:
            return by_stem(sorted(os.listdir(self._full(folder))))  # noqa: PTH208
        except (OSError, UnicodeError):
            return {}

    def _full(self, path: str) -> str:
        root = str(self.root)
        return f"{root}{path}" if root.endswith("/") else f"{root}/{path}"

    def _is_inside(self, path: str) -> bool:
        return path == str(self.root) or path.startswith(self._full(""))


def read_files(root: Path, paths: Iterable[str]) -> Iterator[bytes | OSError]:
    """The bytes of each file, by its path as `to_text` writes it; an error in the place of what cannot be read."""
    folder = str(root).rstrip("/")
    for path in paths:
        try:
            yield _read(f"{folder}/{from_text(path)}")
        except OSError as error:
            yield error
        except MemoryError:
            yield OSError(errno.ENOMEM, "the file is larger than the memory of a decode process")


def _read(path: str) -> bytes:
    """The whole file in four system calls where Python's file object makes nine."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        chunks = []
        wanted = os.fstat(descriptor).st_size + 1  # One more, to see the end without asking again.
        while chunk := os.read(descriptor, wanted):
            chunks.append(chunk)
            if len(chunk) == wanted - 1 and len(chunks) == 1:
                break
        return b"".join(chunks)
    finally:
        os.close(descriptor)


def to_text(name: str) -> str:
    r"""A file name as valid Unicode, reversibly: bytes that are not UTF-8 become \xNN, and a backslash becomes \\."""
    if "\\" not in name and name.isprintable():
        return name
    return os.fsencode(name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def from_text(path: str) -> str:
    """Undo `to_text` for every part of a path."""
    if "\\" not in path:
        return path
    raw = re.sub(
        rb"\\(?:\\|x([0-9a-f]{2}))", lambda m: bytes.fromhex(m[1].decode()) if m[1] else b"\\", path.encode("utf-8")
    )
    return os.fsdecode(raw)


def _spellings(text: str) -> Iterator[str]:
    yield text
    if "\\" in text:
        with suppress(UnicodeError):  # It may hold bytes that `to_text` would have escaped.
            yield from_text(text)
    forgiven = text.strip().replace("\\", "/")
    if forgiven != text:
        yield forgiven
