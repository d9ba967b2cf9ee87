"""Google Cloud Storage, used with its own client and the application default credentials."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from job.errors import StorageFailed, UsageError
from job.storage.bucket import objects
from job.storage.bucket.objects import WRITE_ID, Conflict, NoSuchObject, Passing, Result, Stored, join

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket

# Without retries, because `retry` retries.
_HOW: dict[str, object] = {"timeout": (objects.CONNECT_TIMEOUT_S, objects.READ_TIMEOUT_S), "retry": None}
_PART_BYTES = 8 << 20  # Larger uploads are sent in parts of this size.
_QUERY = re.compile(r"(with url: |\?)\S+")  # Messages must not show the address of an upload session: it is a secret.
_DAMAGED = re.compile(r"(crc32c|md5)\b.*match", re.IGNORECASE | re.DOTALL)


class GoogleObjects(objects.Objects):
    """Objects in Google Cloud Storage. See `Objects`. A version is a generation."""

    def list(self, below: str = "") -> Iterator[Stored]:
        where = {"prefix": self._prefix + below, "fields": "items(name,size,generation),nextPageToken"}

        def page() -> tuple[list[Stored], str | None]:
            found = self._connection.list_blobs(page_token=token, **where, **_HOW)
            blobs = [(blob.name[len(self._prefix) :], blob.size or 0, str(blob.generation)) for blob in next(found.pages)]
            return [Stored(*blob) for blob in blobs], found.next_page_token

        token: str | None = None
        while True:
            stored, token = self._retry_in_bucket("", page)
            yield from stored
            if token is None:
                return

    def read(self, name: str, version: str | None = None) -> bytes:
        return self._retry(name, lambda: self._blob(name, version).download_as_bytes(checksum="crc32c", **_HOW))

    def download(self, name: str, file: Path, version: str | None = None) -> None:
        self._retry(name, lambda: self._blob(name, version).download_to_filename(str(file), checksum="crc32c", **_HOW))

    def _write(self, name: str, data: bytes | Path, replaces: str | None, write_id: str) -> str:
        how = _HOW | {
            "content_type": objects.content_type(name),
            "checksum": "crc32c",
            "if_generation_match": None if replaces is None else int(replaces or 0),
            "retry": lambda request: lambda: self._part_tried(name, request),
        }

        def upload() -> str:
            blob = self._blob(name)
            blob.metadata, blob.chunk_size = {WRITE_ID: write_id}, _PART_BYTES
            if isinstance(data, bytes):
                blob.upload_from_string(data, **how)
            else:
                blob.upload_from_filename(str(data), **how)
            return str(blob.generation)

        return self._retry_in_bucket(name, upload)

    def remove(self, name: str) -> None:
        with suppress(NoSuchObject):
            self._retry(name, lambda: self._connection.delete_blob(self._prefix + name, **_HOW))

    def _connect(self) -> Bucket:
        from google.auth.exceptions import DefaultCredentialsError
        from google.auth.transport.requests import Request
        from google.cloud.storage import Client
        from requests.adapters import HTTPAdapter

        # Otherwise the client sends a request in a thread of its own, only to show the bucket in traces.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        try:
            client = Client(project="none")  # The project only matters for new buckets, and none is made here.
        except OSError as error:  # The file with the credentials cannot be read.
            raise DefaultCredentialsError(f"{error.filename}: {error.strerror}") from error
        if not client._credentials.valid:  # Otherwise each thread would request a token of its own.
            client._credentials.refresh(Request())
            client._credentials.with_non_blocking_refresh()
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=self._max_connections)
        for scheme in ("https://", "http://"):
            client._http.mount(scheme, adapter)
        return client.bucket(self._bucket_name)

    def _blob(self, name: str, version: str | None = None) -> Blob:
        return self._connection.blob(self._prefix + name, generation=None if version is None else int(version))

    def _look_up(self, name: str) -> tuple[Stored, str] | None:
        blob = self._retry(name, lambda: self._connection.get_blob(self._prefix + name, **_HOW))
        write_id = (blob.metadata or {}).get(WRITE_ID, "") if blob else ""
        return (Stored(name, blob.size or 0, str(blob.generation), bool(write_id)), write_id) if blob else None

    def _retry_in_bucket(self, name: str, operation: Callable[[], Result]) -> Result:
        """Retry an operation that needs no object. If something is missing, it is the bucket."""
        return objects.retry(operation, lambda error: self._judge(name, error, in_bucket=True))

    def _part_tried(self, name: str, request: Callable[[], Result]) -> Result:
        """Send one request of an upload, with retries that resume it. After other errors the whole upload is retried."""
        return objects.retry(request, lambda error: self._passing(name, error) if _same_may_do(error) else error)

    def _passing(self, name: str, error: Exception) -> Passing:
        return Passing(f"{join(self.uri, name)}: Google Cloud Storage", _said(error))

    def _judge(self, name: str, error: Exception, in_bucket: bool = False) -> Exception | Passing:
        """Return what an error means. With `in_bucket`, a missing thing can only be the bucket."""
        from google.api_core import exceptions as api
        from google.auth import exceptions as auth
        from google.cloud.storage.exceptions import InvalidResponse
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        where, said = join(self.uri, name), _said(error)
        if _same_may_do(error) or _new_one_may_do(error):
            return self._passing(name, error)
        if isinstance(error, api.PreconditionFailed):
            return Conflict(f"{where}: another program has written it in the meantime.")
        if isinstance(error, api.NotFound) and in_bucket:
            return UsageError(
                f"{where}: there is no bucket gs://{self._bucket_name}, or these credentials may not see it. Check both."
            )
        if isinstance(error, api.NotFound):
            return NoSuchObject(f"{where}: there is no such object.")
        if isinstance(error, (api.Forbidden, api.Unauthorized)):
            return UsageError(
                f"{where}: no permission ({said}). Give the job's account roles/storage.objectViewer on buckets "
                "that it reads and roles/storage.objectUser on those that it writes."
            )
        if isinstance(error, (auth.DefaultCredentialsError, auth.RefreshError)):
            return UsageError(
                f"{where}: no credentials for Google Cloud that work ({said}). Run gcloud auth application-default login, "
                "or give the machine or the pod a service account (docs/buckets.md)."
            )
        if isinstance(error, api.BadRequest):
            return UsageError(f"{where}: {said}.")
        if isinstance(error, (api.GoogleAPIError, auth.GoogleAuthError, InvalidResponse, RequestException, HTTPError)):
            return StorageFailed(f"{where}: Google Cloud Storage refuses it ({said}).")
        return error


def _same_may_do(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    from google.auth.exceptions import RefreshError, TransportError
    from google.cloud.storage.retry import DEFAULT_RETRY

    if isinstance(error, RefreshError):  # A TransportError with one argument means that the server did not respond.
        cause = error.__cause__
        return error.retryable or (isinstance(cause, TransportError) and len(cause.args) == 1)
    return bool(DEFAULT_RETRY._predicate(error))


def _new_one_may_do(error: BaseException) -> bool:
    """Return whether a new transfer may succeed: bytes were damaged, or the service has lost the begun upload."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.cloud.storage.exceptions import DataCorruption

    if isinstance(
        error, ValueError
    ):  # The service kept less of a part than was sent, and the client cannot seek in its file.
        return "stream is in unexpected state" in str(error)
    if not isinstance(error, GoogleAPICallError):
        return isinstance(error, DataCorruption)
    if error.code == 400:
        return _DAMAGED.search(str(error)) is not None
    sends_part = error.response is not None and error.response.request.method == "PUT"
    return sends_part and error.code in (404, 410)


def _said(error: BaseException) -> str:
    """Return the message of the service in one line."""
    cause = getattr(error, "cause", None) or error
    text = str(getattr(cause, "message", "") or cause).strip().splitlines()
    return f"{type(cause).__name__}: {_QUERY.sub('', text[0])[:300]}" if text else type(cause).__name__
