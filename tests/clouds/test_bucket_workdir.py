"""An output directory in a bucket: what is committed, what a fresh node finds, and that only one run can own it."""

import json
import os
import re
import time

import pytest

from job.errors import StorageFailed, TryAgainLater, UsageError
from job.storage.bucket import downloads as copies
from job.storage.bucket import lease as object_lease
from job.storage.bucket.manifest import NAME as MANIFEST
from job.storage.bucket.open import open_objects
from job.storage.bucket.workdir import BucketWorkdir
from job.storage.lease import Owner


class Node:
    """A machine with a scratch folder of its own."""

    def __init__(self, folder, uri):
        folder.mkdir()
        self.workdir = BucketWorkdir(folder, open_objects(uri))
        self.said = []

    def take_over(self):
        self.workdir.take_over(self.said.append, lambda: None)
        return self.workdir

    def files(self):
        root = self.workdir.root
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def uri(bed):
    return f"{bed.bucket()}/runs/x"


@pytest.fixture
def node(tmp_path, uri):
    node = Node(tmp_path / "a", uri)
    yield node
    node.workdir.close()


def in_bucket(bed, uri):
    return {name.removeprefix(f"{uri}/") for name in bed.names(uri)}


def publish(workdir, *names):
    with workdir.writing_folder("model") as folder:
        for name in names:
            (folder / name).write_bytes(b"{}")


def test_fresh_node_finds_what_was_committed_and_nothing_else(bed, tmp_path, uri, node):
    workdir = node.take_over()
    workdir.write_json("stages/split.json", {"a": 1})
    workdir.write_bytes("report.html", b"<html>")
    publish(workdir, "model.json")
    (workdir.root / "cache" / "images").mkdir(parents=True)
    (workdir.root / "cache" / "images" / "x.npy").write_bytes(b"large")
    workdir.temporary().parent.mkdir(exist_ok=True)
    workdir.temporary().write_bytes(b"half")
    workdir.commit()
    workdir.write_bytes("late.json", b"not committed")
    assert in_bucket(bed, uri) == {".lease", MANIFEST, "stages/split.json", "report.html", "model/model.json"}
    fresh = Node(tmp_path / "b", uri).workdir
    fresh.refresh()
    assert fresh.read_json("stages/split.json") == {"a": 1}
    assert fresh.path("report.html").read_bytes() == b"<html>"
    assert not fresh.path("model").is_symlink() and fresh.path("model/model.json").read_bytes() == b"{}"
    assert not fresh.exists("late.json") and not fresh.exists("cache")


def test_only_what_changed_is_uploaded(bed, node):
    workdir = node.take_over()
    for k in range(20):
        workdir.write_json(f"stages/{k}.json", k)
    workdir.commit()
    bed.requests()
    workdir.write_json("stages/3.json", "new")
    workdir.write_json("stages/4.json", 4)
    workdir.commit()
    uploads = [path for method, path, _ in bed.requests() if method in ("POST", "PUT")]
    assert len(uploads) == 2  # The file and the manifest.
    workdir.commit()
    assert bed.requests() == []


