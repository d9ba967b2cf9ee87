"""Checks of the paths that users give. If the system refuses a path, the error says what to do and gets its exit code."""

import errno
import os
import pwd
import re
import select
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from job.errors import UsageError

_NEARLY_URI = re.compile(r"(gs|s3):/?")
_PIPE_TIMEOUT_S = 5.0
_DENIED = (errno.EACCES, errno.EPERM)
_OF_THE_USER = {
    errno.EROFS: "its file system is mounted read-only",
    errno.ELOOP: "it is, or goes through, a link that leads back to itself",
    errno.ENOTDIR: "a part of it is a file and not a folder",
    errno.ENAMETOOLONG: "its name is too long for the file system",
    errno.EISDIR: "it is a folder and not a file",
    errno.EINVAL: "it is not a regular file",
    errno.ENXIO: "it is not a regular file",
    errno.ENOENT: "there is no such file or folder",
}


def place(option: str, text: str) -> str:
    """Return a path with `~` expanded. A URI or the name of a data set is returned unchanged.

    Raises:
        UsageError: if the path is empty or cannot exist, or if this user has no access to it.
        OSError: if the system cannot tell. A retry may help.
    """
    if not text:
        raise UsageError(f"{option}: the path is empty. Is a variable of your script unset? Type . for the current folder.")
    if "://" in text or text.startswith("tfds:"):
        return text
    if bucket := _NEARLY_URI.match(text):
        uri = f"{bucket[1]}://{text[bucket.end() :]}"
        raise UsageError(f"{option} {text}: a URI has two slashes. Write {uri}, or ./{text} for a folder of this name.")
    path = os.path.expanduser(text)  # noqa: PTH111  # A Path would drop a slash at the end.
    if path.startswith("~"):
        home = path.partition("/")[0]
        raise UsageError(
            f"{option} {text}: {home} stands for a home folder, and there is none. Write the whole path. If the folder is "
            f"really called {home}, write ./{home}"
        )
    if "\0" in path:
        raise UsageError(f"{option} {text!r}: a path cannot contain a zero byte. Remove it.")
    with refused_at_start(f"{option} {text}", path), suppress(FileNotFoundError):
        os.stat(path)  # noqa: PTH116  # A missing file is reported later, with more detail.
    return path


def refuse_odd_name(option: str, path: str | Path) -> None:
    """Refuse a path that is not UTF-8, because TensorFlow cannot read or write there. Raises: UsageError."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{option} {path}: a name in this path is not UTF-8, and TensorFlow can neither read nor write there. Rename "
            "that folder, or give another path."
        ) from None


def check_readable(what: str, path: Path) -> None:
    """Try to open an input file, or to list an input folder, before work begins. Raises: UsageError, OSError."""
    with refused_at_start(what, path):
        if path.is_dir():
            os.scandir(path).close()
            os.stat(f"{path}/.")  # noqa: PTH116  # Permission to list a folder does not include entering it.
        else:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def read_named(path: Path) -> bytes:
    """Return the content of a file, or of a pipe such as the shell makes for `<(...)`.

    Raises:
        OSError: if it is neither, or if nothing is written into the pipe for 5 seconds.
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
    """Turn system errors in the block into a UsageError if a retry cannot help. For checks before work begins.

    These are missing permissions, circular links and the wrong kind of file. Other errors are raised unchanged: a file
    server that does not answer for a while must not end a scheduled job for good.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:  # Errors while reading an open file do not contain its name.
            error.filename = str(path)
        if refusal := at_start(error, what, path, writing=writing):
            raise refusal from error
        raise


def at_start(error: OSError, what: str, path: str | Path, *, writing: bool = False) -> UsageError | None:
    """Return a UsageError for a system error before work begins, or None if a retry may help."""
    if error.errno in _DENIED:
        verb = "write to" if writing else "read"
        where = error.filename if isinstance(error.filename, str) else path
        return UsageError(
            f"{what}: {denial(where, writing=writing)}. Give that user permission to {verb} it, or give another path."
        )
    fault = _OF_THE_USER.get(error.errno or 0)
    if writing and error.errno == errno.ENOENT:
        fault = "its file system does not allow new files or folders there"
    return UsageError(f"{what}: {fault}. Give another path.") if fault else None


def denial(path: str | Path, *, writing: bool = False) -> str:
    """Describe a missing permission: the user of this process, and the folder or file that refuses access."""
    with suppress(OSError):  # The path may be a link that this user may not follow.
        path = os.path.realpath(path)
    kept_out_by = _kept_out_by(Path(path))
    groups = ", ".join(map(str, sorted({os.getegid(), *os.getgroups()})))
    status = kept_out_by.lstat()
    squashed = ". There root has no special rights, as on NFS with root_squash" if os.geteuid() == 0 else ""
    return (
        f"no permission: user {_name(os.geteuid())} (groups {groups}) may not {'write to' if writing else 'read'} "
        f"{kept_out_by}, which belongs to user {_name(status.st_uid)}, group {status.st_gid}, and has mode "
        f"{stat.S_IMODE(status.st_mode):04o}{squashed}"
    )


def _kept_out_by(path: Path) -> Path:
    """Return the first folder on the way to `path` that this user may not enter, else the last part that exists."""
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


def check_temporary_folder() -> None:
    """Check that there is a folder for temporary files. Raises: UsageError."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UsageError(
            "There is no folder for temporary files: /tmp, /var/tmp and the current folder are not writable or are full. "
            "Set TMPDIR to a folder that you can write to."
        ) from None


def check_current_folder() -> None:
    """Check that the current folder exists. Raises: UsageError."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise UsageError(
            "The current folder was deleted. Change to an existing folder (cd) and run the same command again."
        ) from None
