"""The output directory: the only writer of final names.

A file appears under its final name whole or not at all: temporary name, fsync, `os.replace`, fsync of the folder.
A folder is published as `versions/DIGEST/` and one atomic switch of a link.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.errors import StorageFailed
from job.storage import lease
from job.storage.lease import NAME as LEASE
from job.storage.lease import Lease

if TYPE_CHECKING:
    from job.storage.mirror import Mirror

_PART = re.compile(r"\.(.+\.)?[0-9a-f]{12}\.part")


class Workdir:
    """A directory that outlives the run. Names are relative to it, with `/` between their parts.

    Where there is a `lease`, a final name appears, changes or goes only while that is held. With a `mirror` it is a bucket
    that outlives the run, and `root` the local folder that the bucket has as of the last `commit`; `is_glance` for one that
    is only looked at.
    """

    def __init__(self, root: Path, mirror: Mirror | None = None, *, is_glance: bool = False) -> None:
        self.root, self.mirror, self.is_glance = root, mirror, is_glance
        self.lease: Lease | None = None

    @property
    def uri(self) -> str:
        """What the user calls it."""
        return self.mirror.objects.uri if self.mirror else str(self.root)

    def shown(self, name: str) -> str:
        """What the user calls a file in it."""
        return f"{self.uri}/{name}"

    @property
    def token(self) -> str:
        """What nobody but the owner can have written into the lease."""
        assert self.lease is not None
        return self.mirror.token if self.mirror else self.lease.token

    def is_led_by(self, token: str) -> bool:
        """Whether the owner of the lease is the one with this token."""
        return self.mirror.has(token) if self.mirror else lease.has(self.root, token)

    def commit(self) -> None:
        """See to it that everything written so far lasts. Raises: TryAgainLater, StorageFailed."""
        if self.mirror:
            self.mirror.push()

    def settle(self) -> None:
        """The last commit of a run."""
        if self.mirror:
            self.mirror.settle()

    def refresh(self) -> None:
        """See what another worker's machine has committed."""
        if self.mirror:
            self.mirror.pull()

    def bring(self, name: str) -> None:
        """Have the files below a folder of checkpoints here."""
        if self.mirror:
            self.mirror.bring(name)

    def path(self, name: str) -> Path:
        return self.root / name

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    @contextmanager
    def writing(self, name: str, needed_bytes: int | None = None) -> Iterator[Path]:
        """Give a temporary path to write to; when the block ends well, it becomes `name` in one step.

        Raises:
            StorageFailed: where the disk does not take it; the old file, if any, is untouched.
        """
        final = self.path(name)
        temporary = final.with_name(f".{final.name}.{own_mark()}.part")
        with storage_errors(final, needed_bytes):
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
                sync(temporary)
                with self.held():
                    os.replace(temporary, final)
                sync(final.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def held(self) -> AbstractContextManager[None]:
        """A block in which nobody else can take this directory over. Not to be nested.

        Raises:
            TryAgainLater: where somebody has.
        """
        return self.lease.held() if self.lease else nullcontext()

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.writing(name, len(data)) as path:
            path.write_bytes(data)

    def write_json(self, name: str, value: Any, indent: int | None = 2) -> None:
        """Without indentation it takes a third of the time; for what only programs read."""
        text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
        self.write_bytes(name, text.encode("utf-8", "backslashreplace"))

    def read_json(self, name: str) -> Any:
        """The parsed file, or None where it is missing, no regular file or not JSON."""
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (ValueError, RecursionError, FileNotFoundError):
            return None
        except OSError as error:
            raise StorageFailed(f"{path}: {error.strerror}") from error

    def publish_folder(self, name: str, build: Callable[[Path], None]) -> None:
        """Let `build` fill a new folder, then make `name` point to it in one step; earlier versions are removed."""
        final = self.path(name)
        versions = self.path("versions")
        with storage_errors(final):
            version = add_folder(versions, lambda digest: f"{name}-{digest[:16]}", build, self.held)
            link = final.with_name(f".{name}.{own_mark()}.part")
            try:
                link.symlink_to(version.relative_to(final.parent), target_is_directory=True)
                with self.held():
                    os.replace(link, final)
            finally:
                link.unlink(missing_ok=True)
            sync(final.parent)
            with self.held():
                for old in versions.glob(f"{name}-*"):
                    if old != version:
                        remove_folder(old)

    def remove(self, name: str) -> None:
        path = self.path(name)
        with storage_errors(path), self.held():
            if path.is_dir() and not path.is_symlink():
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)

    def remove_parts(self, shared: Path | None = None) -> None:
        """What earlier owners of the directory were at when they were killed; not below `shared`, which others write to, and
        not in a folder below that has an owner of its own."""
        with storage_errors(self.root):
            parts = list(_parts_below(self.root, shared))
            with self.held():
                for part in parts:
                    if part.is_dir() and not part.is_symlink():
                        shutil.rmtree(part)
                    else:
                        part.unlink(missing_ok=True)

    def fresh_folder(self, name: str) -> Path:
        """An empty folder for a stage's own files."""
        self.remove(name)
        with storage_errors(self.path(name)):
            self.path(name).mkdir(parents=True)
        return self.path(name)

    def digests(self, names: tuple[str, ...]) -> dict[str, str]:
        """SHA-256 of each file, and of each file below a folder, by name; what is missing is left out."""
        found: dict[str, str] = {}
        for name in names:
            path = self.path(name)
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] * path.is_file()
            for file in files:
                found[file.relative_to(self.root).as_posix()] = digest_of_file(file)
        return found


