"""Functions that open regular files safely: somebody may replace a file by a link or a pipe after it was listed."""

import errno
import io
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from job.errors import OF_THE_MACHINE
from job.sources.local import from_text
from job.storage.files import storage_failed

_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # Without O_NONBLOCK, opening a named pipe waits for its writer.
# With O_PATH, the permission to enter a folder is enough; the permission to list it is not needed.
_FOLDER = os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
_MAX_OPEN_FOLDERS = 32


def open_regular(path: Path | str, flags: int = 0, folder: int | None = None) -> int:
    """Return a descriptor of a regular file. A relative path starts at `folder`, the descriptor of a folder, if given.

    Raises: OSError, also if it is not a regular file.
    """
    descriptor = os.open(path, _FILE | flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def read_files(root: Path, paths: Iterable[str]) -> Iterator[bytes | OSError]:
    """Yield the bytes of each file, in order. A file that cannot be read gives an OSError in its place.

    Paths are relative to `root`, or absolute, and written as `to_text` writes them. No link is followed in any part of a
    path, so a link that replaced a file or a folder after the listing gives an error. Raises: StorageFailed, if the machine
    has no free file descriptors or no memory.
    """
    try:
        tree = _Tree(root)
    except OSError as error:
        raise_of_the_machine(error, root)
        fault = _in_words(error)
        yield from (fault for _ in paths)
        return
    with tree:
        for path in paths:
            try:
                yield tree.read(from_text(path))
            except OSError as error:
                raise_of_the_machine(error, path)
                yield _in_words(error)
            except MemoryError:
                yield OSError(errno.ENOMEM, "the file is larger than the memory of a decode process")


class _Tree:
    """The files below a folder. It keeps descriptors of the last 32 folders open, because the next file is often there."""

    def __init__(self, root: Path) -> None:
        self._folders: OrderedDict[str, int] = OrderedDict()
        self._root = _from_the_top(os.path.abspath(root))  # noqa: PTH100

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._root, *self._folders.values()):
            os.close(descriptor)

    def read(self, path: str) -> bytes:
        folder, slash, name = path.rpartition("/")
        with io.FileIO(open_regular(name, os.O_NOFOLLOW, self._folder(folder or slash))) as file:
            return file.readall()

    def _folder(self, path: str) -> int:
        if path not in self._folders:
            if len(self._folders) == _MAX_OPEN_FOLDERS:
                os.close(self._folders.popitem(last=False)[1])
            self._folders[path] = _from_the_top(path) if path.startswith("/") else _descend(self._root, path)
        self._folders.move_to_end(path)
        return self._folders[path]


def raise_of_the_machine(error: OSError, path: str | Path) -> None:
    """Raise StorageFailed if the machine caused an error (`errors.OF_THE_MACHINE`), so that no photo is blamed for it."""
    if error.errno in OF_THE_MACHINE:
        raise storage_failed(error, Path(path)) from error


def _in_words(error: OSError) -> OSError:
    """Return the error with clearer words if a link, or something that is not a regular file, is at the path."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO):
        return OSError(error.errno, "a link or something else took its place after it was listed")
    return error


def _from_the_top(path: str) -> int:
    """Return a new descriptor of the folder at an absolute path. A link in the path raises OSError."""
    top = os.open("/", _FOLDER)
    try:
        return _descend(top, path)
    finally:
        os.close(top)


def _descend(folder: int, path: str) -> int:
    """Return a new descriptor of the folder at `path` below an open folder. A link in the path raises OSError."""
    below = os.dup(folder)
    for name in filter(None, path.split("/")):
        above = below
        try:
            if name == "..":
                raise OSError(errno.EINVAL, "a folder above")
            below = os.open(name, _FOLDER, dir_fd=above)
        finally:
            os.close(above)
    return below


def opened(path: Path) -> io.FileIO:
    """Open a regular file that a user named. Links are followed. Raises: OSError, also if it is not a regular file."""
    return io.FileIO(open_regular(path))
