"""One run, one owner, where the output is a bucket: the lease is an object that the owner writes again every few seconds.

Every write asks that the version before it is still there. So of two that want it one succeeds, and an owner whose lease was
taken over notices with its next commit, which asks for it.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from job.errors import JobError, UsageError
from job.storage.bucket.objects import Conflict, NoSuchObject, Objects
from job.storage.lease import NAME, Owner, in_use

_WRITTEN_EVERY_S = 10.0
_DEAD_AFTER_S = 60.0
_LOOKS_EVERY_S = 1.0
_RELEASED_WITHIN_S = 5.0
_RELEASED = b"{}"


class ObjectLease:
    """The right to write below a prefix, until it is released or lost."""

    def __init__(self, objects: Objects, owner: Owner, version: str) -> None:
        self._objects, self._owner, self._version, self._beats = objects, owner, version, 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """A secret text that only this owner can have written into the object."""
        return self._owner.token

    def release(self) -> None:
        self._released.set()
        self._thread.join(_RELEASED_WITHIN_S)  # Where it takes longer, the next run will wait a little.

    def _keep_writing(self) -> None:
        while not self._released.wait(_WRITTEN_EVERY_S):
            self._beats += 1  # Where a version is a digest, the same bytes would be the same version.
            with suppress(JobError):  # The next beat may do, and a commit says what the matter is.
                self._write(json.dumps({**asdict(self._owner), "beats": self._beats}).encode())
        with suppress(JobError):
            self._write(_RELEASED)

    def _write(self, content: bytes) -> None:
        try:
            self._version = self._objects.write(NAME, content, self._version)
        except Conflict:
            found = self._objects.find(NAME)
            if found is None or self.token.encode() not in self._objects.read(NAME, found.version):
                raise
            self._version = self._objects.write(NAME, content, found.version)  # An own beat, whose answer was lost.


def acquire(
    objects: Objects, tell: Callable[[str], None], check_stop: Callable[[], None], dead_after_s: float = _DEAD_AFTER_S
) -> ObjectLease:
    """The lease on what lies below a prefix.

    Raises:
        TryAgainLater: where its owner is alive.
        UsageError, StorageFailed, Stopped.
    """
    owner = Owner.here()
    seen, seen_at = "", time.monotonic()
    while True:
        found = objects.find(NAME)
        if found and not found.is_own:
            raise UsageError(f"{objects.uri}/{NAME} is in the way: it is no lease of this job. Move it somewhere else.")
        version, other = (found.version, _owner(objects, found.version)) if found else ("", None)
        is_silent = version == seen and time.monotonic() - seen_at > dead_after_s
        if other is None or other.is_dead or is_silent:
            if other is not None:
                tell(f"Going on after {other}, which has ended without a word")
            with suppress(Conflict):
                return ObjectLease(objects, owner, objects.write(NAME, owner.to_bytes(), version))
        elif other.is_dead is False or seen not in ("", version):
            raise in_use(objects.uri, other)
        elif not seen:
            tell(f"{objects.uri} belongs to {other}: watching for {dead_after_s:.0f} s whether it is alive")
            seen, seen_at = version, time.monotonic()
        check_stop()
        time.sleep(_LOOKS_EVERY_S)


def _owner(objects: Objects, version: str) -> Owner | None:
    """Return who holds the lease; None where it was released, or written again meanwhile, so that it cannot be replaced."""
    with suppress(NoSuchObject, ValueError):
        return Owner.parse(objects.read(NAME, version))
    return None