def add_folder(
    parent: Path,
    name_of: Callable[[str], str],
    build: Callable[[Path], None],
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Path:
    """Let `build` fill a new folder below `parent`. It appears whole, under a name made from its digest; where there is such
    a folder, with the same bytes then, that one stays."""
    temporary = parent / f".{own_mark()}.part"
    temporary.mkdir(parents=True)
    try:
        build(temporary)
        for path in sorted(temporary.rglob("*")):
            sync(path)
        sync(temporary)
        digest = digest_of_folder(temporary)
        final = parent / name_of(digest)
        with held():
            if final.exists() and digest_of_folder(final) != digest:
                remove_folder(final)
            if not final.exists():
                os.replace(temporary, final)
        sync(parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _parts_below(root: Path, shared: Path | None) -> Iterator[Path]:
    """Temporary files and folders, by the names that `own_mark` gives them."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        if here == shared or (here != root and LEASE in files):
            folders.clear()
            continue
        found = [name for name in (*folders, *files) if is_part(name)]
        folders[:] = [name for name in folders if name not in found]
        yield from (here / name for name in found)


def is_part(name: str) -> bool:
    """Whether a file or folder of this name is unfinished."""
    return _PART.fullmatch(name) is not None


def remove_folder(folder: Path) -> None:
    """In one step for everyone who looks; the rest of the work goes on under another name."""
    temporary = folder.with_name(f".{own_mark()}.part")
    os.replace(folder, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def own_mark() -> str:
    """Part of a temporary name that nobody else uses; in containers every process may have the number 1."""
    return secrets.token_hex(6)


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the kernel write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of_folder(folder: Path) -> str:
    """SHA-256 of the names and the bytes of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{digest_of_file(path)}\n".encode())
    return digest.hexdigest()


@contextmanager
def storage_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Errors of the system in the block become StorageFailed, with the way out."""
    try:
        yield
    except OSError as error:
        raise storage_failed(error, path, needed_bytes) from error


def storage_failed(error: OSError, path: Path, needed_bytes: int | None = None) -> StorageFailed:
    """The error of a whole operation on `path`, for which `needed_bytes` had to be free where that is known."""
    where = error.filename or path
    hint = {
        errno.ENOSPC: f"{_room(path, needed_bytes)} Free some space and run the same command again.",
        errno.EDQUOT: f"{_room(path, needed_bytes)} Free some of your quota and run the same command again.",
        errno.EACCES: " Give the job's user write access to it.",
        errno.EROFS: " Choose an --out that can be written to.",
    }.get(error.errno or 0, "")
    return StorageFailed(f"{where}: {error.strerror or error}.{hint}")


def _room(path: Path, needed_bytes: int | None) -> str:
    existing = next(p for p in (path, *path.parents) if p.exists())
    needed = "" if needed_bytes is None else f", and this alone needs {in_units(needed_bytes)}"
    return f" {in_units(shutil.disk_usage(existing).free)} are free there{needed}."


def in_units(num_bytes: float) -> str:
    """12.3 MB, rounded up."""
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if num_bytes >= u[0]), (1e3, "kB"))
    return f"{math.ceil(10 * num_bytes / unit) / 10:,.1f} {name}"
