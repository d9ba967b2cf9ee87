"""Object storage: whole objects below a prefix of a bucket, whoever keeps them.

Nothing here knows what the objects are for. An object appears whole or not at all, and a write may ask that nobody else has
written in between. `google.py` and `s3.py` speak to the services.
"""

import mimetypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from job.errors import StorageFailed, UsageError

RETRY_FOR_S = 60.0  # What fails for so long fails the run.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 20.0
_URI = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL)
SCHEMES = ("gs", "s3")


class Stored(NamedTuple):
    """An object: its name below the prefix, and its `version`, which changes whenever the content may have.

    `is_own` says whether this program has written it, by a mark in its metadata. Only `find` looks for that.
    """

    name: str
    num_bytes: int
    version: str
    is_own: bool = False


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
        """Download an object to a file. An error may leave a part of the file. Raises: NoSuchObject."""

    def write(self, name: str, data: bytes | Path, replaces: str | None = None) -> str:
        """Returns the version written. With `replaces`, only where that version is there; the empty one means none.

        Raises: Conflict.
        """
        ...

    def remove(self, name: str) -> None:
        """Nothing where there is none."""


def is_remote(text: str) -> bool:
    """Whether it names something in object storage, or on another kind of machine that we may not know."""
    return _URI.match(text) is not None


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


def refuse_credentials(*places: "str | os.PathLike[str] | None") -> None:
    """Refuse URIs with credentials in them before anything can repeat them, in an error or in a file. Raises: UsageError."""
    for text in (os.fspath(place) for place in places if place is not None):
        if is_remote(text):
            parts_of(text)


def join(uri: str, name: str) -> str:
    return f"{uri.rstrip('/')}/{name}" if name else uri


def split_object(uri: str) -> tuple[str, str]:
    """The URI of an object's folder, and its name in it."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return folder, name


def remove_own(objects: Objects, name: str, version: str | None = None) -> None:
    """Remove an object that this program has written, in this version where one is given. Leave any other alone."""
    found = objects.find(name)
    if found and found.is_own and version in (None, found.version):
        objects.remove(name)


def content_type(name: str) -> str:
    """Return the content type of an object, for browsers."""
    found, encoding = mimetypes.guess_type(name.rpartition("/")[2])
    return found if found and not encoding else "application/octet-stream"
