"""Objects in Google Cloud Storage, on a service that fails as real ones do."""

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from job.errors import StorageFailed, UsageError
from job.storage.objects import Conflict, NoSuchObject, is_remote, local_copy, local_folder, open_objects
from tests.conftest import ROOT

FAULTS = {"statuses": {429: 0.15, 503: 0.15}, "resets": 0.1, "shorts": 0.1, "wrong_checksums": 0.1}


@pytest.fixture
def objects(google):
    return open_objects(f"{google.bucket()}/a prefix/ü")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("job.storage.google.RETRY_FOR_S", 1.0)


def test_objects_are_written_found_read_listed_and_removed(google, objects, tmp_path):
    assert objects.find("x") is None
    version = objects.write("x", b"1")
    assert objects.find("x") == ("x", 1, version) and objects.read("x") == b"1"
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
    with pytest.raises(Conflict, match="somebody else"):
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


def test_missing_permission_says_what_to_grant(google, objects, impatient):
    with google.faults(statuses={403: 1.0}):
        for work in (lambda: list(objects.list()), lambda: objects.read("x"), lambda: objects.write("x", b"")):
            with pytest.raises(UsageError, match=r"no permission .*roles/storage\.object"):
                work()


def test_missing_bucket_is_named(google):
    objects = open_objects("gs://no-such-bucket/x")
    for work in (lambda: list(objects.list()), lambda: objects.write("x", b"")):
        with pytest.raises(UsageError, match="there is no bucket gs://no-such-bucket"):
            work()


def test_objects_can_be_sent_to_another_process(google, objects):
    objects.write("x", b"1")
    assert pickle.loads(pickle.dumps(objects)).read("x") == b"1"


def test_unknown_scheme_names_those_that_there_are():
    with pytest.raises(UsageError, match="no storage for ftp://.*gs://BUCKET/PREFIX, s3://BUCKET/PREFIX"):
        open_objects("ftp://host/x")
    with pytest.raises(UsageError, match="there is no bucket in it"):
        open_objects("gs:///x")
    assert is_remote("hdfs://x") and not is_remote("C:/x") and not is_remote("tfds:x") and not is_remote("a/b")


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(UsageError) as caught:
        open_objects("s3://AKIAKEY:verysecret@bucket/x")
    assert "verysecret" not in str(caught.value) and "AKIAKEY" not in str(caught.value)


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
def test_no_credentials_is_one_clear_line_within_10_s(tmp_path, unreadable):
    environment = {
        k: v for k, v in os.environ.items() if k not in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS")
    }
    if unreadable:
        environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(tmp_path)  # A folder: root may read every file.
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "job", "run", "--data", "gs://some-bucket/photos", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and time.monotonic() - started < 10
    assert "no credentials for Google Cloud" in done.stderr and "Traceback" not in done.stderr
