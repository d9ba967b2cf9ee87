"""The beds: a service in a process of its own, for as long as the tests run, and what the tests do to it directly."""

import http.client
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest

from tests.clouds.faulty import DIRECT, Faults

ROOT = Path(__file__).parent.parent.parent


class Bed:
    """A service under `environment`. Whatever is done by these methods is never failed and never logged."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._numbers = itertools.count(1)

    @contextmanager
    def faults(self, **faults: object) -> Iterator[None]:
        """See `Faults`."""
        self._ask("POST", "/-/faults", json.dumps(asdict(Faults(**faults))).encode())  # type: ignore[arg-type]
        try:
            yield
        finally:
            self._ask("POST", "/-/faults", b"{}")

    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path and status of each request since the last call; 0 for one whose connection was broken."""
        return [(method, path, status) for method, path, status in json.loads(self._ask("GET", "/-/requests"))]

    def put_folder(self, folder: Path, uri: str) -> str:
        """Every file below a folder, under its name; returns the URI."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{uri}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return uri

    def fetched(self, uri: str, folder: Path) -> Path:
        """What lies below the URI, as files in the folder."""
        for name in self.names(f"{uri}/"):
            path = folder / name.removeprefix(f"{uri}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(name))
        return folder

    def bucket(self) -> str:
        """The URI of a new one."""
        raise NotImplementedError

    def put(self, uri: str, data: bytes) -> str:
        """Returns what the service calls this version of the object."""
        raise NotImplementedError

    def get(self, uri: str) -> bytes:
        raise NotImplementedError

    def names(self, uri: str) -> list[str]:
        """The URIs of all objects below it."""
        raise NotImplementedError

    def _ask(self, method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.request(method, target, body, {DIRECT[0]: DIRECT[1], **headers})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise AssertionError(f"{method} {target}: {answer.status} {content.decode(errors='replace')}")
        return content


class GoogleBed(Bed):
    @property
    def environment(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.url}

    @property
    def token(self) -> str:
        """The one that its /token gives out."""
        from tests.clouds.google import TOKEN

        return TOKEN

    def bucket(self) -> str:
        name = f"bucket-{next(self._numbers)}"
        self._ask(
            "POST", "/storage/v1/b?project=none", json.dumps({"name": name}).encode(), **{"Content-Type": "application/json"}
        )
        return f"gs://{name}"

    def put(self, uri: str, data: bytes) -> str:
        bucket, name = _parts(uri)
        query = urlencode({"uploadType": "media", "name": name})
        return json.loads(self._ask("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", data))["generation"]

    def get(self, uri: str) -> bytes:
        bucket, name = _parts(uri)
        return self._ask("GET", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media")

    def names(self, uri: str) -> list[str]:
        bucket, prefix = _parts(uri)
        token, found = "", []
        while token is not None:
            query = urlencode({"prefix": prefix} | ({"pageToken": token} if token else {}))
            page = json.loads(self._ask("GET", f"/storage/v1/b/{bucket}/o?{query}"))
            found += [f"gs://{bucket}/{item['name']}" for item in page["items"]]
            token = page.get("nextPageToken")
        return found


class AmazonBed(Bed):
    @property
    def environment(self) -> dict[str, str]:
        """The keys are made up; of an account that somebody has on this machine nothing is read."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "made-up",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @cached_property
    def _client(self) -> Any:
        from boto3.session import Session

        client = Session("AKIAIOSFODNN7EXAMPLE", "made-up", region_name="us-east-1").client("s3", endpoint_url=self.url)
        client.meta.events.register("before-sign.s3", lambda request, **_: request.headers.add_header(*DIRECT))
        return client

    def bucket(self) -> str:
        name = f"bucket-{next(self._numbers)}"
        self._client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def put(self, uri: str, data: bytes) -> str:
        bucket, name = _parts(uri)
        return self._client.put_object(Bucket=bucket, Key=name, Body=data)["ETag"].strip('"')

    def get(self, uri: str) -> bytes:
        bucket, name = _parts(uri)
        return self._client.get_object(Bucket=bucket, Key=name)["Body"].read()

    def names(self, uri: str) -> list[str]:
        bucket, prefix = _parts(uri)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [f"s3://{bucket}/{item['Key']}" for page in pages for item in page.get("Contents", [])]


def _parts(uri: str) -> tuple[str, str]:
    bucket, _, name = uri.partition("://")[2].partition("/")
    return bucket, name


@contextmanager
def started(module: str) -> Iterator[str]:
    """The URL of a service that runs as a process of its own, and ends with this one whatever happens to it."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, "0", "--with-stdin"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        url = process.stdout.readline().strip()
        assert url, f"{module} did not start"
        yield url
    finally:
        process.stdin.close()
        process.wait(timeout=10)
        process.stdout.close()


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        forkserver._forkserver._stop()  # Decode processes have the environment with which it was started.
        yield


@pytest.fixture(scope="session")
def google() -> Iterator[GoogleBed]:
    """Google Cloud Storage, which every client in this process, and in those that it starts, takes for the real one."""
    with started("tests.clouds.google") as url, environment(GoogleBed(url).environment):
        yield GoogleBed(url)


@pytest.fixture(scope="session")
def amazon() -> Iterator[AmazonBed]:
    """Amazon S3, likewise."""
    pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'transfer-job[s3]'")
    with started("tests.clouds.amazon") as url, environment(AmazonBed(url).environment):
        yield AmazonBed(url)


@pytest.fixture(scope="session")
def photos_in_bucket(google: GoogleBed, painted: Path) -> str:
    """The URI of a copy of `painted`. Tests must not change it."""
    return google.put_folder(painted, f"{google.bucket()}/photos")


@pytest.fixture(params=["google", "amazon"])
def bed(request: pytest.FixtureRequest) -> Bed:
    """Each of them: the test runs on both."""
    found: Bed = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def in_bucket(bed: Bed, finished_run: Path) -> str:
    return moved_to_bucket(bed, finished_run)


def moved_to_bucket(bed: Bed, finished_run: Path) -> str:
    """A finished run with its stores, as one that was made in a bucket."""
    from job.pipeline import output
    from job.runtime.session import Session
    from tests.conftest import contents

    uri = f"{bed.bucket()}/runs/x"
    workdir = output.make_workdir(uri)
    workdir.acquire(lambda _: None, Session())
    for path, content in contents(finished_run).items():
        name = path.relative_to(finished_run).as_posix()
        if not name.startswith((".", "cache/", "checkpoints/")):
            workdir.path(name).parent.mkdir(parents=True, exist_ok=True)
            workdir.path(name).write_bytes(content)
    workdir.settle()
    workdir.close()
    workdir.discard()
    bed.put_folder(finished_run / "cache", f"{uri}/cache")
    return uri
