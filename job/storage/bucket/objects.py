"""Object storage: whole objects below a prefix of a bucket.

An object appears whole or not at all, and a write may demand that nobody else has written in between. `google.py` and
`s3.py` have what differs between the two services.
"""

import mimetypes
import os
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

from job.errors import StorageFailed, UsageError
from job.storage.files import own_mark

RETRY_FOR_S = 60.0  # A service that fails for so long ends the run.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 20.0
WRITE_ID = "transfer-job-write"  # The key, in an object's metadata, for the id of the write.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 4.0
_URI = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL)
SCHEMES = ("gs", "s3")
Result = TypeVar("Result")
Client: TypeAlias = Any  # The object of the service's library through which requests go. The libraries have no types.


class Stored(NamedTuple):
    """An object: its name below the prefix, its size, and its `version`, which changes with every change of the content.

    `is_own` says whether this program has written it, as its metadata say. Only `find` sets it.
    """

    name: str
    num_bytes: int
    version: str
    is_own: bool = False


class NoSuchObject(StorageFailed):
    """The error for an object that does not exist, or no longer in the version that was asked for."""


class Conflict(StorageFailed):
    """Another program has written the object in the meantime."""


class Passing(NamedTuple):
    """An error after which a retry may succeed: who failed, and what was said."""

    who: str
    said: str


class Objects(ABC):
    """Whole objects below `uri`, a prefix of a bucket. Picklable; several threads may use it at once.

    Every method raises:
        UsageError: if there are no credentials, no such bucket, or no permission.
        StorageFailed: if the service fails for RETRY_FOR_S seconds. The message names the object.
    """

    def __init__(self, uri: str, max_connections: int) -> None:
        self.uri, self._max_connections = uri, max_connections
        _, self._bucket_name, prefix = parts_of(uri)
        self._prefix = f"{prefix}/" if prefix else ""
        self._connected: Client = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Self], tuple[str, int]]:
        return type(self), (self.uri, self._max_connections)

    def prepare(self) -> None:
        """Load the client library and find the credentials."""
        self._retry("", lambda: self._connection)

    @abstractmethod
    def list(self, below: str = "") -> Iterator[Stored]:
        """Yield all objects whose names begin with `below`, sorted by name."""

    def find(self, name: str) -> Stored | None:
        """Return an object, or None if there is none of this name."""
        found = self._look_up(name)
        return found[0] if found else None

    @abstractmethod
    def read(self, name: str, version: str | None = None) -> bytes:
        """Return the bytes of an object, checked against the service's checksum. Raises: NoSuchObject."""

    @abstractmethod
    def download(self, name: str, file: Path, version: str | None = None) -> None:
        """Download an object to a file. After an error a part of the file may be there. Raises: NoSuchObject."""

    def write(self, name: str, data: bytes | Path, replaces: str | None = None) -> str:
        """Write an object and return its version. With `replaces`, write only over that version; "" means no object.

        Raises:
            Conflict: if another version is there.
        """
        write_id = own_mark()
        try:
            return self._write(name, data, replaces, write_id)
        except Conflict:
            # The conflict may be with this very write: it was done, its answer was lost, and it was tried again.
            found = self._look_up(name)
            if found is None or found[1] != write_id:
                raise
            return found[0].version

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove an object. Do nothing if there is none."""

    @abstractmethod
    def _connect(self) -> Client:
        """Load the client library, find the credentials, and return the client."""

    @abstractmethod
    def _look_up(self, name: str) -> tuple[Stored, str] | None:
        """Return an object and the id of the write that made it, which is empty for a write of another program."""

    @abstractmethod
    def _write(self, name: str, data: bytes | Path, replaces: str | None, write_id: str) -> str:
        """Write an object with `write_id` in its metadata, and return its version. Raises as `write` does."""

    @abstractmethod
    def _judge(self, name: str, error: Exception) -> Exception | Passing:
        """Return what an error means: the exception to raise, which may be `error` itself, or that it may pass."""

    @property
    def _connection(self) -> Client:
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


def is_remote(text: str) -> bool:
    """Return whether a text is a URI, of object storage or of a scheme that this program does not know."""
    return _URI.match(text) is not None


def parts_of(uri: str) -> tuple[str, str, str]:
    """Return scheme, bucket and prefix of a URI, the prefix without a slash at its end. Raises as `open_objects` does."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise UsageError(f"{uri}: this is not the URI of a bucket. Give SCHEME://BUCKET/PREFIX.")
    scheme, bucket, prefix = match.groups()
    if scheme not in SCHEMES:  # The rest is not shown, because it may contain credentials.
        known = ", ".join(f"{name}://BUCKET/PREFIX" for name in SCHEMES)
        raise UsageError(f"{scheme}://...: there is no storage for {scheme}://. Give a local path, or {known}.")
    if re.search("[:@?]", bucket) or re.search("[@?]", prefix):
        raise UsageError(
            f"{scheme}://...: credentials are not allowed in a URI, nor '@' or '?' in it, nor ':' in its bucket. "
            "Sign in once (gcloud auth application-default login, or aws configure), or give the machine an account of its "
            "own. Choose a prefix without these characters."
        )
    if not bucket:
        raise UsageError(f"{uri}: the bucket is missing. Give {scheme}://BUCKET/PREFIX.")
    return scheme, bucket, prefix.rstrip("/")


def refuse_credentials(*places: "str | os.PathLike[str] | None") -> None:
    """Refuse URIs that contain credentials, before an error or a file can show them. Raises: UsageError."""
    for text in (os.fspath(place) for place in places if place is not None):
        if is_remote(text):
            parts_of(text)


def join(uri: str, name: str) -> str:
    """Return the URI of a name below a URI."""
    return f"{uri.rstrip('/')}/{name}" if name else uri


def split_object(uri: str) -> tuple[str, str]:
    """Return the URI of an object's folder, and the object's name in it. Raises: UsageError, if it names no object."""
    if is_remote(uri) and not parts_of(uri)[2]:
        raise UsageError(f"{uri}: this is a whole bucket, and no object in it. Give {uri.rstrip('/')}/NAME.")
    folder, _, name = uri.rstrip("/").rpartition("/")
    return folder, name


def remove_own(objects: Objects, name: str, version: str | None = None) -> None:
    """Remove an object, unless another program has written it, or it is of another version than the given one."""
    found = objects.find(name)
    if found and found.is_own and version in (None, found.version):
        objects.remove(name)


def content_type(name: str) -> str:
    """Return the content type of an object by its name, for browsers."""
    found, encoding = mimetypes.guess_type(name.rpartition("/")[2])
    return found if found and not encoding else "application/octet-stream"