def test_killed_before_the_manifest_nothing_has_changed(bed, tmp_path, uri, node, monkeypatch):
    workdir = node.take_over()
    workdir.write_bytes("metrics.json", b"old")
    workdir.commit()
    workdir.write_bytes("metrics.json", b"new")
    workdir.write_bytes("other.json", b"new")
    monkeypatch.setattr(BucketWorkdir, "_write_manifest", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        workdir.commit()
    assert bed.get(f"{uri}/other.json") == b"new"
    fresh = Node(tmp_path / "b", uri).workdir
    fresh.refresh()
    assert not fresh.exists("other.json")
    assert not fresh.exists("metrics.json")  # Written over, so it does not count: its stage runs again.


def test_logs_of_a_run_that_was_killed_before_the_manifest_are_kept(bed, tmp_path, uri, node, monkeypatch):
    workdir = node.take_over()
    log = "logs/events.jsonl"
    workdir.write_bytes(log, b"1\n")
    workdir.commit()
    workdir.write_bytes(log, b"1\n2\n")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(BucketWorkdir, "_write_manifest", lambda self: 1 / 0)
        workdir.commit()
    workdir.close()
    again = Node(tmp_path / "b", uri).take_over()
    assert again.path(log).read_bytes() == b"1\n2\n"
    again.write_bytes(log, b"1\n2\n3\n")
    again.commit()
    again.close()
    fresh = Node(tmp_path / "c", uri).workdir
    fresh.refresh()
    assert fresh.path(log).read_bytes() == b"1\n2\n3\n"


def test_what_replaces_an_object_is_uploaded_last(bed, uri, node):
    workdir = node.take_over()
    workdir.write_bytes("a.json", b"old")
    workdir.commit()
    bed.requests()
    for name in ("a.json", *(f"b{k}.json" for k in range(12))):
        workdir.write_bytes(name, b"new")
    workdir.commit()
    written = [re.search(r"[ab]\d*\.json|manifest", path) for method, path, _ in bed.requests() if method in ("POST", "PUT")]
    assert [match[0] for match in written[-2:]] == ["a.json", "manifest"] and len(written) == 14


def test_whoever_takes_over_commits_before_it_fetches(tmp_path, uri, node, monkeypatch):
    old = node.take_over()
    old.write_bytes("metrics.json", b"old")
    old.commit()
    monkeypatch.setattr(Owner, "is_dead", True)
    new = Node(tmp_path / "b", uri)
    fetch_all = BucketWorkdir._fetch_all

    def fetching(self, names):
        old.write_bytes("metrics.json", b"from the grave")
        with monkeypatch.context() as patch, pytest.raises(TryAgainLater, match="taken over"):
            patch.setattr(BucketWorkdir, "_is_owner", lambda self: True)  # It had asked before it was taken over.
            old.commit()
        fetch_all(self, names)

    monkeypatch.setattr(BucketWorkdir, "_fetch_all", fetching)
    new.take_over()
    new.workdir.close()


def test_what_a_killed_run_left_uncommitted_does_not_stop_the_next(bed, uri, tmp_path):
    first = Node(tmp_path / "a", uri)
    first.take_over()
    first.workdir.close()
    checkpoint = f"checkpoints/fine_tune/0000000007-{'a' * 64}"
    objects = open_objects(uri)
    objects.write("report.html", b"of a run that was killed before it could commit")
    objects.write(f"{checkpoint}/state.json", b"the same")
    theirs = f"checkpoints/fine_tune/0000000008-{'a' * 64}/state.json"
    bed.put(f"{uri}/{theirs}", b"named like ours")
    bed.put(f"{uri}/checkpoints/other-tool/epoch-9.ckpt", b"somebody else's")
    bed.put(f"{uri}/notes.txt", b"the user's own")
    workdir = Node(tmp_path / "b", uri).take_over()
    workdir.write_bytes("report.html", b"new")
    workdir.commit()
    assert bed.get(f"{uri}/report.html") == b"new"
    others = {"notes.txt", "checkpoints/other-tool/epoch-9.ckpt", theirs}
    assert in_bucket(bed, uri) == {".lease", MANIFEST, "report.html", *others}
    workdir.close()


def test_object_of_somebody_else_is_never_written_over(bed, uri, node):
    workdir = node.take_over()
    bed.put(f"{uri}/report.html", b"the user's own")
    workdir.write_bytes("report.html", b"new")
    with pytest.raises(UsageError, match="report.html is in the way: this job did not make it"):
        workdir.commit()
    assert bed.get(f"{uri}/report.html") == b"the user's own"


def test_table_that_its_user_edited_in_the_bucket_is_kept_beside_the_new_one(bed, uri, tmp_path, node):
    workdir = node.take_over()
    workdir.write_bytes("label_issues.csv", b"old")
    workdir.commit()
    workdir.close()
    for edited in (b"edited", b"edited again"):
        bed.put(f"{uri}/label_issues.csv", edited)
        again = Node(tmp_path / edited.decode(), uri).take_over()
        again.write_bytes("label_issues.csv", b"new after " + edited)
        again.commit()
        again.close()
    assert bed.get(f"{uri}/label_issues.csv") == b"new after edited again"
    assert bed.get(f"{uri}/label_issues.edited.csv") == b"edited"
    assert bed.get(f"{uri}/label_issues.edited-2.csv") == b"edited again"


def test_nothing_is_removed_where_there_was_no_run(bed, uri, node):
    other = f"checkpoints/fine_tune/0000000007-{'a' * 64}/state.json"
    bed.put(f"{uri}/{other}", b"of a copy that somebody is making here")
    node.take_over()
    assert other in in_bucket(bed, uri)


def test_checkpoints_come_here_when_somebody_asks_and_stay_in_the_bucket_when_nobody_does(bed, tmp_path, uri, node):
    name = f"checkpoints/head/0000000001-{'b' * 64}"
    workdir = node.take_over()
    workdir.write_bytes(f"{name}/state.json", b"{}")
    workdir.write_bytes("run.json", b"1")
    workdir.commit()
    workdir.close()
    again = Node(tmp_path / "b", uri).take_over()
    assert again.exists("run.json") and not again.exists("checkpoints")
    again.write_bytes("run.json", b"2")
    again.commit()
    assert f"{name}/state.json" in in_bucket(bed, uri)
    again.bring("checkpoints/fine_tune")
    assert not again.exists("checkpoints")
    again.bring("checkpoints/head")
    assert again.path(f"{name}/state.json").read_bytes() == b"{}"
    again.path(f"{name}/state.json").unlink()
    again.commit()
    again.close()
    assert f"{name}/state.json" not in in_bucket(bed, uri)
    workdir.refresh()  # On the node that had them.
    assert not workdir.exists(name) and workdir.exists("run.json")


def test_withdrawn_model_is_gone_from_the_bucket(bed, uri, node):
    workdir = node.take_over()
    publish(workdir, "a")
    workdir.commit()
    workdir.remove("model")
    workdir.commit()
    assert in_bucket(bed, uri) == {".lease", MANIFEST}
    publish(workdir, "b")
    workdir.commit()
    assert in_bucket(bed, uri) == {".lease", MANIFEST, "model/b"}


def test_owner_that_was_taken_over_can_neither_commit_nor_harm(bed, uri, tmp_path, node, monkeypatch):
    old = node.take_over()
    old.write_bytes("metrics.json", b"old")
    old.commit()
    monkeypatch.setattr(Owner, "is_dead", True)
    new = Node(tmp_path / "b", uri)
    new.take_over().write_bytes("metrics.json", b"new")
    new.workdir.commit()
    assert "stopped without releasing the lease" in new.said[0]
    old.write_bytes("metrics.json", b"from the grave")
    old.write_bytes("report.html", b"from the grave")
    with pytest.raises(TryAgainLater, match="taken over"):
        old.commit()
    assert bed.get(f"{uri}/metrics.json") == b"new"
    new.workdir.write_bytes("report.html", b"new")
    new.workdir.commit()
    assert bed.get(f"{uri}/report.html") == b"new"
    new.workdir.close()


def test_what_such_an_owner_writes_over_all_the_same_is_put_right(bed, uri, tmp_path, node, monkeypatch):
    old = node.take_over()
    old.write_bytes("metrics.json", b"old")
    old.commit()
    monkeypatch.setattr(Owner, "is_dead", True)
    new = Node(tmp_path / "b", uri).take_over()
    monkeypatch.setattr(BucketWorkdir, "_is_owner", lambda self: True)  # It had asked before it was taken over.
    old.write_bytes("metrics.json", b"from the grave")
    with pytest.raises(TryAgainLater, match="taken over"):
        old.commit()
    assert bed.get(f"{uri}/metrics.json") == b"from the grave"
    monkeypatch.undo()
    new.settle()
    assert bed.get(f"{uri}/metrics.json") == b"old"
    new.close()
    fresh = Node(tmp_path / "c", uri).workdir
    fresh.refresh()
    assert fresh.path("metrics.json").read_bytes() == b"old"


def test_failing_commit_ends_with_the_first_failure(bed, uri, node, monkeypatch):
    workdir = node.take_over()
    for k in range(100):
        workdir.write_json(f"{k}.json", k)
    monkeypatch.setattr("job.storage.bucket.objects.RETRY_FOR_S", 0.5)
    workdir.objects = open_objects(uri)
    bed.requests()
    with bed.faults(statuses={503: 1.0}, only="^(POST|PUT)"), pytest.raises(StorageFailed):
        workdir.commit()
    assert len(bed.requests()) < 100  # The eight that were tried, several times each.


def test_folder_of_an_earlier_run_becomes_what_the_bucket_says(tmp_path, uri, node):
    workdir = node.take_over()
    workdir.write_bytes("metrics.json", b"committed")
    workdir.commit()
    workdir.close()
    workdir.write_bytes("metrics.json", b"never committed")
    workdir.write_bytes("stages/head.json", b"never committed")
    again = BucketWorkdir(workdir.root, open_objects(uri))
    again.take_over(lambda _: None, lambda: None)
    assert again.path("metrics.json").read_bytes() == b"committed" and not again.exists("stages/head.json")
    again.close()


def test_names_that_lead_out_of_the_folder_are_not_followed(bed, tmp_path, uri):
    file = {"version": "1", "sha256": "", "num_bytes": 1}
    manifest = {"schema": 2, "files": {"../evil": file, "/tmp/evil": file}, "removed": {}}
    bed.put(f"{uri}/x", b"1")
    bed.put(f"{uri}/{MANIFEST}", json.dumps(manifest).encode())
    node = Node(tmp_path / "a", uri)
    node.workdir.refresh()
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("text", [b"<html>", b"{}", b"[]", b'{"schema": 3, "files": {}, "removed": {}}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused(bed, tmp_path, uri, text):
    bed.put(f"{uri}/{MANIFEST}", text)
    with pytest.raises(StorageFailed, match="not a manifest"):
        Node(tmp_path / "a", uri).workdir.refresh()


def test_output_of_version_1_is_refused(bed, tmp_path, uri):
    bed.put(f"{uri}/{MANIFEST}", b'{"schema": 1, "files": {}, "links": {}, "removed": []}')
    with pytest.raises(UsageError, match="is the output of transfer-job 0.1"):
        Node(tmp_path / "a", uri).workdir.refresh()


def acquire(uri, said, dead_after_s=2.0):
    return object_lease.acquire(open_objects(uri), said.append, lambda: None, dead_after_s)


def test_live_owner_on_another_machine_is_named(uri, monkeypatch):
    monkeypatch.setattr(object_lease, "_WRITTEN_EVERY_S", 0.5)
    lease, said = acquire(uri, []), []
    monkeypatch.setattr(Owner, "is_dead", None)
    with pytest.raises(TryAgainLater, match=rf"in use by the run on .*, process {os.getpid()}"):
        acquire(uri, said, dead_after_s=30)
    assert "Waiting 30 s to see" in said[0]
    lease.release()
    acquire(uri, []).release()


def test_silent_owner_is_taken_over(uri, monkeypatch):
    monkeypatch.setattr(object_lease, "_WRITTEN_EVERY_S", 1000)
    acquire(uri, [])  # Of a process that hangs.
    monkeypatch.setattr(Owner, "is_dead", None)
    said = []
    acquire(uri, said).release()
    assert "stopped without releasing the lease" in said[-1]


def test_of_many_that_start_at_once_one_proceeds(uri):
    from concurrent.futures import ThreadPoolExecutor

    def start(_):
        try:
            return acquire(uri, [], dead_after_s=30)
        except TryAgainLater:
            return None

    with ThreadPoolExecutor(6) as threads:
        leases = [lease for lease in threads.map(start, range(6)) if lease]
    assert len(leases) == 1
    leases[0].release()


def test_owner_that_is_refused_or_not_answered_for_a_while_stays_the_owner(bed, uri, monkeypatch):
    monkeypatch.setattr("job.storage.bucket.objects.RETRY_FOR_S", 0.2)
    monkeypatch.setattr(object_lease, "_WRITTEN_EVERY_S", 0.2)
    lease = acquire(uri, [])
    for fault in ({"statuses": {403: 1.0}}, {"lost_answers": 1.0}, {"statuses": {503: 1.0}}):
        with bed.faults(**fault):
            time.sleep(1.0)
    monkeypatch.setattr(Owner, "is_dead", None)
    with pytest.raises(TryAgainLater, match="in use"):
        acquire(uri, [], dead_after_s=30)
    lease.release()
    assert bed.get(f"{uri}/.lease") == b"{}"


def test_release_is_quick_and_raises_nothing(bed, uri):
    for fault in ({"statuses": {403: 1.0}}, {"statuses": {503: 1.0}}):
        lease = acquire(uri, [], dead_after_s=0.5)
        started = time.monotonic()
        with bed.faults(**fault):
            lease.release()
        assert time.monotonic() - started < 20
        open_objects(uri).write(".lease", b"{}")  # As a release that arrives.


def test_scratch_folder_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = copies.scratch("gs://b/x")
    assert folder == copies.scratch("gs://b/x") != copies.scratch("gs://b/y")
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_object_of_somebody_else_under_the_name_of_the_lease_stays(bed, uri):
    bed.put(f"{uri}/.lease", b'{"my": "settings"}')
    with pytest.raises(UsageError, match=r"\.lease is in the way"):
        acquire(uri, [])
    assert bed.get(f"{uri}/.lease") == b'{"my": "settings"}'
