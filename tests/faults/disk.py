"""A disk that fails or stops at a chosen operation, below everything that Python code writes with.

Every write, fsync, rename, delete, new folder, link and truncation below a folder is counted. At the chosen one the process
ends at once (before it or in the middle of it), or the system's error is raised. Also noted: what was renamed to its final
name without having been synced.
"""

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from job.storage import files

KILLED = 137


class FaultyDisk:
    """Operations 0, 1, 2, ... below `root`; `fail_at` none where they are only counted."""

    def __init__(self, root: Path, fail_at: int | None = None, moment: str = "before", error: int | None = None) -> None:
        self.root, self.fail_at, self.moment, self.error = str(root), fail_at, moment, error
        self.operations: list[str] = []
        self.unsynced_renames: list[str] = []
        self._dirty: set[int] = set()  # Inodes that were written to and not synced.

    def install(self) -> None:
        for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "symlink", "link"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]  # So that copies are written here, too.
        exchange, self._os_open = files._exchange, os.open
        files._exchange = lambda new, old: self.operation("exchange", str(old), lambda: exchange(new, old))
        os.open = self._on_os_open  # type: ignore[assignment]
        self._fsync, self._ftruncate = os.fsync, os.ftruncate
        os.fsync, os.ftruncate = self._on_fsync, self._on_ftruncate
        self._pwrite = os.pwrite
        os.pwrite = self._on_pwrite  # type: ignore[assignment]
        self._open = io.open
        builtins.open = io.open = self._on_open  # type: ignore[assignment]

    def operation(self, name: str, path: str, do: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        """One operation, which may be the chosen one."""
        if not path.startswith(self.root):
            return do()
        number = len(self.operations)
        self.operations.append(f"{name} {path[len(self.root) :]}")
        if number != self.fail_at:
            if self.error and self.fail_at is not None and number > self.fail_at and name in ("write", "pwrite", "mkdir"):
                raise OSError(self.error, os.strerror(self.error), path)  # A full disk stays full.
            return do()
        if self.error:
            half()
            raise OSError(self.error, os.strerror(self.error), path)
        if self.moment == "during":
            half()
        os._exit(KILLED)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            path = os.fspath(arguments[name in ("replace", "rename", "symlink", "link")])
            if isinstance(options.get("dir_fd"), int):
                path = f"{_path_of(options['dir_fd'])}/{path}"
            if name in ("replace", "rename"):
                self._check_synced(os.fspath(arguments[0]), path)
            return self.operation(name, path, lambda: call(*arguments, **options))

        return counted

    def _check_synced(self, old: str, new: str) -> None:
        if new.startswith(self.root) and "/.tmp/" not in new:
            files = [old] if not Path(old).is_dir() else [str(p) for p in Path(old).rglob("*")]
            self.unsynced_renames += [f for f in files if not Path(f).is_symlink() and os.stat(f).st_ino in self._dirty]

    def _on_os_open(self, path: Any, flags: int, *more: Any, **options: Any) -> int:
        if not flags & os.O_EXCL or options:
            return self._os_open(path, flags, *more, **options)
        return int(self.operation("create", os.fspath(path), lambda: self._os_open(path, flags, *more)))

    def _on_fsync(self, descriptor: int) -> None:
        def do() -> None:
            self._fsync(descriptor)
            self._dirty.discard(os.fstat(descriptor).st_ino)

        self.operation("fsync", _path_of(descriptor), do)

    def _on_ftruncate(self, descriptor: int, length: int) -> None:
        path = _path_of(descriptor)
        self.operation("truncate", path, lambda: self._ftruncate(descriptor, length))

    def _on_pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        path = _path_of(descriptor)
        half = lambda: self._pwrite(descriptor, bytes(data)[: len(data) // 2], offset)  # noqa: E731
        return int(self.operation("pwrite", path, lambda: self._pwrite(descriptor, data, offset), half))

    def _on_open(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *more: Any, **options: Any
    ) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not os.fspath(file).startswith(self.root):
            return self._open(file, mode, buffering, encoding, *more, **options)
        raw = _File(os.fspath(file), mode.replace("b", "").replace("t", ""), self)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, encoding or "utf-8", **{k: v for k, v in options.items() if k == "errors"})
        text.mode = mode  # type: ignore[misc]
        return text


class _File(io.FileIO):
    """Writes are operations; a write that stops in the middle has written half."""

    def __init__(self, path: str, mode: str, disk: FaultyDisk) -> None:
        self._disk, self._path = disk, path
        if not os.path.exists(path):
            disk.operation("create", path, lambda: None)
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        self._disk._dirty.add(os.fstat(self.fileno()).st_ino)
        whole = bytes(data)
        half = lambda: super(_File, self).write(whole[: len(whole) // 2])  # noqa: E731
        return int(self._disk.operation("write", self._path, lambda: super(_File, self).write(whole), half))

    def truncate(self, size: int | None = None) -> int:
        self._disk._dirty.add(os.fstat(self.fileno()).st_ino)
        return int(self._disk.operation("truncate", self._path, lambda: super(_File, self).truncate(size)))


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def in_child(work: Callable[[], None]) -> tuple[int, str]:
    """Do the work in a forked process: its exit code (0, KILLED, 1 for an error), and the error."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except BaseException as error:
            with suppress(OSError):
                os.write(writer, f"{type(error).__name__}: {error}"[:4000].encode())
            code = 1
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        text = said.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text


FULL = errno.ENOSPC
