"""Object storage: whole objects below a prefix of a bucket, whoever keeps them.

Nothing here knows what the objects are for. An object appears whole or not at all, and a write may ask that nobody else has
written in between. `google.py` and `s3.py` speak to the services.
"""

import hashlib
import mimetypes
import os
import random
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from job.errors import StorageFailed, UsageError

RETRY_FOR_S = 60.0  # What fails for so long fails the run.
_THREADS = 8
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 20.0
WRITE_ID = "transfer-job-write"  # The name, in an object's metadata, of what tells one's own write from another's.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 4.0
_URI = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL)
Result = TypeVar("Result")


class Stored(NamedTuple):
    """An object: its name below the prefix, and its `version`, which changes whenever the content may have."""

    name: str
    num_bytes: int
    version: str


class NoSuchObject(StorageFailed):
    """There is no object of this name, or not in this version any more."""


class Conflict(StorageFailed):
    """Somebody else has written in between."""


class Objects(Protocol):
    """Whole objects below `uri`. Picklable; several threads may use it at once.

    Every method raises:
        UsageError: where there are no credentials, no such bucket, or no permission.
        StorageFailed: naming the object, where the service has failed for RETRY_FOR_S seconds.
    """

    @property
    def uri(self) -> str: ...

    def prepare(self) -> None:
        """Load the client library and find the credentials."""

    def list(self, below: str = "") -> Iterator[Stored]:
        """All objects whose names begin with `below`, sorted by name."""
        ...

    def find(self, name: str) -> Stored | None: ...

    def read(self, name: str, version: str | None = None) -> bytes:
        """The bytes, checked against the service's checksum. Raises: NoSuchObject."""
        ...

    def download(self, name: str, file: Path, version: str | None = None) -> None:
        """The same, into a file, of which an error may leave a part. Raises: NoSuchObject."""

    def write(self, name: str, data: bytes | Path, replaces: str | None = None) -> str:
        """Returns the version written. With `replaces`, only where that version is there; the empty one means none.

        Raises: Conflict.
        """
        ...

    def remove(self, name: str) -> None:
        """Nothing where there is none."""


def _google(uri: str, connections: int) -> Objects:
    from job.storage.google import GoogleObjects

    return GoogleObjects(uri, connections)


def _s3(uri: str, connections: int) -> Objects:
    from job.storage.s3 import S3Objects

    return S3Objects(uri, connections)


SCHEMES: dict[str, Callable[[str, int], Objects]] = {"gs": _google, "s3": _s3}


def is_remote(text: str) -> bool:
    """Whether it names something in object storage, or on another kind of machine that we may not know."""
    return _URI.match(text) is not None


def open_objects(uri: str, *, connections: int = 32) -> Objects:
    """The objects below SCHEME://BUCKET/PREFIX; nothing is asked of the service yet.

    Raises:
        UsageError: for an unknown scheme, no bucket, or what may be credentials in the URI, which are not repeated.
    """
    scheme, bucket, prefix = parts_of(uri)
    return SCHEMES[scheme](f"{scheme}://{bucket}/{prefix}".rstrip("/"), connections)


def parts_of(uri: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix, without a slash at its end. See `open_objects`."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise UsageError(f"{uri}: give SCHEME://BUCKET/PREFIX.")
    scheme, bucket, prefix = match.groups()
    if scheme not in SCHEMES:  # Not repeated either: where the credentials are in it, nobody knows.
        known = ", ".join(f"{name}://BUCKET/PREFIX" for name in SCHEMES)
        raise UsageError(f"{scheme}://...: there is no storage for {scheme}://; there are local paths and {known}.")
    if re.search("[:@?]", bucket) or re.search("[@?]", prefix):
        raise UsageError(
            f"{scheme}://...: credentials never stand in a URI, so that no '@' or '?' may be in it, no ':' in its bucket. "
            "Sign in once (gcloud auth application-default login, or aws configure), or give the machine an account of its "
            "own; choose a prefix without these characters."
        )
    if not bucket:
        raise UsageError(f"{uri}: there is no bucket in it; give {scheme}://BUCKET/PREFIX.")
    return scheme, bucket, prefix.rstrip("/")


def join(uri: str, name: str) -> str:
    return f"{uri.rstrip('/')}/{name}" if name else uri


def split_object(uri: str) -> tuple[str, str]:
    """The URI of an object's folder, and its name in it."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return folder, name


class Passing(NamedTuple):
    """An error after which another try may do: who failed, and what was said."""

    who: str
    said: str


def tried(operation: Callable[[], Result], judge: Callable[[Exception], Exception | Passing], retry_for_s: float) -> Result:
    """What the operation gives, tried again until it has failed for `retry_for_s`, counted from its first failure.

    `judge` says what an error means: what is to be raised, perhaps the error itself, or that it may pass.
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
            left_s = failing_since + retry_for_s - now
            if left_s <= 0:
                raise StorageFailed(
                    f"{verdict.who} failed for {now - failing_since:.0f} s ({verdict.said}). Run the same command again: "
                    "it goes on where it was."
                ) from error
        time.sleep(min(left_s, random.uniform(0.5, 1.0) * pause_s))  # noqa: S311 - it secures nothing.
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def content_type(name: str) -> str:
    """What a browser is told that the object is."""
    found, encoding = mimetypes.guess_type(name.rpartition("/")[2])
    return found if found and not encoding else "application/octet-stream"


def new_write_id() -> str:
    return secrets.token_hex(8)


def scratch(uri: str) -> Path:
    """The local folder for what belongs to `uri`, below TMPDIR: always the same one on a machine, and only this user's."""
    root = Path(tempfile.gettempdir()) / f"transfer-job-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise UsageError(f"{root} belongs to somebody else; set TMPDIR to a folder of your own.")
    return root / hashlib.sha256(uri.encode()).hexdigest()[:16]


def fetch(objects: Objects, name: str, file: Path, version: str | None = None) -> None:
    """Download an object; the file is there whole or not at all. Raises: NoSuchObject."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{new_write_id()}.part")
    try:
        objects.download(name, part, version)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def local_copy(uri: str) -> Path:
    """An object as a local file, which is there already where its version has not changed.

    Raises:
        UsageError: where there is none.
    """
    folder, name = split_object(uri)
    objects = open_objects(folder)
    found = objects.find(name)
    if found is None:
        next(objects.list(name), None)  # It says so where there is not even the bucket.
        raise UsageError(f"{uri}: there is no such object.")
    file = scratch(f"{uri} {found.version}") / name
    if not file.exists():
        fetch(objects, name, file, found.version)
    return file


def local_folder(uri: str) -> Path:
    """Everything below a prefix as a local folder, which is there already where nothing has changed.

    Raises:
        UsageError: where there is nothing.
    """
    objects = open_objects(uri)
    found = list(objects.list())
    folder = scratch(f"{objects.uri} {found}")
    if not found:
        raise UsageError(f"{uri}: there is nothing below it.")
    if not folder.exists():
        part = folder.with_name(f".{new_write_id()}.part")
        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(lambda one: _download_below(objects, one, part), found))
            with suppress(OSError):  # Another process has just done the same.
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _download_below(objects: Objects, one: Stored, folder: Path) -> None:
    parts = Path(one.name).parts
    if one.name.endswith("/") or ".." in parts or one.name.startswith("/"):
        return
    file = folder.joinpath(*parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    objects.download(one.name, file, one.version)
