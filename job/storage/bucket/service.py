"""The common part of the clients for object storage: one connection for all threads, retries, and ids of writes."""

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, Self, TypeVar

from job.errors import StorageFailed
from job.storage.bucket.objects import RETRY_FOR_S, Conflict, Stored, parts_of
from job.storage.files import own_mark

WRITE_ID = "transfer-job-write"  # The key, in an object's metadata, for the id of the write.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 4.0
Connection = TypeVar("Connection")
Result = TypeVar("Result")


class Passing(NamedTuple):
    """An error after which a retry may succeed: who failed, and what was said."""

    who: str
    said: str


class Service(ABC, Generic[Connection]):
    """Objects below a prefix of a bucket of one service. See `Objects`."""

    def __init__(self, uri: str, max_connections: int) -> None:
        self.uri, self._max_connections = uri, max_connections
        _, self._bucket_name, prefix = parts_of(uri)
        self._prefix = f"{prefix}/" if prefix else ""
        self._connected: Connection | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Self], tuple[str, int]]:
        return type(self), (self.uri, self._max_connections)

    @abstractmethod
    def _connect(self) -> Connection:
        """Load the client library and find the credentials."""

    @abstractmethod
    def _look_up(self, name: str) -> tuple[Stored, str] | None:
        """Return an object and the id of the write that made it, which is empty for a write of another program."""

    @abstractmethod
    def _write(self, name: str, data: bytes | Path, replaces: str | None, write_id: str) -> str:
        """Write an object with `write_id` in its metadata, and return its version. Raises as `Objects.write` does."""

    @abstractmethod
    def _judge(self, name: str, error: Exception) -> Exception | Passing:
        """Return what an error means: the exception to raise, which may be `error` itself, or that it may pass."""

    def prepare(self) -> None:
        """Connect. Raises: UsageError, StorageFailed."""
        self._retry("", lambda: self._connection)

    def find(self, name: str) -> Stored | None:
        """Return an object, or None if there is none."""
        found = self._look_up(name)
        return found[0] if found else None

    def write(self, name: str, data: bytes | Path, replaces: str | None = None) -> str:
        """Write an object and return its version. See `Objects.write`."""
        write_id = own_mark()
        try:
            return self._write(name, data, replaces, write_id)
        except Conflict:
            # The conflict may be with this very write: it was done, its answer was lost, and it was tried again.
            found = self._look_up(name)
            if found is None or found[1] != write_id:
                raise
            return found[0].version

    @property
    def _connection(self) -> Connection:
        with self._lock:
            if self._connected is None:
                self._connected = self._connect()
            return self._connected

    def _retry(self, name: str, operation: Callable[[], Result]) -> Result:
        return retry(operation, lambda error: self._judge(name, error))


def retry(operation: Callable[[], Result], judge: Callable[[Exception], Exception | Passing]) -> Result:
    """Return the result of an operation. Retry it for RETRY_FOR_S seconds after its first failure.

    `judge` says what an error means: the exception to raise, which may be the error itself, or that it may pass.
    """
    failing_since, pause_s = None, _FIRST_PAUSE_S
    while True:
        try:
            return operation()
        except Exception as error:
            verdict, now = judge(error), time.monotonic()
            if verdict is error:
                raise
            if isinstance(verdict, Exception):
                raise verdict from error
            failing_since = now if failing_since is None else failing_since
            left_s = failing_since + RETRY_FOR_S - now
            if left_s <= 0:
                said = f"{verdict.who} failed for {now - failing_since:.0f} s ({verdict.said})"
                raise StorageFailed(f"{said}. Run the same command again.") from error
        time.sleep(min(left_s, random.uniform(0.5, 1.0) * pause_s))  # noqa: S311 - it secures nothing.
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
