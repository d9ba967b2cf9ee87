"""The first thing that the program does: usable standard streams, and UTF-8 for every name.

It belongs to the command line alone; whoever imports the package as a library keeps their own streams and encoding.
"""

import codecs
import io
import os
import sys

from job.errors import StorageFailed

_NAMES = {1: "standard output", 2: "standard error"}
_UTF8 = ["-X", "utf8"]


def prepare() -> None:
    """Make the standard streams usable, and see to UTF-8. From the main thread, before anything opens a file."""
    _open_closed_descriptors()
    _restart_in_utf8()
    sys.stdout, sys.stderr = _stream(1), _stream(2)


def _open_closed_descriptors() -> None:
    """Else the next file that is opened becomes standard output, and whatever is printed goes into it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest number that is free, which is this one.


def _restart_in_utf8() -> None:
    """Start the program again, as the same process, where Python would read names by another encoding.

    Under ISO-8859-1 every name decodes, to other letters; under ASCII most do not. The encoding cannot be changed later.
    """
    is_utf8 = all(codecs.lookup(name).name == "utf-8" for name in (sys.getfilesystemencoding(), _encoding_of_files()))
    if is_utf8 or sys.orig_argv[1:3] == _UTF8 or not sys.executable:
        return
    os.environ["PYTHONUTF8"] = "1"  # For the processes that this one starts.
    os.execv(sys.executable, [sys.executable, *_UTF8, *sys.orig_argv[1:]])


def _encoding_of_files() -> str:
    """The encoding of text files that are opened without one."""
    return io.text_encoding(None) if sys.flags.utf8_mode else io.TextIOWrapper(io.BytesIO()).encoding


def _stream(descriptor: int) -> io.TextIOWrapper:
    raw = _Stream(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=raw.isatty() or descriptor == 2
    )


class _Stream(io.FileIO):
    """A standard stream that may fail without an effect on the work.

    Where the reader of a pipe has left or the terminal is gone, the rest is dropped. So is what standard error cannot take
    for any reason: a line about the work is not worth the work.
    """

    _has_failed = False

    def write(self, data: Any) -> int:
        """Write what the system takes.

        Raises:
            StorageFailed: the first time that standard output fails, unless nobody listens any more.
        """
        if self._has_failed:
            return len(data)
        ...
