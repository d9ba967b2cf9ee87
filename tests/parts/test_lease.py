"""One run, one owner: real processes hold the lease, die with it, and lose it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from job.errors import TryAgainLater, UsageError
from job.storage import lease
from job.storage.ledger import MARK
from job.storage.workdir import Workdir
from tests.conftest import ROOT, WAIT_S, run_job, wait_until

# Takes the lease, says so, and tries to publish whenever it is told to.
HOLDER = """
import sys
from pathlib import Path
from job.errors import TryAgainLater
from job.storage import lease
from job.storage.workdir import Workdir
workdir = Workdir(Path(sys.argv[1]))
workdir.lease = lease.acquire(workdir.root, lambda text: None, lambda: None)
print("held", flush=True)
for line in sys.stdin:
    try:
        workdir.write_bytes("result", line.encode())
        print("published", flush=True)
    except TryAgainLater as error:
        print(error, flush=True)
workdir.lease.release()
"""
# Much longer than an answer takes that comes at once.
DEAD_AFTER_S = 60.0
OWN_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace of one's own needs root")


class Holder:
    def __init__(self, folder, wrapper=()):
        command = [*wrapper, sys.executable, "-c", HOLDER, str(folder)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "held\n"
        self.pid = self.process.pid
        if wrapper:
            found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True, check=True)
            self.pid = int(found.stdout)

    def publish(self):
        self.process.stdin.write("content\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture
def hold(tmp_path):
    holders = []

    def start(wrapper=()):
        holders.append(Holder(tmp_path, wrapper))
        return holders[-1]

    yield start
    for holder in holders:
        for pid in {holder.pid, holder.process.pid}:
            if holder.process.poll() is None:
                os.kill(pid, signal.SIGKILL)
        holder.process.wait()


def publish(workdir, text, *names):
    with workdir.writing_folder("model") as folder:
        for name in names or ("weights",):
            (folder / name).write_bytes(text)


def acquire(folder, dead_after_s=DEAD_AFTER_S):
    said = []
    held = lease.acquire(folder, said.append, lambda: None, dead_after_s)
    return held, said


def test_second_owner_is_refused_at_once_and_told_who_the_first_is(tmp_path, hold):
    holder = hold()
    started = time.monotonic()
    with pytest.raises(TryAgainLater, match=f"in use by the run on .*, process {holder.pid}, since .*another --out"):
        acquire(tmp_path)
    assert time.monotonic() - started < DEAD_AFTER_S / 2 and holder.publish() == "published"


def test_second_start_ends_with_75_before_it_looks_at_the_data(tmp_path, painted, hold):
    (tmp_path / MARK).touch()
    holder = hold()
    done = run_job("run", "--data", painted, "--out", tmp_path)
    assert done.returncode == 75 and f"process {holder.pid}" in done.stderr
    assert "intake" not in done.stderr and not (tmp_path / "run.json").exists()


@needs_root
def test_living_owner_elsewhere_is_known_by_its_touch(tmp_path, hold):
    holder = hold(OWN_NAMESPACE)  # As in another container: its process number says nothing here.
    started = time.monotonic()
    with pytest.raises(TryAgainLater, match="in use by the run on .*, process 1, since"):
        acquire(tmp_path)
    assert time.monotonic() - started < DEAD_AFTER_S / 2 and holder.publish() == "published"


def test_owner_that_was_killed_is_followed_at_once(tmp_path, hold):
    holder = hold()
    holder.process.kill()
    holder.process.wait()
    started = time.monotonic()
    held, said = acquire(tmp_path)
    assert time.monotonic() - started < DEAD_AFTER_S / 2 and "stopped without releasing the lease" in said[0]
    held.release()
    assert list(tmp_path.iterdir()) == []  # No mark either: the lease is taken where the claim stands already.


def test_owner_whose_number_another_process_has_now_is_dead(tmp_path):
    here = lease.Owner.here()
    reused = {**here.__dict__, "token": "0", "born": "1"}
    (tmp_path / lease.NAME).write_text(json.dumps(reused))
    held, said = acquire(tmp_path)
    assert held._owner.token in (tmp_path / lease.NAME).read_text() and "stopped without releasing the lease" in said[0]
    held.release()


@needs_root
def test_silent_owner_elsewhere_is_followed_and_cannot_publish_any_more(tmp_path, hold):
    holder = hold(OWN_NAMESPACE)
    assert holder.publish() == "published"
    os.kill(holder.pid, signal.SIGSTOP)
    started = time.monotonic()
    held, said = acquire(tmp_path, dead_after_s=3)
    assert time.monotonic() - started > 3 and "Waiting 3 s to see" in said[0]
    os.kill(holder.pid, signal.SIGCONT)
    assert "was taken over by the run on" in holder.publish()
    assert (tmp_path / "result").read_bytes() == b"content\n"  # What it published while it was the owner stays.
    workdir = Workdir(tmp_path)
    workdir.lease = held
    workdir.write_bytes("result", b"of the new owner")
    assert "was taken over" in holder.publish() and (tmp_path / "result").read_bytes() == b"of the new owner"
    held.release()


def test_fenced_owner_can_neither_switch_nor_remove(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.lease, _ = acquire(tmp_path)
    publish(workdir, b"1")
    other = {**lease.Owner.here().__dict__, "host": "elsewhere", "token": "other"}
    (tmp_path / lease.NAME).write_text(json.dumps(other))
    for act in (
        lambda: publish(workdir, b"2"),
        lambda: workdir.remove("model"),
        lambda: workdir.write_json("metrics.json", {}),
        workdir.clean,
    ):
        with pytest.raises(TryAgainLater, match="taken over by the run on elsewhere"):
            act()
    assert (tmp_path / "model" / "weights").read_bytes() == b"1" and not (tmp_path / "metrics.json").exists()
    workdir.lease.release()
    assert json.loads((tmp_path / lease.NAME).read_text())["token"] == "other"  # Not its own to remove any more.


def test_owner_that_holds_the_lock_for_long_goes_on_touching_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_LOCK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(lease, "_TOUCHED_EVERY_S", 0.1)
    held, _ = acquire(tmp_path)
    with held.held():
        time.sleep(1)
    touched = (tmp_path / lease.NAME).stat().st_mtime_ns
    wait_until(lambda: (tmp_path / lease.NAME).stat().st_mtime_ns > touched)
    held.release()
    assert not (tmp_path / lease.NAME).exists()


def test_touch_that_comes_after_the_release_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_TOUCHED_EVERY_S", 0.01)
    touching, released, touched = threading.Event(), threading.Event(), threading.Event()

    def late(path, flags, real=lease.open_own):
        if threading.current_thread() is threading.main_thread():
            return real(path, flags)
        touching.set()
        released.wait(WAIT_S)
        try:
            return real(path, flags)
        finally:
            touched.set()

    monkeypatch.setattr(lease, "open_own", late)
    held, _ = acquire(tmp_path)
    assert touching.wait(WAIT_S)
    held.release()
    released.set()
    assert touched.wait(WAIT_S) and list(tmp_path.iterdir()) == []


def test_owner_whose_lease_has_gone_publishes_nothing_and_makes_no_new_one(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.lease, _ = acquire(tmp_path)
    (tmp_path / lease.NAME).unlink()  # As a run does that took over while this one slept, and has ended.
    with pytest.raises(TryAgainLater, match="was taken over by another run, which has ended"):
        workdir.write_bytes("result", b"1")
    workdir.lease.release()
    assert not (tmp_path / lease.NAME).exists() and not (tmp_path / "result").exists()


def test_messages_name_the_output_as_its_user_does(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_LOCK_TIMEOUT_S", 0.1)
    take = lambda: lease.acquire(tmp_path, lambda text: None, lambda: None, called="gs://bucket/run")  # noqa: E731
    held = take()
    with held.held(), pytest.raises(TryAgainLater, match="^gs://bucket/run is in use"):
        take()
    (tmp_path / lease.NAME).unlink()
    with pytest.raises(TryAgainLater, match="^gs://bucket/run was taken over"), held.held():
        pass
    held.release()


def test_only_what_lies_in_the_jobs_own_place_for_temporary_files_is_cleaned_away(tmp_path):
    workdir = Workdir(tmp_path)
    parts = [f".weights.{'0a' * 6}.part", f"stages/.photo.{'0a' * 6}.part", f"inner/.tmp/{'0a' * 6}"]
    for name in (*parts, f".tmp/{'0a' * 6}/weights"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    workdir.clean()
    assert all((tmp_path / name).exists() for name in parts) and not (tmp_path / ".tmp").exists()


def test_owner_that_was_fenced_does_not_clean_up_after_itself_either(tmp_path, monkeypatch):
    """It put its model in place and fell asleep; the new owner published; what it wakes up to remove is not its own."""
    workdir = Workdir(tmp_path)
    publish(workdir, b"0", "weights", "card")
    publish(workdir, b"0", "weights")
    workdir.path("model/notes").write_bytes(b"of a user")  # So that files are replaced one by one.
    workdir.lease, _ = acquire(tmp_path)
    workdir.path("model/card").write_bytes(b"of the new owner")
    other = {**lease.Owner.here().__dict__, "host": "elsewhere", "token": "other"}
    (tmp_path / lease.NAME).write_text(json.dumps(other))
    with pytest.raises(TryAgainLater, match="elsewhere"):
        publish(workdir, b"1")
    workdir.close()
    assert (tmp_path / "model" / "weights").read_bytes() == b"0" and (tmp_path / "model" / "card").exists()


def test_owner_that_died_while_it_wrote_its_name_is_none(tmp_path):
    (tmp_path / lease.NAME).write_text('{"token": "ab')
    held, said = acquire(tmp_path)
    assert held._owner.token in (tmp_path / lease.NAME).read_text() and said == []
    held.release()


FOREIGN = {
    "text": lambda file, other: file.write_bytes(b"mine"),
    "broken JSON": lambda file, other: file.write_bytes(b"{ precious"),
    "JSON": lambda file, other: file.write_bytes(b'{"my": "settings"}'),
    "long": lambda file, other: file.write_bytes(b'{"my": "' + b"x" * 5000 + b'"}'),
    "deep": lambda file, other: file.write_bytes(b"[" * 4096),
    "owner of another kind": lambda file, other: file.write_bytes(b'{"token": 1, "host": 2}'),
    "folder": lambda file, other: file.mkdir(),
    "pipe": lambda file, other: os.mkfifo(file),
    "link": lambda file, other: (other.write_bytes(b"{ precious"), file.symlink_to(other)),
    "dangling link": lambda file, other: file.symlink_to(other),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_file_of_somebody_else_under_the_name_of_the_lease_stays(tmp_path, what):
    file, other = tmp_path / lease.NAME, tmp_path / "other"
    FOREIGN[what](file, other)
    before = [p.read_bytes() if p.is_file() else p.exists() for p in (file, other)]
    with pytest.raises(UsageError, match="in the way"):
        acquire(tmp_path)
    assert [p.read_bytes() if p.is_file() else p.exists() for p in (file, other)] == before
    assert os.path.lexists(file)


def test_of_many_that_start_at_once_one_gets_the_lease(tmp_path):
    script = HOLDER.replace("for line in sys.stdin:", "import time\ntime.sleep(1.5)\nfor line in ():")
    command, pipe = [sys.executable, "-c", script, str(tmp_path)], subprocess.PIPE
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe) for _ in range(6)]
    ends = [(p.communicate(timeout=WAIT_S), p.returncode) for p in processes]
    assert sorted(code for _, code in ends) == [0, 1, 1, 1, 1, 1]
    assert all(b"TryAgainLater" in said for (_, said), code in ends if code)
