"""Opens files that other people may change meanwhile: regular ones only, and none through a link that was not listed."""

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

_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # A pipe would be waited for.
# No more than the right to look into it is needed of a folder.
_FOLDER = os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
_MAX_OPEN_FOLDERS = 32


def open_regular(path: Path | str, flags: int = 0, folder: int | None = None) -> int:
    """The descriptor of a regular file.

    Raises:
        OSError: where it cannot be opened, or is something else.
    """
    descriptor = os.open(path, _FILE | flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def read_files(root: Path, paths: Iterable[str]) -> Iterator[bytes | OSError]:
    """The bytes of each file below `root`, by its path as `to_text` writes it; an error in the place of what cannot be read.

    There must be no link on the way from the top of the file system, so whoever swaps one in after the listing gets nothing.

    Raises:
        StorageFailed: where there are no more descriptors, or there is no more memory, for any file.
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
    """A folder and what is below it. Descriptors of the folders used last stay open."""

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
        descriptor = open_regular(name, os.O_NOFOLLOW, self._folder(folder or slash))
        try:
            return _whole(descriptor)
        finally:
            os.close(descriptor)

    def _folder(self, path: str) -> int:
        if path not in self._folders:
            if len(self._folders) == _MAX_OPEN_FOLDERS:
                os.close(self._folders.popitem(last=False)[1])
            self._folders[path] = _from_the_top(path) if path.startswith("/") else _descend(self._root, path)
        self._folders.move_to_end(path)
        return self._folders[path]


def raise_of_the_machine(error: OSError, path: str | Path) -> None:
    """Raise StorageFailed for an error that says nothing about the file, so that no photo is blamed for it."""
    if error.errno in OF_THE_MACHINE:
        raise storage_failed(error, Path(path)) from error


def _in_words(error: OSError) -> OSError:
    """The error with what it means here, where the system only says which kind of thing it met."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO):
        return OSError(error.errno, "a link or something else took its place after it was listed")
    return error


def _from_the_top(path: str) -> int:
    """Return a new descriptor of the folder at an absolute path, in which there is no link."""
    top = os.open("/", _FOLDER)
    try:
        return _descend(top, path)
    finally:
        os.close(top)


def _descend(folder: int, path: str) -> int:
    """A new descriptor of the folder at `path` below an open one."""
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


def _whole(descriptor: int) -> bytes:
    """The whole file in two system calls where Python's file object makes seven."""
    chunks = []
    wanted = os.fstat(descriptor).st_size + 1  # One more, to see the end without asking again.
    while chunk := os.read(descriptor, wanted):
        chunks.append(chunk)
        if len(chunk) == wanted - 1 and len(chunks) == 1:
            break
    return b"".join(chunks)


def opened(path: Path) -> io.FileIO:
    """A regular file that a user named, through links or not.

    Raises:
        OSError: where it cannot be opened, or is something else.
    """
    return io.FileIO(open_regular(path), closefd=True)
