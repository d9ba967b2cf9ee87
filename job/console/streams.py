"""Standard streams and file names in UTF-8, whatever the locale is. Only the command line uses this, not the library."""

import codecs
import errno
import io
import os
import select
import sys
import threading
import warnings
from typing import TYPE_CHECKING

from job.console.log import LOG
from job.errors import StorageFailed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_UTF8 = ["-X", "utf8"]
_NOBODY_THERE = (errno.EPIPE, errno.EIO, errno.ENXIO)  # The reader of a pipe has exited, or the terminal was closed.


def open_closed_descriptors() -> None:
    """Open /dev/null for closed standard streams (`2>&-`). Otherwise a file opened later would receive the printed text."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The system gives it the lowest free number, which is this one.


def restart_in_utf8() -> None:
    """Restart the program once, in the same process, if Python uses another encoding for names and texts.

    With ISO-8859-1, letters in names would change. With ASCII, the first umlaut would be an error. Python chooses the
    encoding before the first line of a program runs, so the program cannot change it. Child processes inherit the choice.
    """
    encodings = {sys.getfilesystemencoding(), io.TextIOWrapper(io.BytesIO()).encoding}
    is_utf8 = {codecs.lookup(name).name for name in encodings} == {"utf-8"}
    if is_utf8 or sys.orig_argv[1:3] == _UTF8:
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *_UTF8, *sys.orig_argv[1:]])  # noqa: S606  # The same program, no shell.


def replace_standard_streams() -> None:
    """Let standard output and standard error accept every character, and keep the program alive if their reader exits.

    If messages are JSON, what libraries write to standard error becomes messages, too.
    """
    sys.stdout, sys.stderr = _text(_Output(1)), _text(_Errors(2))
    if LOG.as_json:
        LOG.stream, sys.stderr = sys.stderr, _text(_Messages(2))
        threading.excepthook = lambda thrown: LOG.trace(*thrown[:3])
        warnings.showwarning = _say_warning  # type: ignore[assignment]  # The rest of its arguments is not needed.


def _say_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    LOG.say(f"{category.__name__}: {message}", "warning", {"file": filename, "line": lineno})


def _text(stream: "_Stream") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(stream), "utf-8", errors="backslashreplace", line_buffering=True)


class _Stream(io.FileIO):
    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: "ReadableBuffer") -> int:
        """Write as much as the stream accepts; wait while it accepts nothing. Raises: OSError."""
        while (written := super().write(data)) is None:
            select.select([], [self], [])
        return written


class _Errors(_Stream):
    """Standard error. If a message cannot be written, it is dropped: the run must not end because of it."""

    def write(self, data: "ReadableBuffer") -> int:
        """Write as much as the stream accepts."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class _Messages(_Stream):
    """Standard error of libraries. Each line that they write becomes a message."""

    _begun = b""

    def write(self, data: "ReadableBuffer") -> int:
        """Write the lines that are complete."""
        *lines, self._begun = (self._begun + bytes(data)).replace(b"\r", b"\n").split(b"\n")
        for line in filter(bytes.strip, lines):
            LOG.say(line.decode("utf-8", "backslashreplace"), "warning")
        return memoryview(data).nbytes


class _Output(_Stream):
    """Standard output, for the results. If its reader has exited, the rest is dropped."""

    _has_failed = False

    def write(self, data: "ReadableBuffer") -> int:
        """Write as much as the stream accepts. Raises: StorageFailed, once."""
        if self._has_failed:  # When the program ends, Python tries to write its buffer again.
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self._has_failed = True
            if error.errno in _NOBODY_THERE:
                return memoryview(data).nbytes
            raise StorageFailed(
                f"Standard output ({_target(self.fileno())}): {error.strerror}. Printed text is lost, saved files are not. "
                "Free space there, or redirect standard output to another place, and run the same command again."
            ) from error


def _target(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except OSError:
        return f"descriptor {descriptor}"
