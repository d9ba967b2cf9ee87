"""Google Cloud Storage, by its own client and the application default credentials."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from job.errors import StorageFailed, UsageError
from job.storage.objects import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    RETRY_FOR_S,
    WRITE_ID,
    Conflict,
    NoSuchObject,
    Stored,
    join,
    new_write_id,
    parts_of,
)

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket

_TIMEOUT = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
_QUERY = re.compile(r"(with url: |\?)\S+")  # Upload sessions are addressed by what nobody else should know.
Result = TypeVar("Result")


class GoogleObjects:
    """See `Objects`. A version is a generation."""

    def __init__(self, uri: str, connections: int) -> None:
        self.uri, self._connections = uri, connections
        _, self._bucket_name, prefix = parts_of(uri)
        self._prefix = f"{prefix}/" if prefix else ""

    def __reduce__(self) -> Any:
        return GoogleObjects, (self.uri, self._connections)

    def prepare(self) -> None:
        with self._translated(""):
            self._bucket  # noqa: B018

    def list(self, below: str = "") -> Iterator[Stored]:
        with self._translated("", missing_is_bucket=True):
            found = self._bucket.client.list_blobs(
                self._bucket,
                prefix=self._prefix + below,
                fields="items(name,size,generation),nextPageToken",
                timeout=_TIMEOUT,
                retry=self._retry,
            )
            for blob in found:
                yield Stored(blob.name[len(self._prefix) :], blob.size or 0, str(blob.generation))

    def find(self, name: str) -> Stored | None:
        with self._translated(name):
            blob = self._bucket.get_blob(self._prefix + name, timeout=_TIMEOUT, retry=self._retry)
            return Stored(name, blob.size or 0, str(blob.generation)) if blob else None

    def read(self, name: str, version: str | None = None) -> bytes:
        return self._retried(name, lambda: self._blob(name, version).download_as_bytes(**self._how_to_read))

    def download(self, name: str, file: Path, version: str | None = None) -> None:
        self._retried(name, lambda: self._blob(name, version).download_to_filename(str(file), **self._how_to_read))

    def write(self, name: str, data: bytes | Path, replaces: str | None = None) -> str:
        from google.api_core.exceptions import PreconditionFailed

        write_id = new_write_id()
        generation = None if replaces is None else int(replaces or 0)

        def upload() -> str:
            blob = self._blob(name)
            blob.metadata = {WRITE_ID: write_id}
            how: dict[str, Any] = {"if_generation_match": generation, "timeout": _TIMEOUT, "retry": self._retry}
            try:
                if isinstance(data, bytes):
                    blob.upload_from_string(data, "application/octet-stream", checksum="crc32c", **how)
                else:
                    blob.upload_from_filename(str(data), checksum="crc32c", **how)
            except PreconditionFailed:
                # It may be a second try after one that was done, and whose answer was lost.
                found = self._bucket.get_blob(self._prefix + name, timeout=_TIMEOUT, retry=self._retry)
                if found is None or (found.metadata or {}).get(WRITE_ID) != write_id:
                    raise
                return str(found.generation)
            return str(blob.generation)

        with self._translated(name, missing_is_bucket=True):
            return self._retry(upload)()

    def remove(self, name: str) -> None:
        from google.api_core.exceptions import NotFound

        with self._translated(name):
            try:
                self._bucket.delete_blob(self._prefix + name, timeout=_TIMEOUT, retry=self._retry)
            except NotFound:
                return

    @cached_property
    def _bucket(self) -> Bucket:
        from google.auth.exceptions import DefaultCredentialsError
        from google.auth.transport.requests import Request
        from google.cloud.storage import Client
        from requests.adapters import HTTPAdapter

        # Else the client asks for the bucket in a thread of its own, just to name it in traces.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        try:
            client = Client(project="none")  # It stands for billing new buckets, and none is made here.
        except OSError as error:  # The file with the credentials cannot be read.
            raise DefaultCredentialsError(f"{error.filename}: {error.strerror}") from error
        if not client._credentials.valid:  # Else each of the threads would ask for a token of its own.
            self._retry(client._credentials.refresh)(Request())
            client._credentials.with_non_blocking_refresh()
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=self._connections)
        for scheme in ("https://", "http://"):
            client._http.mount(scheme, adapter)
        return client.bucket(self._bucket_name)

    @cached_property
    def _retry(self) -> Any:
        from google.api_core.retry import Retry
        from google.cloud.storage.exceptions import DataCorruption
        from google.cloud.storage.retry import DEFAULT_RETRY

        def may_pass(error: BaseException) -> bool:
            return isinstance(error, DataCorruption) or DEFAULT_RETRY._predicate(error)

        return Retry(predicate=may_pass, initial=0.2, maximum=8.0, multiplier=2.0, timeout=RETRY_FOR_S)

    @property
    def _how_to_read(self) -> dict[str, Any]:
        return {"checksum": "crc32c", "timeout": _TIMEOUT, "retry": None}

    def _blob(self, name: str, version: str | None = None) -> Blob:
        return self._bucket.blob(self._prefix + name, generation=None if version is None else int(version))

    def _retried(self, name: str, operation: Callable[[], Result]) -> Result:
        with self._translated(name):
            return self._retry(operation)()

    @contextmanager
    def _translated(self, name: str, *, missing_is_bucket: bool = False) -> Iterator[None]:
        """Errors of the client become the house's."""
        from google.api_core import exceptions as api
        from google.auth import exceptions as auth
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        of_connections = (RequestException, HTTPError, ConnectionError)
        where, bucket = join(self.uri, name), f"gs://{self._bucket_name}"
        try:
            yield
        except api.PreconditionFailed as error:
            raise Conflict(f"{where}: somebody else has written it in between.") from error
        except api.NotFound as error:
            if missing_is_bucket:
                raise UsageError(f"{where}: there is no bucket {bucket}, or these credentials may not see it.") from error
            raise NoSuchObject(f"{where}: there is no such object.") from error
        except (api.Forbidden, api.Unauthorized) as error:
            raise UsageError(
                f"{where}: no permission ({_said(error)}). Give the job's account roles/storage.objectViewer on buckets "
                "that it reads and roles/storage.objectUser on those that it writes."
            ) from error
        except (auth.DefaultCredentialsError, auth.RefreshError) as error:
            if isinstance(error, auth.RefreshError) and error.retryable:
                raise StorageFailed(f"{where}: credentials cannot be renewed now. Run the same command again.") from error
            raise UsageError(
                f"{where}: no credentials for Google Cloud that work ({_said(error)}). "
                "Run gcloud auth application-default login, or give "
                "the machine or the pod a service account (docs/operating.md)."
            ) from error
        except api.BadRequest as error:
            raise UsageError(f"{where}: {_said(error)}.") from error
        except (api.GoogleAPIError, auth.GoogleAuthError, InvalidResponse, DataCorruption, *of_connections) as error:
            raise StorageFailed(
                f"{where}: Google Cloud Storage failed for {RETRY_FOR_S:.0f} s ({_said(error)}). Run the same command "
                "again: it goes on where it was."
            ) from error


def _said(error: Any) -> str:
    """What the service said, in one line."""
    cause = getattr(error, "cause", None) or error
    text = str(getattr(cause, "message", "") or cause).strip().splitlines()
    return f"{type(cause).__name__}: {_QUERY.sub('', text[0])[:300]}" if text else type(cause).__name__
