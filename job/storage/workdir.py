"""The output directory: the only writer of final names.

A file appears under its final name whole or not at all: temporary name, fsync, `os.replace`, fsync of the folder.
A folder is published as `versions/DIGEST/` and one atomic switch of a link.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from job.errors import StorageFailed


class Workdir:
    """A directory that outlives the run. Names are relative to it, with `/` between their parts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a temporary path to write to; when the block ends well, it becomes `name` in one step.

        Raises:
            StorageFailed: where the disk does not take it; the old file, if any, is untouched.
        """
        final = self.path(name)
        temporary = final.with_name(f".{final.name}.{own_mark()}.part")
        with storage_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
                sync(temporary)
                os.replace(temporary, final)
                sync(final.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.writing(name) as path:
            path.write_bytes(data)

    def write_json(self, name: str, value: Any, indent: int | None = 2) -> None:
        """Without indentation it takes a third of the time; for what only programs read."""
        text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
        self.write_bytes(name, text.encode("utf-8", "backslashreplace"))

    def read_json(self, name: str) -> Any:
        """The parsed file, or None where it is missing or is not JSON."""
        try:
            return json.loads(self.path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (UnicodeDecodeError, json.JSONDecodeError):
            return None
        except OSError as error:
            raise StorageFailed(f"{self.path(name)}: {error.strerror}") from error

    def publish_folder(self, name: str, build: Callable[[Path], None]) -> None:
        """Let `build` fill a new folder, then make `name` point to it in one step; earlier versions are removed."""
        final = self.path(name)
        versions = self.path("versions")
        temporary = versions / f".{name}.{os.getpid()}.part"
        with storage_errors(final):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                build(temporary)
                for path in sorted(temporary.rglob("*")):
                    sync(path)
                version = versions / f"{name}-{_digest_of_folder(temporary)[:16]}"
                if version.exists():
                    shutil.rmtree(version)
                os.replace(temporary, version)
                sync(versions)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            link = final.with_name(f".{name}.{os.getpid()}.link")
            link.unlink(missing_ok=True)
            link.symlink_to(version.relative_to(final.parent), target_is_directory=True)
            os.replace(link, final)
            sync(final.parent)
        for old in versions.glob(f"{name}-*"):
            if old != version:
                shutil.rmtree(old, ignore_errors=True)

    def remove(self, name: str) -> None:
        path = self.path(name)
        with storage_errors(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

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


def _digest_of_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{digest_of_file(path)}\n".encode())
    return digest.hexdigest()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Errors of the system in the block become StorageFailed, with the way out."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        hint = {
            errno.ENOSPC: " Free some space and run the same command again.",
            errno.EACCES: " Give the job's user write access to it.",
            errno.EROFS: " Choose an --out that can be written to.",
        }.get(error.errno or 0, "")
        raise StorageFailed(f"{where}: {error.strerror or error}.{hint}") from error
