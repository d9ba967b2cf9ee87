"""Standard streams and names in UTF-8, whatever the program was started with. For the command line, not for a library."""

import codecs
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING

from job.errors import StorageFailed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_UTF8 = ["-X", "utf8"]
_NOBODY_THERE = (errno.EPIPE, errno.EIO, errno.ENXIO)  # The reader of a pipe has left, or the terminal was closed.


def open_closed_descriptors() -> None:
    """Open /dev/null where a standard stream is closed (`2>&-`). The next file would get its number, and what is printed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest free number, which is this one.


def restart_in_utf8() -> None:
    """Start the program again, once and as the same process, where Python takes names and texts for another encoding.

    ISO-8859-1 turns every name into other letters, and ASCII stops at the first umlaut. Python decides before the first line
    of a program, so the program cannot change it. Processes that it starts inherit the choice.
    """
    encodings = {sys.getfilesystemencoding(), io.TextIOWrapper(io.BytesIO()).encoding}
    is_utf8 = {codecs.lookup(name).name for name in encodings} == {"utf-8"}
    if is_utf8 or sys.orig_argv[1:3] == _UTF8:
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *_UTF8, *sys.orig_argv[1:]])  # noqa: S606  # The same program, no shell.


def replace_standard_streams() -> None:
    """Let standard output and standard error take every text, and outlive whoever reads them."""
    sys.stdout, sys.stderr = _text(_Output(1)), _text(_Errors(2))


def _text(stream: "_Stream") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(stream), "utf-8", errors="backslashreplace", line_buffering=True)


class _Stream(io.FileIO):
    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: "ReadableBuffer") -> int:
        """Write what the stream takes; wait where it takes nothing now. Raises: OSError."""
        while (written := super().write(data)) is None:
            select.select([], [self], [])
        return written


class _Errors(_Stream):
    """Standard error. What it does not take is dropped: no work is lost for a line about the work."""

    def write(self, data: "ReadableBuffer") -> int:
        """Write what the stream takes."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class _Output(_Stream):
    """Standard output, which has the results. Where nobody reads any more, the rest is dropped."""

    _has_failed = False

    def write(self, data: "ReadableBuffer") -> int:
        """Write what the stream takes. Raises: StorageFailed, once."""
        if self._has_failed:  # Python writes again what is in its buffer when the program ends.
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self._has_failed = True
            if error.errno in _NOBODY_THERE:
                return memoryview(data).nbytes
            raise StorageFailed(
                f"Standard output ({_target(self.fileno())}): {error.strerror}. What the program prints is lost, "
                "what it saved stays. Make room there, or send standard output elsewhere, and run the same command again."
            ) from error


def _target(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except OSError:
        return f"descriptor {descriptor}"
