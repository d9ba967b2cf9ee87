"""Objects in Google Cloud Storage, on a service that fails as real ones do."""

import os
import pickle
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import quote

import google.cloud.storage as client_library
import pytest
from google.cloud.storage._media import _helpers as checksums

from job.errors import StorageFailed, UsageError
from job.storage.bucket.downloads import local_copy, local_folder
from job.storage.bucket.google import _same_may_do
from job.storage.bucket.objects import Conflict, NoSuchObject, is_remote
from job.storage.bucket.open import open_objects
from tests.conftest import ROOT

FAULTS = {"statuses": {429: 0.15, 503: 0.15}, "resets": 0.1, "shorts": 0.1, "wrong_checksums": 0.1}


@pytest.fixture
def objects(google):
    return open_objects(f"{google.bucket()}/a prefix/ü")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("job.storage.bucket.objects.RETRY_FOR_S", 1.0)


def test_objects_are_written_found_read_listed_and_removed(google, objects, tmp_path):
    assert objects.find("x") is None
    version = objects.write("x", b"1")
    assert objects.find("x") == ("x", 1, version, True) and objects.read("x") == b"1"
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3_000_000))
    objects.write("sub/y", file)
    objects.download("sub/y", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    assert [found.name for found in objects.list()] == ["sub/y", "x"]
    assert [found.name for found in objects.list("sub/")] == ["sub/y"]
    objects.remove("x")
    objects.remove("x")
    assert objects.find("x") is None
    with pytest.raises(NoSuchObject, match="ü/x: there is no such object"):
        objects.read("x")


def test_listing_goes_over_pages_in_order(google, objects):
    names = sorted((f"{k:05d}" for k in range(1100)), key=lambda name: name.encode())
    for name in names:
        google.put(f"{objects.uri}/{name}", b"")
    assert [found.name for found in objects.list()] == names


def test_version_that_was_replaced_is_gone(objects):
    version = objects.write("x", b"1")
    assert objects.read("x", version) == b"1"
    objects.write("x", b"2")
    with pytest.raises(NoSuchObject):
        objects.read("x", version)


def test_write_asks_for_what_it_replaces(objects):
    version = objects.write("x", b"1", replaces="")
    with pytest.raises(Conflict, match="another program"):
        objects.write("x", b"2", replaces="")
    newer = objects.write("x", b"2", replaces=version)
    with pytest.raises(Conflict):
        objects.write("x", b"3", replaces=version)
    assert objects.read("x", newer) == b"2"


def test_own_write_whose_answer_was_lost_is_no_conflict(google, objects):
    with google.faults(lost_answers=0.5):
        versions = [objects.write(f"{k}", b"1", replaces="") for k in range(20)]
    assert [objects.find(f"{k}").version for k in range(20)] == versions


def test_everything_is_right_in_the_end_on_a_service_that_fails(google, objects, tmp_path):
    contents = {f"{k:02d}": os.urandom(20_000) for k in range(40)}
    with google.faults(**FAULTS, lost_answers=0.1), ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: objects.write(name, contents[name], replaces=""), contents))
        assert {found.name for found in objects.list()} == contents.keys()
        assert list(threads.map(objects.read, contents)) == list(contents.values())
        list(threads.map(lambda name: objects.download(name, tmp_path / name), contents))
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents
    assert {name: google.get(f"{objects.uri}/{name}") for name in contents} == contents


@pytest.mark.parametrize("fault", [{"statuses": {503: 1.0}}, {"resets": 1.0}, {"wrong_checksums": 1.0}, {"shorts": 1.0}])
def test_service_that_keeps_failing_ends_with_74_and_the_objects_name(google, objects, impatient, fault):
    objects.write("x", b"1234567890")
    with google.faults(**fault), pytest.raises(StorageFailed, match=r"gs://.*/ü/x: .*Run the same command again"):
        open_objects(objects.uri).read("x")


def test_connection_that_breaks_later_than_the_time_to_try_again_is_tried_again(google, objects, monkeypatch):
    monkeypatch.setattr("job.storage.bucket.objects.RETRY_FOR_S", 0.5)
    objects.prepare()
    for work in (lambda: objects.write("x", b"1234567890"), lambda: objects.read("x"), lambda: list(objects.list())):
        with google.faults(latency_s=1.0, resets=1.0, times=1):
            assert work()


