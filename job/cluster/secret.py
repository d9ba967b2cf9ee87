"""The secret of a run with several workers. The chief writes it into the output; whoever can read it there can join the run.

It is new at each start and removed at the end. It never crosses the network: `handshake.py` proves that both ends know it.
"""

from __future__ import annotations

import errno
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from job.errors import JobError, UsageError
from job.storage.bucket.objects import NoSuchObject, Objects, join, remove_own
from job.storage.files import open_own, storage_errors, storage_failed

if TYPE_CHECKING:
    from job.storage.workdir import Workdir

NAME = ".secret"
_BEGINS = b"transfer-job secret "
_TEXT = re.compile(_BEGINS + rb"([0-9a-f]{64})\n")
_MAX_BYTES = 4096


@dataclass(frozen=True)
class Secret:
    """32 random bytes that only the workers of one start know. `repr` does not show them, so that they reach no log."""

    _key: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """Return a new random secret."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def parse(cls, text: bytes) -> Self | None:
        """Return the secret in the content of a file, or None if it is something else."""
        match = _TEXT.fullmatch(text)
        return cls(bytes.fromhex(match[1].decode())) if match else None

    def to_bytes(self) -> bytes:
        """Return the content of the secret's file."""
        return _BEGINS + self._key.hex().encode() + b"\n"

    @property
    def public_id(self) -> str:
        """An identifier that does not reveal the secret."""
        return self.proof("public id")[:16]

    def proof(self, *words: str) -> str:
        """Return the HMAC-SHA-256 of these words, in hexadecimal. Nobody can make it without the secret."""
        return hmac.new(self._key, json.dumps(words).encode(), "sha256").hexdigest()


@contextmanager
def shared(workdir: Workdir, tell: Callable[[str], None]) -> Iterator[Secret]:
    """Write a new secret to the output, yield it, and remove it after the block. A secret left by a killed run is replaced.

    Raises:
        UsageError: if there is a file of that name which is no secret of this job.
        StorageFailed: if it cannot be written.
        TryAgainLater: if another run has taken over the output.
    """
    secret = Secret.new()
    with _in_bucket(workdir.objects, secret) if workdir.objects else _in_folder(workdir, secret, tell):
        yield secret


def find(workdir: Workdir) -> Secret | None:
    """Return the secret that is in the output now, or None if there is none.

    Raises:
        UsageError: if this user may not read it, or it is no regular file.
        StorageFailed: if it cannot be read for another reason.
    """
    if not workdir.objects:
        return Secret.parse(_read_file(workdir.path(NAME)) or b"")
    with suppress(NoSuchObject):
        return Secret.parse(workdir.objects.read(NAME))
    return None


@contextmanager
def _in_bucket(objects: Objects, secret: Secret) -> Iterator[None]:
    found = objects.find(NAME)
    if found and not found.is_own:
        raise _not_ours(join(objects.uri, NAME))
    version = objects.write(NAME, secret.to_bytes(), found.version if found else "")
    try:
        yield
    finally:
        with suppress(JobError):  # A secret that stays behind is harmless, because its run is over.
            remove_own(objects, NAME, version)


@contextmanager
def _in_folder(workdir: Workdir, secret: Secret, tell: Callable[[str], None]) -> Iterator[None]:
    path, temporary = workdir.path(NAME), workdir.temporary()
    with storage_errors(path):
        mode = _write_private(temporary, secret.to_bytes())
        with workdir.held():
            old = _read_file(path)
            if old is not None and Secret.parse(old) is None:
                raise _not_ours(path)
            os.replace(temporary, path)
    if mode & 0o077:
        tell(f"{path}: the file system gave it mode {mode:04o} instead of 0600. Whoever can read it can join this run.")
    try:
        yield
    finally:
        with suppress(JobError, OSError), workdir.held():
            if find(workdir) == secret:
                path.unlink()


def _write_private(path: Path, data: bytes) -> int:
    """Write a new file that only this user can read, even while it is written. Return the mode that it got."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return stat.S_IMODE(os.fstat(file.fileno()).st_mode)


def _read_file(path: Path) -> bytes | None:
    """Return the first bytes of a regular file, or None if there is none. Raises: UsageError, StorageFailed."""
    try:
        with open(open_own(path, os.O_RDONLY), "rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):  # ESTALE: another machine has replaced the file.
            return None
        if error.errno == errno.EACCES:
            raise UsageError(
                f"{path}: user {os.geteuid()} cannot read it. Start the chief and all workers as one user. If no run uses "
                "this output now, remove the file."
            ) from error
        raise storage_failed(error, path) from error


def _not_ours(place: Path | str) -> UsageError:
    return UsageError(
        f"{place} is in the way: this job did not make it and does not replace it, but needs the name for the secret of its "
        "workers. Move it somewhere else and run the same command again."
    )
