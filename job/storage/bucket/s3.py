"""Amazon S3 and compatible services, used with boto3 and its usual credentials."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from job.errors import UsageError
from job.storage.bucket import objects
from job.storage.bucket.objects import WRITE_ID, Conflict, NoSuchObject, Passing, Stored, join

_CHUNK_BYTES = 1 << 20
_BAD_CREDENTIALS = ("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired")
# The status of these errors says that the request is wrong, but a retry may succeed.
_MAY_PASS = ("BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout")
_USER = re.compile(r"//[^/@\s]*@")  # Credentials in the address of a service that users run themselves.
_MD5 = re.compile(r"[0-9a-f]{32}")


class S3Objects(objects.Objects):
    """Objects in S3. See `Objects`. A version is an ETag. The same bytes may have the same ETag."""

    def __init__(self, uri: str, max_connections: int) -> None:
        if find_spec("boto3") is None:
            raise UsageError(f"{uri}: boto3 is needed for s3://. Run pip install 'transfer-job[s3]'.")
        super().__init__(uri, max_connections)

    def list(self, below: str = "") -> Iterator[Stored]:
        where = {"Bucket": self._bucket_name, "Prefix": self._prefix + below}
        while True:
            page = self._retry("", lambda: self._connection.list_objects_v2(**where))
            for item in page.get("Contents", ()):
                yield Stored(item["Key"][len(self._prefix) :], item["Size"], _version(item))
            if not page.get("IsTruncated"):
                return
            where["ContinuationToken"] = page["NextContinuationToken"]

    def read(self, name: str, version: str | None = None) -> bytes:
        return self._retry(name, lambda: b"".join(self._chunks(name, version)))

    def download(self, name: str, file: Path, version: str | None = None) -> None:
        def fetch() -> None:
            with file.open("wb") as opened:
                opened.writelines(self._chunks(name, version))

        self._retry(name, fetch)

    def _write(self, name: str, data: bytes | Path, replaces: str | None, write_id: str) -> str:
        how: dict[str, object] = {"Metadata": {WRITE_ID: write_id}, "ContentType": objects.content_type(name)}
        if replaces is not None:
            how |= {"IfMatch": f'"{replaces}"'} if replaces else {"IfNoneMatch": "*"}

        def upload() -> str:
            with ExitStack() as opened:
                body = data if isinstance(data, bytes) else opened.enter_context(data.open("rb"))
                return _version(self._connection.put_object(**self._at(name), Body=body, **how))

        try:
            return self._retry(name, upload)
        except NoSuchObject as error:  # The answer of S3 if the version to replace does not exist.
            raise Conflict(f"{join(self.uri, name)}: another program has removed it in the meantime.") from error

    def remove(self, name: str) -> None:
        self._retry(name, lambda: self._connection.delete_object(**self._at(name)))

    def _look_up(self, name: str) -> tuple[Stored, str] | None:
        with suppress(NoSuchObject):
            found = self._retry(name, lambda: self._connection.head_object(**self._at(name)))
            write_id = found["Metadata"].get(WRITE_ID, "")
            return Stored(name, found["ContentLength"], _version(found), bool(write_id)), write_id
        return None

    def _connect(self) -> Any:
        from boto3.session import Session
        from botocore.config import Config
        from botocore.exceptions import NoCredentialsError

        config = Config(
            max_pool_connections=self._max_connections,
            connect_timeout=objects.CONNECT_TIMEOUT_S,
            read_timeout=objects.READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 1},  # `retry` retries, also while a body is read.
        )
        os.environ.setdefault("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "3")  # Many processes ask the metadata service at once.
        session = Session()
        try:
            client = session.client("s3", config=config)
        except ValueError as error:
            said = "AWS_ENDPOINT_URL or the profile has an invalid address. A valid one is http://localhost:9000"
            raise UsageError(f"{self.uri}: {said}.") from error
        if session.get_credentials() is None:
            raise NoCredentialsError
        return client

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket_name, "Key": self._prefix + name}

    def _chunks(self, name: str, version: str | None) -> Iterator[bytes]:
        """Yield the bytes of an object. Check them against the checksum of the service, or its MD5 if it has no checksum."""
        from botocore.exceptions import ChecksumError
        from botocore.httpchecksum import StreamingChecksumBody

        match = {} if version is None else {"IfMatch": f'"{version}"'}
        answer = self._connection.get_object(**self._at(name), **match)
        digest = hashlib.md5(usedforsecurity=False)
        with closing(answer["Body"]) as body:
            checked = isinstance(body, StreamingChecksumBody) or not _is_md5(answer)
            for chunk in body.iter_chunks(_CHUNK_BYTES):
                if not checked:
                    digest.update(chunk)
                yield chunk
        expected = _version(answer)
        if not checked and digest.hexdigest() != expected:
            raise ChecksumError(checksum_type="md5", expected_checksum=expected, actual_checksum=digest.hexdigest())

    def _judge(self, name: str, error: Exception) -> Exception | Passing:
        from botocore import exceptions as boto
        from urllib3.exceptions import HTTPError

        if not isinstance(error, (boto.BotoCoreError, boto.ClientError, HTTPError)):
            return error
        where, said = join(self.uri, name), _said(error)
        of_credentials = (
            *(boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.ProfileNotFound),
            *(boto.SSOError, boto.NoAuthTokenError, boto.TokenRetrievalError),
        )
        passing = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, boto.MetadataRetrievalError)
        if isinstance(error, (HTTPError, *passing, boto.FlexibleChecksumError, boto.ChecksumError)):
            return Passing(f"{where}: S3", said)
        code, status = _code(error), _status(error)
        if isinstance(error, of_credentials) or code in _BAD_CREDENTIALS:
            return UsageError(
                f"{where}: no credentials for S3 that work ({said}). Run aws configure, or give the machine or the pod "
                "a role (docs/buckets.md)."
            )
        if status in (401, 403):
            return UsageError(
                f"{where}: no permission ({said}). Give the job's role s3:ListBucket and s3:GetObject on buckets that it "
                "reads, and s3:PutObject and s3:DeleteObject on those that it writes."
            )
        if code == "NoSuchBucket":
            return UsageError(f"{where}: there is no bucket s3://{self._bucket_name}. Check the name.")
        if status == 412 and error.operation_name == "PutObject":
            return Conflict(f"{where}: another program has written it in the meantime.")
        if status in (404, 412):
            return NoSuchObject(f"{where}: there is no such object.")
        if status in (408, 429, 500, 502, 503, 504) or code in _MAY_PASS:
            return Passing(f"{where}: S3", said)
        return UsageError(f"{where}: {said}.")


def _version(answer: Any) -> str:
    return str(answer["ETag"]).strip('"')


def _is_md5(answer: Any) -> bool:
    """Return whether an ETag is the MD5 of the bytes. It is not after uploads in parts or with the user's own keys."""
    is_plain = answer.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in answer
    return is_plain and _MD5.fullmatch(_version(answer)) is not None


def _code(error: BaseException) -> str:
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    return int((getattr(error, "response", None) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _said(error: BaseException) -> str:
    """Return the message of the service in one line."""
    message = (getattr(error, "response", None) or {}).get("Error", {}).get("Message") or error
    text = " ".join(_USER.sub("//", str(message)).split())
    return f"{_code(error) or type(error).__name__}: {text[:300].rstrip('.')}"