@pytest.mark.parametrize("status", [410, 501])
def test_refusal_is_said_at_once_and_not_to_have_lasted(google, objects, status):
    objects.write("x", b"1")
    google.requests()
    with (
        google.faults(statuses={status: 1.0}),
        pytest.raises(StorageFailed, match="ü/x: .*refuses it") as caught,
    ):
        objects.read("x")
    assert "failed for" not in str(caught.value) and len(google.requests()) == 1


@pytest.mark.parametrize(("status", "may_pass"), [(None, True), (503, True), (404, False)])
def test_machine_that_does_not_say_its_token_for_a_while_is_asked_again(monkeypatch, status, may_pass):
    from google.auth.compute_engine import Credentials, _metadata
    from google.auth.exceptions import RefreshError, TransportError

    def request(**_):
        if status is None:
            raise TransportError("Connection refused")
        return SimpleNamespace(status=status, data=b"", headers={})

    monkeypatch.setattr(_metadata, "ExponentialBackoff", lambda total_attempts: range(1))
    with pytest.raises(RefreshError) as caught:
        Credentials().refresh(request)
    assert _same_may_do(caught.value) is may_pass


@pytest.fixture
def large(tmp_path):
    file = tmp_path / "large"
    file.write_bytes(os.urandom(20_000_000))
    return file


def test_only_large_files_go_up_in_parts(google, objects, large, tmp_path):
    (tmp_path / "small").write_bytes(bytes(8 << 20))
    google.requests()
    objects.write("small", tmp_path / "small")
    assert [method for method, _, _ in google.requests()] == ["POST"]
    objects.write("large", large)
    assert [method for method, _, _ in google.requests()] == ["POST", "PUT", "PUT", "PUT"]
    assert google.get(f"{objects.uri}/large") == large.read_bytes()


def test_large_upload_goes_on_where_it_was(google, objects, large):
    google.requests()
    with google.faults(statuses={503: 0.3}, resets=0.3, lost_answers=0.2, only="^PUT ", seed=1):
        version = objects.write("large", large, replaces="")
    statuses = [(method, status) for method, _, status in google.requests()]
    assert {("PUT", 503), ("PUT", 0)} <= set(statuses) and [method for method, _ in statuses].count("POST") == 1
    assert objects.find("large").version == version and google.get(f"{objects.uri}/large") == large.read_bytes()


def test_large_upload_of_which_a_part_was_half_kept_is_whole_in_the_end(google, objects, large):
    with google.faults(halves=1.0, times=1, only="^PUT "):
        objects.write("x", large)
    assert google.get(f"{objects.uri}/x") == large.read_bytes()


def test_service_that_fails_in_the_middle_of_a_large_upload_ends_it_with_74(google, objects, large, impatient):
    with google.faults(statuses={503: 1.0}, only="^PUT "), pytest.raises(StorageFailed, match=r"ü/x: .* failed for \d+ s"):
        objects.write("x", large)


@pytest.mark.parametrize("status", [404, 410])
def test_large_upload_that_the_service_has_lost_begins_again(google, objects, large, status):
    google.requests()
    with google.faults(statuses={status: 1.0}, only="^PUT ", times=1):
        objects.write("large", large, replaces="")
    assert [method for method, _, _ in google.requests()].count("POST") == 2
    assert google.get(f"{objects.uri}/large") == large.read_bytes()


@pytest.mark.parametrize("num_bytes", [1000, 20_000_000])
def test_upload_that_came_damaged_is_sent_again(google, objects, monkeypatch, num_bytes):
    right, sent = checksums.prepare_checksum_digest, []

    def wrong_once(digest):
        sent.append(digest)
        return right(digest) if len(sent) > 1 else right(bytes(4))

    monkeypatch.setattr(checksums, "prepare_checksum_digest", wrong_once)
    data = os.urandom(num_bytes)
    google.requests()
    objects.write("x", data)
    assert [status for _, _, status in google.requests()].count(400) == 1 and google.get(f"{objects.uri}/x") == data


def test_browsers_are_told_what_an_object_is(google, objects, tmp_path):
    kinds = {
        "sub/report.html": "text/html",
        "a.json": "application/json",
        "a.csv": "text/csv",
        "a.svg": "image/svg+xml",
        "a.jpg": "image/jpeg",
        "a.csv.gz": "application/octet-stream",
        "a.npy": "application/octet-stream",
    }
    (tmp_path / "file").write_bytes(b"1")
    told = {}
    for number, name in enumerate(kinds):
        objects.write(name, tmp_path / "file" if number % 2 else b"1")
        bucket, _, key = f"{objects.uri}/{name}".removeprefix("gs://").partition("/")
        with urllib.request.urlopen(f"{google.url}/storage/v1/b/{bucket}/o/{quote(key, safe='')}?alt=media") as answer:
            told[name] = answer.headers["Content-Type"]
    assert told == kinds


