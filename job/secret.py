"""The secret of a run with several workers. The chief writes it into the output, and whoever can read it is a worker.

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

from job.errors import JobError, StorageFailed, UsageError
from job.storage.objects import NoSuchObject, Objects, join
from job.storage.workdir import storage_errors

if TYPE_CHECKING:
    from job.storage.workdir import Workdir

NAME = ".secret"
_BEGINS = b"transfer-job secret "
_TEXT = re.compile(_BEGINS + rb"([0-9a-f]{64})\n")
_MAX_BYTES = 4096


@dataclass(frozen=True)
class Secret:
    """32 random bytes that only the workers of one start know. `repr` leaves them out, so that no log can hold them."""

    _key: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        return cls(secrets.token_bytes(32))

    @classmethod
    def parse(cls, text: bytes) -> Self | None:
        """The secret in a file, or None where the file is not whole."""
        match = _TEXT.fullmatch(text)
        return cls(bytes.fromhex(match[1].decode())) if match else None

    def to_bytes(self) -> bytes:
        return _BEGINS + self._key.hex().encode() + b"\n"

    @property
    def public_id(self) -> str:
        """A name for this secret that tells nothing about it."""
        return self.proof("public id")[:16]

    def proof(self, *words: str) -> str:
        """HMAC-SHA-256 of these words, in hexadecimal: only who knows the secret can make it."""
        return hmac.new(self._key, json.dumps(words).encode(), "sha256").hexdigest()


@contextmanager
def shared(workdir: Workdir, tell: Callable[[str], None]) -> Iterator[Secret]:
    """A new secret, which lies in the output while the block lasts. One that a killed run has left there is replaced.

    Raises:
        UsageError: where something else has that name.
        StorageFailed: where it cannot be written.
    """
    secret = Secret.new()
    if workdir.mirror:
        _write_object(workdir.mirror.objects, secret)
    else:
        _write_file(workdir.path(NAME), secret, tell)
    try:
        yield secret
    finally:
        with suppress(JobError):  # What is left behind is of no use to anybody: its run is over.
            _remove(workdir, secret)


def find(workdir: Workdir) -> Secret | None:
    """The secret that lies in the output now, or None where there is none.

    Raises:
        UsageError: where it may not be read.
        StorageFailed: where it cannot be read for another reason.
    """
    text = _read_object(workdir.mirror.objects) if workdir.mirror else _read_file(workdir.path(NAME))
    return Secret.parse(text or b"")


def _remove(workdir: Workdir, secret: Secret) -> None:
    """Remove the secret, unless another run has taken the output over and written its own."""
    if find(workdir) != secret:
        return
    if workdir.mirror:
        workdir.mirror.objects.remove(NAME)
    else:
        with storage_errors(workdir.path(NAME)):
            workdir.path(NAME).unlink(missing_ok=True)


def _write_object(objects: Objects, secret: Secret) -> None:
    found = objects.find(NAME)
    if found and not _is_ours(objects.read(NAME, found.version)):
        raise _not_ours(join(objects.uri, NAME))
    objects.write(NAME, secret.to_bytes(), found.version if found else "")


def _read_object(objects: Objects) -> bytes | None:
    try:
        return objects.read(NAME)
    except NoSuchObject:
        return None


def _write_file(path: Path, secret: Secret, tell: Callable[[str], None]) -> None:
    old = _read_file(path)
    with storage_errors(path):
        if old is not None:
            if not _is_ours(old):
                raise _not_ours(path)
            path.unlink()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(secret.to_bytes())
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o077:
        tell(f"{path}: its file system gave it mode {mode:04o} instead of 0600. Who can read it can join this run.")


def _read_file(path: Path) -> bytes | None:
    """None where there is no such file. A link or a pipe is not opened: it would lead elsewhere, or wait for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):  # Stale: replaced on another machine.
            return None
        if error.errno in (errno.ELOOP, errno.ENXIO):  # A link, a socket.
            raise _not_ours(path) from error
        if error.errno == errno.EACCES:
            raise UsageError(
                f"{path}: user {os.geteuid()} cannot read it. Start all workers as the user who starts the chief."
            ) from error
        raise StorageFailed(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_ours(path)
        with storage_errors(path):
            return os.read(descriptor, _MAX_BYTES)
    finally:
        os.close(descriptor)


def _is_ours(text: bytes) -> bool:
    """Whether the job has written a file with these first bytes, or died while it did."""
    return text.startswith(_BEGINS) or _BEGINS.startswith(text)


def _not_ours(place: Path | str) -> UsageError:
    return UsageError(
        f"{place} was not made by this job, which keeps the secret of its workers under that name. Move it elsewhere, or "
        "give another --out."
    )
