"""Objects in S3: the same as in Google Cloud Storage, on a service that fails as real ones do."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context

import pytest
from boto3.session import Session

from job.errors import StorageFailed, UsageError
from job.storage.bucket.downloads import local_copy
from job.storage.bucket.objects import Conflict, NoSuchObject
from job.storage.bucket.open import open_objects
from tests.conftest import ROOT, free_ports

FAULTS = {"statuses": {429: 0.1, 503: 0.2}, "resets": 0.05, "shorts": 0.05, "wrong_checksums": 0.05}


@pytest.fixture
def objects(amazon):
    return open_objects(f"{amazon.bucket()}/a prefix/ü")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("job.storage.bucket.objects.RETRY_FOR_S", 1.0)


def test_objects_are_written_found_read_listed_and_removed(amazon, objects, tmp_path):
    assert objects.find("x") is None
    version = objects.write("x", b"1")
    assert version and objects.find("x") == ("x", 1, version, True) and objects.read("x") == b"1"
    file = tmp_path / "file"
    file.write_bytes(os.urandom(3_000_000))
    objects.write("sub/+ %2F", file)
    objects.download("sub/+ %2F", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == file.read_bytes() == amazon.get(f"{objects.uri}/sub/+ %2F")
    assert [found.name for found in objects.list()] == ["sub/+ %2F", "x"]
    assert [found._replace(is_own=True) for found in objects.list("sub/")] == [objects.find("sub/+ %2F")]
    objects.remove("x")
    objects.remove("x")
    assert objects.find("x") is None
    with pytest.raises(NoSuchObject, match="ü/x: there is no such object"):
        objects.read("x")


def test_empty_object_is_an_object(objects):
    version = objects.write("x", b"")
    assert objects.find("x") == ("x", 0, version, True) and objects.read("x", version) == b""


def test_without_a_prefix_the_names_are_those_of_the_bucket(amazon):
    uri = amazon.bucket()
    amazon.put(f"{uri}/a/x", b"1")
    objects = open_objects(uri)
    assert [found.name for found in objects.list()] == ["a/x"] and objects.read("a/x") == b"1"


def test_a_neighbour_that_begins_alike_is_not_below_the_prefix(amazon, objects):
    amazon.put(f"{objects.uri}er/x", b"1")
    assert list(objects.list()) == []


def test_listing_goes_over_pages_in_the_order_of_the_bytes(amazon, objects):
    names = ["Z", "ä/1", "\uff5e", "\U0001f600", *(f"{k:04d}" for k in range(1100))]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda name: amazon.put(f"{objects.uri}/{name}", b""), names))
    assert [found.name for found in objects.list()] == sorted(names, key=lambda name: name.encode())


def test_version_that_was_replaced_is_gone(objects, tmp_path):
    version = objects.write("x", b"1")
    assert objects.read("x", version) == b"1"
    objects.write("x", b"2")
    with pytest.raises(NoSuchObject):
        objects.read("x", version)
    with pytest.raises(NoSuchObject):
        objects.download("x", tmp_path / "x", version)


def test_write_happens_only_onto_the_version_that_it_names(objects):
    first = objects.write("x", b"1", "")
    with pytest.raises(Conflict, match="ü/x: another program"):
        objects.write("x", b"2", "")
    second = objects.write("x", b"2", first)
    with pytest.raises(Conflict):
        objects.write("x", b"3", first)
    assert objects.read("x") == b"2" and objects.write("x", b"4") not in (first, second)
    objects.remove("x")
    with pytest.raises(Conflict, match="removed"):
        objects.write("x", b"5", second)


def test_of_many_that_create_an_object_at_once_one_succeeds(objects):
    ready = threading.Barrier(16)

    def create(k):
        ready.wait()
        try:
            return objects.write("x", b"%d" % k, "") and k
        except Conflict:
            return None

    with ThreadPoolExecutor(16) as threads:
        (winner,) = [k for k in threads.map(create, range(16)) if k is not None]
    assert objects.read("x") == b"%d" % winner


def test_own_write_whose_answer_was_lost_is_no_conflict(amazon, objects):
    with amazon.faults(lost_answers=1.0, times=1):
        first = objects.write("x", b"1", "")
    amazon.requests()
    with amazon.faults(lost_answers=1.0, times=2):
        assert objects.write("x", b"2", first) == objects.find("x").version
    assert [status for method, _, status in amazon.requests() if method == "PUT"] == [0, 0, 412]


def test_answer_that_was_lost_of_somebody_elses_write_stays_a_conflict(amazon, objects):
    amazon.put(f"{objects.uri}/x", b"theirs")
    with amazon.faults(lost_answers=1.0, times=1), pytest.raises(Conflict):
        objects.write("x", b"mine", "")
    assert objects.read("x") == b"theirs"


def test_all_is_right_in_the_end_on_a_service_that_fails(amazon, objects, tmp_path):
    contents = {f"{k:02d}": os.urandom(1 + 4000 * k) for k in range(30)}

    def there_and_back(name):
        version = objects.write(name, contents[name], "")
        objects.download(name, tmp_path / name, version)
        return objects.read(name, version) == (tmp_path / name).read_bytes() == contents[name]

    amazon.requests()
    with amazon.faults(**FAULTS, lost_answers=0.1), ThreadPoolExecutor(8) as threads:
        assert all(threads.map(there_and_back, contents))
        assert [(found.name, found.num_bytes) for found in objects.list()] == [(n, len(c)) for n, c in contents.items()]
    statuses = [status for _, _, status in amazon.requests()]
    assert {0, 412, 429, 503} <= set(statuses)


@pytest.mark.parametrize("fault", [{"statuses": {503: 1.0}}, {"resets": 1.0}, {"shorts": 1.0}, {"wrong_checksums": 1.0}])
def test_failure_that_does_not_pass_is_said_with_the_name_of_the_object(amazon, objects, impatient, fault):
    objects.write("x", b"12345678")
    with amazon.faults(**fault), pytest.raises(StorageFailed, match=r"s3://.*/ü/x: .*Run the same command again") as error:
        objects.read("x")
    assert error.type is StorageFailed


def test_connection_that_breaks_later_than_the_time_to_try_again_is_tried_again(amazon, objects, monkeypatch):
    monkeypatch.setattr("job.storage.bucket.objects.RETRY_FOR_S", 0.5)
    objects.prepare()
    for work in (lambda: objects.write("x", b"12345678"), lambda: objects.read("x"), lambda: list(objects.list())):
        with amazon.faults(latency_s=1.0, resets=1.0, times=1):
            assert work()


def test_time_for_which_the_service_has_failed_is_what_passed(amazon, objects, impatient):
    objects.write("x", b"1")
    began = time.monotonic()
    with amazon.faults(statuses={503: 1.0}), pytest.raises(StorageFailed, match=r"S3 failed for \d+ s"):
        objects.read("x")
    assert time.monotonic() - began >= 1.0


def test_browsers_are_told_what_an_object_is(amazon, objects):
    kinds = {"sub/report.html": "text/html", "a.json": "application/json", "a.npy": "application/octet-stream"}
    for name, kind in kinds.items():
        objects.write(name, b"1")
        bucket, _, key = f"{objects.uri}/{name}".removeprefix("s3://").partition("/")
        assert Session().client("s3").head_object(Bucket=bucket, Key=key)["ContentType"] == kind


def test_object_without_a_checksum_is_held_against_its_md5(amazon, objects, impatient, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    version = objects.write("x", b"12345678" * 1000)
    client = Session().client("s3")
    bucket, _, key = f"{objects.uri}/x".removeprefix("s3://").partition("/")
    assert not [field for field in client.get_object(Bucket=bucket, Key=key) if field.startswith("Checksum")]
    amazon.requests()
    assert objects.read("x", version) == b"12345678" * 1000
    monkeypatch.setattr("job.storage.bucket.s3._version", lambda answer: "0" * 32)
    with pytest.raises(StorageFailed, match="ChecksumError"):
        objects.read("x", version)


def test_refused_permission_is_no_reason_to_try_again(amazon, objects):
    for operation in (objects.read, objects.find, objects.remove, lambda name: objects.write(name, b"1")):
        amazon.requests()
        with amazon.faults(statuses={403: 1.0}), pytest.raises(UsageError, match=r"ü/x: no permission .*s3:GetObject"):
            operation("x")
        assert len(amazon.requests()) == 1
    with amazon.faults(statuses={403: 1.0}), pytest.raises(UsageError, match="s3:ListBucket"):
        list(objects.list())


def test_missing_bucket_is_said(amazon):
    missing = open_objects("s3://no-such-bucket/x")
    copy = lambda: local_copy("s3://no-such-bucket/x/w.h5")  # noqa: E731
    for operation in (lambda: list(missing.list()), lambda: missing.read("a"), lambda: missing.write("a", b""), copy):
        with pytest.raises(UsageError, match="there is no bucket s3://no-such-bucket"):
            operation()
    with pytest.raises(UsageError, match="Invalid bucket name"):
        list(open_objects("s3://No_such!/x").list())


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "no credentials for S3 that work .*aws configure"),
        ({"AWS_ACCESS_KEY_ID": "x"}, "no credentials for S3 that work .*AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "nobody"}, "no credentials for S3 that work .*nobody"),
        ({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": "nowhere"}, "AWS_ENDPOINT_URL"),
    ],
)
def test_without_credentials_there_is_one_clear_error(amazon, objects, monkeypatch, environment, said):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        objects.prepare()
    with pytest.raises(UsageError, match=said):
        objects.find("x")


def test_machine_that_does_not_say_its_credentials_at_once_is_asked_again(amazon, objects, monkeypatch):
    answers = {"/latest/meta-data/iam/security-credentials/": b"role"}
    keys = {"AccessKeyId": "x", "SecretAccessKey": "x", "Token": "x", "Expiration": "2100-01-01T00:00:00Z"}
    asked = []

    class Machine(BaseHTTPRequestHandler):
        def do_PUT(self):
            self._answer(200, b"token")

        def do_GET(self):
            asked.append(self.path)
            is_first = asked.count(self.path) == 1
            self._answer(500 if is_first else 200, answers.get(self.path, json.dumps(keys).encode()))

        def _answer(self, status, content):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Machine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(name)
        monkeypatch.delenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        objects.write("x", b"1")
        server.shutdown()
    assert len(asked) == 4


def test_user_in_the_address_of_a_service_is_not_repeated(objects, impatient, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:canary@127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(StorageFailed, match="EndpointConnectionError") as caught:
        objects.read("x")
    assert "canary" not in str(caught.value) and "127.0.0.1" in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "user:canary@nowhere")
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL") as caught:
        open_objects("s3://bucket").prepare()
    assert "canary" not in str(caught.value)


def test_credentials_that_have_expired_are_told_from_permissions(amazon, objects):
    with amazon.faults(statuses={400: 1.0}), pytest.raises(UsageError, match="no credentials .*ExpiredToken"):
        objects.read("x")


def test_service_that_is_not_there_fails_the_run(objects, impatient, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(StorageFailed, match=r"ü/x: S3 failed for \d+ s \(EndpointConnectionError"):
        objects.read("x")


def read_elsewhere(objects):
    return objects.read("x")


def test_another_process_can_use_it(objects):
    objects.write("x", b"1")
    again = pickle.loads(pickle.dumps(objects))
    assert again.uri == objects.uri and again.read("x") == b"1"
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        assert processes.submit(read_elsewhere, objects).result() == b"1"


def test_many_threads_may_use_it_at_once_from_the_beginning(amazon):
    uri = amazon.bucket()
    for k in range(64):
        amazon.put(f"{uri}/{k}", b"%d" % k)
    objects = open_objects(uri, connections=32)
    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(objects.read, map(str, range(64)))) == [b"%d" % k for k in range(64)]


def test_without_boto3_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'boto3' else find(name)\n"
        "from job.storage.bucket.open import open_objects; open_objects('s3://bucket/x')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "UsageError: s3://bucket/x: boto3 is needed for s3://. Run pip install 'transfer-job[s3]'." in done.stderr
