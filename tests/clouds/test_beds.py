"""The beds do what they say, as the services' own clients see it."""

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from google.api_core.exceptions import Forbidden, NotFound, PreconditionFailed, ServiceUnavailable
from google.cloud.storage import Bucket, Client
from google.cloud.storage.exceptions import DataCorruption

from tests.clouds.fixtures import GoogleBed

CONTENT = bytes(range(256)) * 40 + b"\r\n--\r\n\n"


@pytest.fixture
def bucket(google: GoogleBed, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")  # It asks for the bucket whenever it likes.
    google.requests()
    return Client(project="none").bucket(google.bucket().removeprefix("gs://"))


def uri(bucket: Bucket, name: str) -> str:
    return f"gs://{bucket.name}/{name}"


def test_what_is_written_is_read_with_its_checksum_and_metadata(bucket: Bucket, google: GoogleBed) -> None:
    blob = bucket.blob("a folder/ü+%2F.jpg")
    blob.metadata = {"who": "me"}
    blob.upload_from_string(CONTENT, "image/jpeg", checksum="crc32c")
    found = bucket.get_blob("a folder/ü+%2F.jpg")
    assert found.download_as_bytes(checksum="crc32c") == CONTENT
    assert found.download_as_bytes(checksum="crc32c", start=10, end=19) == CONTENT[10:20]
    assert (found.size, found.metadata, found.content_type) == (len(CONTENT), {"who": "me"}, "image/jpeg")
    assert (found.generation, found.crc32c) == (blob.generation, blob.crc32c)
    assert google.get(uri(bucket, "a folder/ü+%2F.jpg")) == CONTENT


@pytest.mark.parametrize("content", [b"", b"x", b"\r\n", b"\n\n", CONTENT])
def test_every_byte_of_a_body_is_kept(bucket: Bucket, google: GoogleBed, content: bytes) -> None:
    bucket.blob("x").upload_from_string(content, checksum="crc32c")
    assert google.get(uri(bucket, "x")) == content
    google.put(uri(bucket, "y"), content)
    assert bucket.blob("y").download_as_bytes(checksum="crc32c") == content


def test_names_that_a_file_system_would_take_for_one_are_different_objects(bucket: Bucket) -> None:
    names = ["../x", "/x", "a/./x", "a//x", "a/x", "x", "x/"]
    for name in names:
        bucket.blob(name).upload_from_string(name)
    assert [blob.name for blob in bucket.list_blobs()] == names
    assert [bucket.blob(name).download_as_text() for name in names] == names


def test_a_listing_comes_in_pages_in_order_and_with_folders(bucket: Bucket, google: GoogleBed) -> None:
    names = [*sorted(f"{'ab'[k % 2]}/{k:03d}" for k in range(25)), "ä"]
    for name in reversed(names):
        google.put(uri(bucket, name), b"1")
    assert [blob.name for blob in bucket.list_blobs(page_size=7)] == names
    assert sum(path.startswith("/storage") for _, path, _ in google.requests()) == 4
    assert [blob.name for blob in bucket.list_blobs(prefix="b/", page_size=5)] == [name for name in names if name[0] == "b"]
    top = bucket.list_blobs(delimiter="/", page_size=1)
    assert ([blob.name for blob in top], top.prefixes) == (["ä"], {"a/", "b/"})
    some = list(bucket.list_blobs(fields="items(name,generation),nextPageToken", page_size=7))
    assert [(blob.name, blob.size) for blob in some] == [(name, None) for name in names]
    assert len(list(bucket.list_blobs(fields="items(name)", page_size=7))) == 7  # As in the service, without the token.
    assert google.names(uri(bucket, "a/01")) == [uri(bucket, name) for name in names if name.startswith("a/01")]


def write_small(bucket: Bucket, generation: int | None) -> int:
    blob = bucket.blob("x")
    blob.upload_from_string(b"small", if_generation_match=generation)
    return blob.generation


def write_resumable(bucket: Bucket, generation: int | None) -> int:
    blob = bucket.blob("x", chunk_size=1 << 18)
    blob.upload_from_string(b"large" * 100_000, if_generation_match=generation)
    return blob.generation


@pytest.mark.parametrize("write", [write_small, write_resumable])
def test_a_write_happens_only_onto_the_generation_that_it_names(bucket: Bucket, write: Callable[..., int]) -> None:
    first = write(bucket, 0)
    with pytest.raises(PreconditionFailed):
        write(bucket, 0)
    second = write(bucket, first)
    assert second > first
    with pytest.raises(PreconditionFailed):
        write(bucket, first)
    assert write(bucket, None) > second


def test_of_many_that_create_an_object_at_once_one_succeeds(bucket: Bucket) -> None:
    ready = threading.Barrier(16)

    def create(_: int) -> bool:
        blob = Client(project="none").bucket(bucket.name).blob("x")
        ready.wait()
        try:
            blob.upload_from_string(b"mine", if_generation_match=0)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(create, range(16))) == 1