def test_many_threads_that_begin_at_once_make_one_client(google, objects, monkeypatch):
    objects.write("x", b"1")
    made, ready = [], threading.Barrier(16)

    class Counted(client_library.Client):
        def __init__(self, *args, **kwargs):
            made.append(self)
            time.sleep(0.1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(client_library, "Client", Counted)
    fresh = open_objects(objects.uri)

    def read(_):
        ready.wait()
        return fresh.read("x")

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(read, range(16))) == [b"1"] * 16
    assert len(made) == 1


def test_missing_permission_says_what_to_grant(google, objects, impatient):
    with google.faults(statuses={403: 1.0}):
        for work in (lambda: list(objects.list()), lambda: objects.read("x"), lambda: objects.write("x", b"")):
            with pytest.raises(UsageError, match=r"no permission .*roles/storage\.object"):
                work()


def test_missing_bucket_is_named(google):
    objects = open_objects("gs://no-such-bucket/x")
    copy = lambda: local_copy("gs://no-such-bucket/x/w.h5")  # noqa: E731
    for work in (lambda: list(objects.list()), lambda: objects.write("x", b""), copy):
        with pytest.raises(UsageError, match="there is no bucket gs://no-such-bucket"):
            work()


def test_objects_can_be_sent_to_another_process(google, objects):
    objects.write("x", b"1")
    assert pickle.loads(pickle.dumps(objects)).read("x") == b"1"


def test_unknown_scheme_names_those_that_there_are():
    with pytest.raises(UsageError, match="no storage for ftp://.*gs://BUCKET/PREFIX, s3://BUCKET/PREFIX"):
        open_objects("ftp://host/x")
    with pytest.raises(UsageError, match="the bucket is missing"):
        open_objects("gs:///x")
    for uri in ("gs://bucket", "gs://bucket/"):
        with pytest.raises(UsageError, match=f"^{uri}: this is a whole bucket, and no object in it. Give gs://bucket/NAME"):
            local_copy(uri)
    assert is_remote("hdfs://x") and not is_remote("C:/x") and not is_remote("tfds:x") and not is_remote("a/b")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:verysecret@bucket/x",
        "s3://AKIAKEY:very/secret@bucket/x",
        "s3://AKIAKEY/very/secret@bucket/x",
        "gs://bucket/x?secret",
        "gs://bucket?secret",
        "s3://AKIAKEY:verysecret@bucket/x\ny",
        "https://AKIAKEY:verysecret@host/x",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(UsageError) as caught:
        open_objects(uri)
    assert "secret" not in str(caught.value) and "AKIAKEY" not in str(caught.value)


def test_names_of_objects_may_have_what_a_prefix_may_not(objects):
    version = objects.write("a@b?c:d", b"1", replaces="")
    assert objects.read("a@b?c:d", version) == b"1" and list(objects.list()) == [("a@b?c:d", 1, version, False)]


def test_local_copies_are_made_once_for_each_version(google, objects, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    objects.write("w.h5", b"1")
    objects.write("m/a", b"1")
    first = local_copy(f"{objects.uri}/w.h5")
    folder = local_folder(f"{objects.uri}/m")
    google.requests()
    assert local_copy(f"{objects.uri}/w.h5") == first and local_folder(f"{objects.uri}/m") == folder
    assert not [path for _, path, _ in google.requests() if "alt=media" in path]
    objects.write("w.h5", b"2")
    assert local_copy(f"{objects.uri}/w.h5").read_bytes() == b"2" and first.read_bytes() == b"1"
    with pytest.raises(UsageError, match="no such object"):
        local_copy(f"{objects.uri}/missing.h5")
    with pytest.raises(UsageError, match="nothing below it"):
        local_folder(f"{objects.uri}/nothing")


@pytest.mark.parametrize("unreadable", [False, True], ids=["nothing", "what cannot be read"])
def test_no_credentials_is_one_clear_line(tmp_path, unreadable):
    environment = {
        k: v for k, v in os.environ.items() if k not in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS")
    }
    if unreadable:
        environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(tmp_path)  # A folder: root may read every file.
    done = subprocess.run(
        [sys.executable, "-m", "job", "run", "--data", "gs://some-bucket/photos", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no credentials for Google Cloud" in done.stderr and "Traceback" not in done.stderr
