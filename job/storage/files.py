"""Writing, copying and removing files and folders, so that they appear under their final names whole or not at all."""

import ctypes
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from job.errors import StorageFailed, UsageError

_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # 9p, vboxsf and some FUSE mounts cannot sync a folder.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_LIST_OF_NUMBERS = re.compile(r'\[\n([^][{}"]*)\n *\]')

Held = Callable[[], AbstractContextManager[None]]


def own_mark() -> str:
    """Return a random name that nothing else uses. The process number is not enough: in containers it is often 1."""
    return secrets.token_hex(6)


@contextmanager
def writing(final: Path, temporary: Path, needed_bytes: int | None = None, held: Held = nullcontext) -> Iterator[Path]:
    """Give `temporary` to write to. When the block ends well, it becomes `final` in one step, inside a block of `held`.

    Both paths must be on one file system.

    Raises:
        StorageFailed: if the file could not be written. The old one, if any, is untouched.
    """
    with storage_errors(final, needed_bytes):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            with held():
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, final)
            sync(final.parent)
        finally:
            temporary.unlink(missing_ok=True)


def beside(final: Path) -> Path:
    """Return a temporary name in the folder of `final`, for a place without a folder for temporary files."""
    return final.with_name(f".{final.name[:200]}.{own_mark()}.part")


def swap(new: Path, old: Path) -> None:
    """Exchange two folders: what was at `new` is at `old` afterwards, and the other way round.

    That is one step if the file system can exchange two names (ext4, XFS, tmpfs, overlay). Otherwise it takes two renames,
    and a reader may find nothing at `old` between them.
    """
    if not _exchange(new, old):
        aside = new.with_name(f"{new.name}.old")
        os.replace(old, aside)
        os.replace(new, old)
        os.replace(aside, new)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names with renameat2(2), which Python does not offer. Return whether that worked."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)) == 0


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file and sync them. The copy is a file of its own, not a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    sync(target)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that nobody changes in place a second name. Copy it if the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)


def open_own(path: Path, flags: int) -> int:
    """Open a file of the job and return the descriptor. The file must be a regular file and no link.

    Raises:
        UsageError: if something else has the name.
        OSError.
    """
    try:
        # O_NONBLOCK, because opening a pipe would wait for another process.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise UsageError(f"{path} is in the way: it is no regular file, so this job did not make it. Move it somewhere else.")


def everything_below(folder: Path) -> Iterator[Path]:
    """Yield each file and folder below a folder, the folders before what is in them. Links are not followed.

    `rglob` and `os.walk` of Python 3.11 raise RecursionError if folders are nested deeper than Python's stack.
    """
    waiting = [folder] if folder.is_dir() else []
    while waiting:
        for path in list(waiting.pop().iterdir()):
            yield path
            if path.is_dir() and not path.is_symlink():
                waiting.append(path)


def remove_tree(folder: Path) -> None:
    """Remove a folder with everything below it, at any depth. What cannot be removed stays."""
    folders = [] if folder.is_symlink() else [folder]
    for here in folders:  # The list grows in the loop.
        with suppress(OSError):
            for path in list(here.iterdir()):
                if path.is_dir() and not path.is_symlink():
                    folders.append(path)
                else:
                    with suppress(OSError):
                        path.unlink()
    for here in reversed(folders):
        with suppress(OSError):
            here.rmdir()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_below(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, by its name relative to the folder, sorted by path."""
    files = sorted(p for p in everything_below(folder) if p.is_file())
    return {file.relative_to(folder).as_posix(): digest_of_file(file) for file in files}


def digest_of_folder(folder: Path) -> str:
    """Return the SHA-256 of the names and the bytes of all files below a folder, in hexadecimal."""
    lines = (f"{name}\0{digest}\n" for name, digest in digests_below(folder).items())
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def sync(path: Path) -> None:
    """Make the kernel write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Make the kernel write everything below a folder to the disk."""
    for path in sorted(everything_below(folder)):
        sync(path)
    sync(folder)


@contextmanager
def storage_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn an OSError in the block into StorageFailed, with advice. `needed_bytes` is as in `storage_failed`."""
    try:
        yield
    except OSError as error:
        raise storage_failed(error, path, needed_bytes) from error


def storage_failed(error: OSError, path: Path | None = None, needed_bytes: int | None = None) -> StorageFailed:
    """Return the StorageFailed for an operation on `path`, if that is known. `needed_bytes` had to be free for it."""
    where = path if isinstance(error.filename, int) else error.filename or path
    if where is None:
        said = f"Reading or writing a file failed ({error.strerror or error}); the system does not say which."
        return StorageFailed(f"{said} Run the same command again.")
    room = _room(path or Path(os.fsdecode(where)), needed_bytes) if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    hint = {
        errno.ENOSPC: f"{room} Free some space and run the same command again.",
        errno.EDQUOT: f"{room} Free some of your quota and run the same command again.",
        errno.EMFILE: " Start the job below a higher limit of open files, as `ulimit -n 4096`.",
        errno.EACCES: " Give the job's user write access to it.",
        errno.EROFS: " Choose an --out that can be written to.",
    }.get(error.errno or 0, "")
    return StorageFailed(f"{where}: {error.strerror or error}.{hint}")


def _room(path: Path, needed_bytes: int | None) -> str:
    needed = "" if needed_bytes is None else f", and this alone needs {in_units(needed_bytes)}"
    return f" {in_units(free_bytes(path))} are free there{needed}."


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system that `path` is on, or will be on."""
    return shutil.disk_usage(existing(path)).free


def on_one_disk(path: Path, other: Path) -> bool:
    """Return whether two paths are on the same file system, or will be."""
    return existing(path).stat().st_dev == existing(other).stat().st_dev


def existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def in_units(num_bytes: float) -> str:
    """Return a size in words, rounded up, for example 12.3 MB."""
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if num_bytes >= u[0]), (1e3, "kB"))
    return f"{math.ceil(10 * num_bytes / unit) / 10:,.1f} {name}"


def to_json(value: object, indent: int | None = 2) -> bytes:
    """Return a value as the bytes of a JSON file. With an indent, a list of numbers takes one line, not one for each."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if indent is not None:  # A confusion matrix of 1,000 classes would have a million lines.
        text = _LIST_OF_NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    return (text + "\n").encode("utf-8", "backslashreplace")


def read_json(path: Path) -> Any:
    """Return the parsed JSON file. None if it is missing, not a regular file, or not JSON. Raises: StorageFailed."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (ValueError, RecursionError, FileNotFoundError):
        return None
    except OSError as error:
        raise storage_failed(error, path) from error


def digest_of(value: object) -> str:
    """Return the SHA-256 of a JSON-serialisable value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