def test_a_generation_that_is_gone_is_neither_read_nor_removed(bucket: Bucket) -> None:
    first = write_small(bucket, 0)
    second = write_small(bucket, first)
    with pytest.raises(NotFound):
        bucket.blob("x", generation=first).download_as_bytes()
    assert bucket.blob("x", generation=second).download_as_bytes() == b"small"
    with pytest.raises(PreconditionFailed):
        bucket.blob("x").download_as_bytes(if_generation_match=first)
    with pytest.raises(PreconditionFailed):
        bucket.blob("x").delete(if_generation_match=first)
    with pytest.raises(NotFound):
        bucket.delete_blob("x", generation=first)
    bucket.blob("x").delete(if_generation_match=second)
    with pytest.raises(NotFound):
        bucket.blob("x").delete()


def test_a_copy_heeds_the_generations_of_both_ends(bucket: Bucket) -> None:
    generation = write_small(bucket, 0)
    for wrong in ({"if_generation_match": 5}, {"if_source_generation_match": generation + 1}):
        with pytest.raises(PreconditionFailed):
            bucket.copy_blob(bucket.blob("x"), bucket, "y", **wrong)
    bucket.copy_blob(bucket.blob("x"), bucket, "y", if_generation_match=0, if_source_generation_match=generation)
    bucket.blob("z").rewrite(bucket.blob("y"), if_generation_match=0)
    assert bucket.blob("z").download_as_bytes() == b"small"


@pytest.mark.parametrize("faults", [{"statuses": {503: 0.5}}, {"resets": 0.5}, {"lost_answers": 0.5}])
def test_a_large_upload_arrives_whole_through_faults(
    bucket: Bucket, google: GoogleBed, tmp_path: Path, faults: dict[str, object]
) -> None:
    content = hashlib.shake_256(b"large").digest(20_000_000)
    (tmp_path / "large").write_bytes(content)
    blob = bucket.blob("large", chunk_size=2 << 20)
    with google.faults(**faults, times=2):
        blob.upload_from_filename(tmp_path / "large", checksum="crc32c", if_generation_match=0)
    statuses = [status for _, _, status in google.requests()]
    assert sum(status in (0, 503) for status in statuses) == 2
    assert bucket.get_blob("large").generation == blob.generation
    assert bucket.blob("large").download_as_bytes(checksum="crc32c") == content


def test_a_missing_bucket_is_not_found(google: GoogleBed) -> None:
    missing = Client(project="none").bucket("missing")
    with pytest.raises(NotFound, match="bucket does not exist"):
        list(missing.list_blobs())
    with pytest.raises(NotFound):
        missing.blob("x").download_as_bytes()
    with pytest.raises(NotFound):
        missing.blob("x").upload_from_string(b"x")


