"""Files below the folder of a source: the interface `Files`, which hides where they are, and local files."""

import errno
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from job.storage.ledger import MARK

IMAGE_EXTENSIONS = frozenset(
    [
        *(".avif", ".bmp", ".dcm", ".dib", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".jxl", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".svg", ".tif", ".tiff", ".webp"),
    ]
)
NO_SUCH_FILE = "there is no such file"
OUTSIDE = "it leaves the source folder"
LEAVING = "a link that leaves the source folder"
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class FoundFile:
    """A regular file that was found by its name. `path` is below the root; `real_path` is set if there is a link in it."""

    path: str
    num_bytes: int
    version: str
    real_path: str = ""
    extension_added: bool = False


class Child(Protocol):
    """A file or folder in a folder: the part of `os.DirEntry` that a walk needs."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str: ...

    def is_dir(self) -> bool: ...

    def is_symlink(self) -> bool: ...


class Files(ABC):
    """The files and folders below a root. Methods take a folder as the `path` of its `Child`, and the root as ""."""

    uri: str
    _stems_of_folder: dict[str, dict[str, list[str]]]

    @abstractmethod
    def children(self, folder: str) -> Sequence[Child]:
        """Return the files and folders in a folder, sorted by name. Raises: OSError."""

    @abstractmethod
    def glance(self, folder: str) -> Iterator[Child]:
        """Yield the children of a folder in any order, for callers that need only a few of them. Raises: OSError."""

    @abstractmethod
    def identity(self, folder: str) -> object:
        """Return a value that is equal for two paths if they lead to the same folder. Raises: OSError."""

    @abstractmethod
    def is_output(self, folder: str) -> bool:
        """Return whether a folder is an output of this job: it contains the file `storage.ledger.MARK`."""

    @abstractmethod
    def status(self, file: Child) -> tuple[int, str] | None:
        """Return the size in bytes and the version of a regular file; None if it is not regular. Raises: OSError."""

    @abstractmethod
    def follow(self, link: Child) -> Child | str:
        """Return the target of a link, with the name of the link; or, in words, why the link may not be followed."""

    @abstractmethod
    def real_path(self, file: Child, path: str) -> str:
        """Return the path of the file itself, as text, if it is not `path` because of a link; otherwise an empty string."""

    def find(self, text: str) -> FoundFile | str:
        """Return the file that a user names `text`, or, in words, why there is none that may be opened.

        It tries `text` as it is, then as `to_text` writes names, then with slashes for backslashes and without spaces around
        it. If none of them exists, it tries them as names without an extension, which only one photo may have.
        """
        fault = ""
        for spelling in _spellings(text):
            found = self._look(spelling)
            if isinstance(found, FoundFile):
                return found
            fault = fault or found
        for spelling in _spellings(text):
            names = self._with_extension(spelling)
            if len(names) == 1:
                found = self._look(names[0])
                return replace(found, extension_added=True) if isinstance(found, FoundFile) else found
            if names:
                return f"{NO_SUCH_FILE}, and several that it may mean: {', '.join(map(to_text, names))}"
        return fault or NO_SUCH_FILE

    def _with_extension(self, name: str) -> list[str]:
        """Return the paths of the photos that a name without its extension may mean."""
        path = self._below_root(name)
        if not path:
            return []
        folder = path[: path.rfind("/") + 1]
        if folder not in self._stems_of_folder:
            stems = self._stems_of_folder[folder] = {}
            for photo in filter(is_named_like_a_photo, self._names_in(folder)):
                stems.setdefault(photo.rpartition(".")[0], []).append(photo)
        return [folder + photo for photo in self._stems_of_folder[folder].get(path[len(folder) :], [])]

    @abstractmethod
    def _look(self, name: str) -> FoundFile | str:
        """Return the regular file with this name; or, in words, what is there instead; or "" if nothing is there."""

    @abstractmethod
    def _below_root(self, name: str) -> str | None:
        """Return the name as a path below the root; empty if no file can have this name; None if it is outside."""

    @abstractmethod
    def _names_in(self, folder: str) -> Sequence[str]:
        """Return the names of the files in a folder, sorted. Its path below the root is empty or ends in a slash."""


def is_named_like_a_photo(name: str) -> bool:
    """Return whether a file name has the extension of a picture."""
    _, dot, extension = name.rpartition(".")
    return bool(dot) and f".{extension.lower()}" in IMAGE_EXTENSIONS


def may_be_a_photo(name: str) -> bool:
    """Return whether a file name has the extension of a picture, or none."""
    return "." not in name or is_named_like_a_photo(name)


class Target(NamedTuple):
    """The target of a link, or the root of a source. Its `path` contains no link; that of the root is empty."""

    name: str
    path: str

    def is_dir(self) -> bool:
        return not self.path or os.path.isdir(self.path)  # noqa: PTH112

    def is_symlink(self) -> bool:
        return False


@dataclass(frozen=True)
class LocalFiles(Files):
    """The files below a local folder. `root` is a path without links in it.

    Links are followed if they lead to a place below `root`, or below one of `link_roots`.
    """

    root: Path
    link_roots: tuple[str, ...] = ()
    _real_folders: dict[str, str] = field(default_factory=dict)
    _stems_of_folder: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @cached_property
    def uri(self) -> str:  # type: ignore[override]
        return str(self.root)

    def children(self, folder: str) -> list[os.DirEntry[str]]:
        with os.scandir(folder or self.root) as children:  # It knows the kind of most children without a system call each.
            return sorted(children, key=lambda child: os.fsencode(child.name))

    def glance(self, folder: str) -> Iterator[Child]:
        with os.scandir(folder or self.root) as children:
            yield from children

    def identity(self, folder: str) -> tuple[int, int]:
        status = os.stat(folder or self.root)  # noqa: PTH116  # Making a Path for each folder would take most of the time.
        return status.st_dev, status.st_ino

    def is_output(self, folder: str) -> bool:
        return os.path.lexists(f"{folder or self.root}/{MARK}")

    def status(self, file: Child) -> tuple[int, str] | None:
        status = os.lstat(file.path)
        return (status.st_size, str(status.st_mtime_ns)) if stat.S_ISREG(status.st_mode) else None

    def follow(self, link: Child) -> Child | str:
        try:
            real = os.path.realpath(link.path, strict=True)
        except OSError as error:
            fault = "a link that points to nothing"
            return f"cannot be read: {error.strerror}" if error.errno == errno.EACCES else fault
        return Target(link.name, real) if self._is_reachable(real) else LEAVING

    def real_path(self, file: Child, path: str) -> str:
        if not file.path.startswith(self._prefix):
            return to_text(file.path)
        real = file.path[len(self._prefix) :]
        return "" if real == path or to_text(real) == path else to_text(real)

    def _look(self, name: str) -> FoundFile | str:
        path = self._below_root(name)
        if not path:
            return OUTSIDE if path is None else ""
        folder, _, name = path.rpartition("/")
        file: Child = Target(name, f"{self._real_folder(folder)}/{name}")
        if not self._is_reachable(file.path):
            return "its folder is a link that leaves the source folder"
        try:
            status = os.lstat(file.path)
            if stat.S_ISLNK(status.st_mode):
                followed = self.follow(file)
                if isinstance(followed, str):
                    return f"it is {followed}"
                file = followed
                status = os.lstat(file.path)
        except OSError as error:
            return "" if error.errno in _NOTHING_THERE else f"it cannot be read: {error.strerror}"
        except UnicodeError:  # No file can have this name.
            return ""
        if stat.S_ISREG(status.st_mode):
            return FoundFile(path, status.st_size, str(status.st_mtime_ns), self.real_path(file, to_text(path)))
        return f"it is {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}"

    def _below_root(self, name: str) -> str | None:
        if not name or "\0" in name:
            return ""
        path = os.path.normpath(name)
        if path.startswith("/"):
            if not self._is_inside(path):  # The root may have been reached through a link.
                path = os.path.realpath(path)
            if not self._is_inside(path):
                return None
            path = path[len(self._prefix) :] or "."
        return None if path == ".." or path.startswith("../") else path

    def _names_in(self, folder: str) -> Sequence[str]:
        real = self._real_folder(folder.rstrip("/"))
        try:
            return sorted(os.listdir(real)) if self._is_reachable(real) else ()  # noqa: PTH208
        except (OSError, UnicodeError):
            return ()

    def _real_folder(self, folder: str) -> str:
        """Return the absolute path of a folder below the root, with links followed. It may be outside of the root."""
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(self._prefix + folder)
        return self._real_folders[folder]

    @cached_property
    def _prefix(self) -> str:
        return f"{str(self.root).rstrip('/')}/"

    def _is_reachable(self, path: str) -> bool:
        """Return whether a path, which contains no links, is below the root or below one of the link roots."""
        return self._is_inside(path) or any(f"{path}/".startswith(f"{root.rstrip('/')}/") for root in self._real_link_roots)

    @cached_property
    def _real_link_roots(self) -> tuple[str, ...]:
        return tuple(os.path.realpath(os.path.expanduser(root)) for root in self.link_roots)  # noqa: PTH111

    def _is_inside(self, path: str) -> bool:
        return path == str(self.root) or path.startswith(self._prefix)


def to_text(name: str) -> str:
    r"""Return a file name as valid Unicode. Bytes that are not UTF-8 become \xNN, a backslash becomes \\."""
    if "\\" not in name and name.isprintable():
        return name
    return os.fsencode(name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def from_text(path: str) -> str:
    """Return the original path of one that `to_text` has escaped."""
    if "\\" not in path:
        return path
    raw = re.sub(
        rb"\\(?:\\|x([0-9a-f]{2}))", lambda m: bytes.fromhex(m[1].decode()) if m[1] else b"\\", path.encode("utf-8")
    )
    return os.fsdecode(raw)


def _spellings(text: str) -> Iterator[str]:
    yield text
    if "\\" in text:
        with suppress(UnicodeError):  # A text that `to_text` did not write may not be encodable.
            yield from_text(text)
    forgiven = text.strip().replace("\\", "/")
    if forgiven != text:
        yield forgiven
