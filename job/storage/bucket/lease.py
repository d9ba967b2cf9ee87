"""The lease on an output in a bucket: an object that names the one process that may write there, its owner.

The owner writes it again every 10 s. Each write succeeds only if it replaces the version that the writer has seen. So if two
runs want the lease, one of them gets it. Each commit of the output checks the lease, so an owner whose lease was taken over
cannot commit any more.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from job.errors import JobError, UsageError
from job.storage.bucket.objects import Conflict, NoSuchObject, Objects
from job.storage.lease import NAME, Owner, Watch

_WRITTEN_EVERY_S = 10.0
_DEAD_AFTER_S = 60.0
_LOOKS_EVERY_S = 1.0
_RELEASED_WITHIN_S = 5.0
_RELEASED = b"{}"


class ObjectLease:
    """The right to write below a prefix, until it is released or another run takes it over."""

    def __init__(self, objects: Objects, owner: Owner, version: str) -> None:
        self._objects, self._owner, self._version, self._beats = objects, owner, version, 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """The secret that only this owner can have written into the object."""
        return self._owner.token

    def release(self) -> None:
        """Write that the lease is free; wait for that for some seconds at most. If it fails, the next run has to wait."""
        self._released.set()
        self._thread.join(_RELEASED_WITHIN_S)

    def _keep_writing(self) -> None:
        while not self._released.wait(_WRITTEN_EVERY_S):
            self._beats += 1  # In S3 a version is a digest: the same bytes would be the same version.
            with suppress(JobError):  # The next write may succeed. If none does, a commit reports the reason.
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
            self._version = self._objects.write(NAME, content, found.version)  # It was our own write, whose answer was lost.


def acquire(
    objects: Objects, tell: Callable[[str], None], check_stop: Callable[[], None], dead_after_s: float = _DEAD_AFTER_S
) -> ObjectLease:
    """Take the lease on everything below a prefix.

    Raises:
        TryAgainLater: if the owner is alive.
        UsageError: if an object of this name is not a lease, or without permission for the bucket.
        StorageFailed: if the service fails.
        Stopped: if `check_stop` raises it.
    """
    owner, watch = Owner.here(), Watch(objects.uri, tell, dead_after_s)
    while True:
        found = objects.find(NAME)
        if found and not found.is_own:
            raise UsageError(f"{objects.uri}/{NAME} is in the way: it is not a lease of this job. Give it another name.")
        version, other = (found.version, _owner(objects, found.version)) if found else ("", None)
        if watch.is_free(other, version):
            with suppress(Conflict):
                return ObjectLease(objects, owner, objects.write(NAME, owner.to_bytes(), version))
        check_stop()
        time.sleep(_LOOKS_EVERY_S)


def _owner(objects: Objects, version: str) -> Owner | None:
    """Return the owner that this version of the lease names; None if it names none, or if the lease was written meanwhile.

    A lease that was written meanwhile is safe to try for: the write asks for this version and fails.
    """
    with suppress(NoSuchObject, ValueError):
        return Owner.parse(objects.read(NAME, version))
    return None