def test_requests_are_late_or_refused_on_demand(bucket: Bucket, google: GoogleBed) -> None:
    google.put(uri(bucket, "x"), CONTENT)
    with google.faults(statuses={503: 1.0}, only=r"^GET .*/o/x\?"), pytest.raises(ServiceUnavailable):
        bucket.blob("x").download_as_bytes(retry=None)
    with google.faults(statuses={403: 1.0}), pytest.raises(Forbidden):
        bucket.get_blob("x", retry=None)
    with google.faults(statuses={429: 1.0}, times=2):
        assert bucket.blob("x").download_as_bytes() == CONTENT
    with google.faults(statuses={403: 1.0}, only="name=a%2Fy"), pytest.raises(Forbidden):
        bucket.blob("x").upload_from_string(CONTENT)
        bucket.blob("a/y").upload_from_string(CONTENT)
    with google.faults(latency_s=0.2):
        began = time.perf_counter()
        bucket.get_blob("x")
        assert time.perf_counter() - began > 0.2
    # A thread of an earlier test may be late with a request of its own.
    statuses = [status for _, path, status in google.requests() if str(bucket.name) in path]
    assert statuses == [503, 403, 429, 429, 200, 200, 403, 200]


def test_connections_break_in_the_middle_of_a_body(bucket: Bucket, google: GoogleBed) -> None:
    google.put(uri(bucket, "x"), CONTENT)
    with google.faults(resets=1.0):
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)) as error:
            bucket.blob("x").download_as_bytes(retry=None)
        assert "reset" in str(error.value)
        with pytest.raises(requests.ConnectionError):
            bucket.blob("y").upload_from_string(CONTENT, retry=None)
    assert [name.rpartition("/")[2] for name in google.names(uri(bucket, ""))] == ["x"]
    with google.faults(resets=1.0, times=1):
        assert bucket.blob("x").download_as_bytes(checksum="crc32c") == CONTENT


@pytest.mark.parametrize("fault", ["shorts", "wrong_checksums"])
def test_only_the_checksum_tells_a_wrong_body(bucket: Bucket, google: GoogleBed, fault: str) -> None:
    google.put(uri(bucket, "x"), CONTENT)
    with google.faults(**{fault: 1.0}):
        with pytest.raises((DataCorruption, ConnectionError)):  # The client knows the whole length, too.
            bucket.blob("x").download_as_bytes(checksum="crc32c", retry=None)
        answer = requests.get(f"{google.url}/storage/v1/b/{bucket.name}/o/x?alt=media", timeout=5)
    assert answer.status_code == 200
    assert answer.content == (CONTENT[: len(CONTENT) // 2] if fault == "shorts" else CONTENT)


def test_a_retry_after_a_lost_answer_meets_its_own_write(bucket: Bucket, google: GoogleBed) -> None:
    with google.faults(lost_answers=1.0, times=1), pytest.raises(PreconditionFailed):
        bucket.blob("x").upload_from_string(b"mine", if_generation_match=0)
    assert google.get(uri(bucket, "x")) == b"mine"
    assert [status for _, _, status in google.requests()] == [0, 412]


def test_a_share_is_a_share_and_the_same_one_each_time(bucket: Bucket, google: GoogleBed) -> None:
    google.put(uri(bucket, "x"), b"x")

    def statuses() -> list[int]:
        with google.faults(statuses={503: 0.2, 429: 0.1}, seed=4):
            for _ in range(300):
                requests.get(f"{google.url}/storage/v1/b/{bucket.name}/o/x", timeout=5)
        return [status for _, _, status in google.requests()]

    first = statuses()
    assert 40 < first.count(503) < 80
    assert 15 < first.count(429) < 45
    assert statuses() == first


def test_who_brings_a_token_must_bring_the_one_that_was_given(bucket: Bucket, google: GoogleBed) -> None:
    answer = requests.post(f"{google.url}/token", timeout=5).json()
    assert answer == {"token_type": "Bearer", "expires_in": 3600, "access_token": google.token}
    where = f"{google.url}/storage/v1/b/{bucket.name}"
    for token, status in ((google.token, 200), ("another", 401)):
        assert requests.get(where, headers={"Authorization": f"Bearer {token}"}, timeout=5).status_code == status
