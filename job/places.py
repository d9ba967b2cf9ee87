"""The one door for paths that a user gives: `~` is expanded, and what the system refuses gets its way out and its exit code."""

import errno
import os
import pwd
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job.errors import JobError, StorageFailed, UsageError

_PIPE_TIMEOUT_S = 5.0
_DENIED = (errno.EACCES, errno.EPERM)
# What is wrong stays wrong however often a scheduler tries again. A file server that does not answer is another matter.
_OF_THE_USER = {
    errno.EROFS: "its file system is mounted read-only",
    errno.ELOOP: "it is, or lies behind, a link that leads back to itself",
    errno.ENOTDIR: "a part of it is a file and not a folder",
    errno.ENAMETOOLONG: "its name is too long for the file system",
    errno.EISDIR: "it is a folder and not a file",
    errno.EINVAL: "it is not a regular file",
    errno.ENXIO: "it is not a regular file",
    errno.ENOENT: "there is no such file or folder",
}


def place(option: str, text: str) -> str:
    """Return a path as the program takes it, or the URI of something elsewhere as it is.

    Raises:
        UsageError: where the system says that there can be nothing, or nothing for this user, at the path.
        StorageFailed: where the system cannot tell.
    """
    if "://" in text or text.startswith("tfds:"):
        return text
    path = os.path.expanduser(text)  # noqa: PTH111  # A Path would drop a slash at the end.
    if path.split("/")[0] == "~":
        raise UsageError(
            f"{option} {text}: this user has no home folder that ~ could stand for. Set HOME, or write the path."
        )
    if "\0" in path:
        raise UsageError(f"{option} {text!r}: no path can hold a zero byte.")
    with refused_at_start(f"{option} {text}", path):
        try:
            os.stat(path)  # noqa: PTH116
        except FileNotFoundError:
            pass  # It may be a file that is to be written; and whoever reads it says more than this could.
    return path


def read_named(path: Path) -> bytes:
    """Return the content of a file, or of a pipe as the shell makes one for `<(...)`.

    Raises:
        OSError: where it is neither, or nobody writes into the pipe.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        is_written = stat.S_ISFIFO(mode) and bool(select.select([file], [], [], _PIPE_TIMEOUT_S)[0])
        if not stat.S_ISREG(mode) and not is_written:
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        os.set_blocking(file.fileno(), True)
        return file.read()


@contextmanager
def refused_at_start(what: str, path: str | Path, *, writing: bool = False) -> Iterator[None]:
    """Turn errors of the system in the block, before the work begins, into the errors of `at_start`."""
    try:
        yield
    except OSError as error:
        raise at_start(error, what, path, writing=writing) from error


def at_start(error: OSError, what: str, path: str | Path, *, writing: bool = False) -> JobError:
    """Return what the program ends with where the system refuses a path before the work begins.

    That is a UsageError where a retry cannot help: permissions, links that go in circles, the wrong kind of file. It is
    StorageFailed for the rest: a file server that is away for a while must not end a scheduled job for good.
    """
    if error.errno in _DENIED:
        verb = "write to" if writing else "read"
        return UsageError(
            f"{what}: {denial(path, writing=writing)}. Give that user the right to {verb} it, or another path."
        )
    if error.errno in _OF_THE_USER:
        return UsageError(f"{what}: {_OF_THE_USER[error.errno]}.")
    return StorageFailed(f"{what}: {error.strerror or error}. Run the same command again when the storage answers.")


def denial(path: str | Path, *, writing: bool = False) -> str:
    """Say who has no permission to do what: the user of this process, and the folder or file that keeps them out."""
    kept_out_by = _kept_out_by(Path(os.path.realpath(path)))
    groups = ", ".join(map(str, sorted({os.getegid(), *os.getgroups()})))
    status = kept_out_by.stat()
    return (
        f"no permission: user {_name(os.geteuid())} (groups {groups}) may not {'write to' if writing else 'read'} "
        f"{kept_out_by}, which belongs to {_name(status.st_uid)} and has mode {stat.S_IMODE(status.st_mode):04o}"
    )


def _kept_out_by(path: Path) -> Path:
    """Return the first folder on the way to `path` that this user may not enter, else the last thing that is there."""
    there = Path("/")
    for part in (*reversed(path.parents), path):
        if not os.path.lexists(part):
            break
        there = part
        if part != path and not os.access(part, os.X_OK):
            break
    return there


def _name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)
