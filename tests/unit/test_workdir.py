import errno
import itertools
import os
import sys
import threading

import pytest

from job.errors import StorageFailed, UsageError
from job.storage import files
from job.storage.ledger import MARK, TEMPORARY, Ledger
from job.storage.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path)


def publish(workdir, text, *names):
    with workdir.writing_folder("model") as folder:
        for name in names or ("weights",):
            (folder / name).write_bytes(text)


def names(workdir):
    return {p.name for p in workdir.root.iterdir()} - {MARK, TEMPORARY}


def test_reader_meets_the_old_file_or_the_new_one(workdir):
    workdir.write_bytes("a/file", b"old")
    with workdir.writing("a/file") as path:
        path.write_bytes(b"new")
        assert workdir.path("a/file").read_bytes() == b"old"
    assert workdir.path("a/file").read_bytes() == b"new"


def test_failed_write_leaves_the_old_file_and_nothing_else(workdir):
    workdir.write_bytes("file", b"old")
    with pytest.raises(RuntimeError), workdir.writing("file") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert names(workdir) == {"file"} and workdir.path("file").read_bytes() == b"old"
    assert list((workdir.root / TEMPORARY).iterdir()) == []


def test_full_disk_is_a_storage_error_with_the_path_and_the_way_out(workdir, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workdir.path("file")))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(
        StorageFailed,
        match=r"file: No space left on device\. .* GB are free there, and this alone needs 0\.1 kB\. Free some space",
    ):
        workdir.write_bytes("file", b"data")


@pytest.mark.parametrize("exchanges", [True, False])
def test_folder_is_published_whole_and_the_one_before_it_is_gone(workdir, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    publish(workdir, b"1", "weights", "card")
    publish(workdir, b"2")
    assert [(p.name, p.read_bytes()) for p in workdir.path("model").iterdir()] == [("weights", b"2")]
    with pytest.raises(RuntimeError), workdir.writing_folder("model") as folder:
        (folder / "weights").write_bytes(b"3")
        raise RuntimeError
    assert workdir.path("model/weights").read_bytes() == b"2"
    assert list((workdir.root / TEMPORARY).iterdir()) == []


def test_folder_that_was_moved_or_copied_is_still_the_jobs(workdir, tmp_path):
    publish(workdir, b"1")
    workdir.root.rename(tmp_path.with_name("elsewhere"))
    moved = Workdir(tmp_path.with_name("elsewhere"))
    publish(moved, b"2")
    assert moved.path("model/weights").read_bytes() == b"2"


def test_files_that_others_put_into_a_folder_of_the_job_stay(workdir):
    publish(workdir, b"1", "weights", "card")
    workdir.path("model/notes.txt").write_bytes(b"mine")
    publish(workdir, b"2")
    assert workdir.path("model/notes.txt").read_bytes() == b"mine" and workdir.path("model/weights").read_bytes() == b"2"
    assert not workdir.path("model/card").exists()
    workdir.remove("model")
    assert [p.name for p in workdir.path("model").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["metrics.json", "model", "model/weights"])
def test_file_of_somebody_else_is_never_replaced(workdir, name):
    workdir.path(name).parent.mkdir(exist_ok=True)
    workdir.path(name).write_bytes(b"mine")
    with pytest.raises(UsageError, match="did not make it and does not replace it. Move it somewhere else"):
        publish(workdir, b"1") if name != "metrics.json" else workdir.write_bytes(name, b"1")
    workdir.remove(name)
    assert workdir.path(name).read_bytes() == b"mine"


def test_own_file_with_other_bytes_is_damage_and_made_again(workdir):
    workdir.write_bytes("metrics.json", b"1")
    workdir.write_bytes("run.json", b"1")  # The mark has the file before among its own by now.
    workdir.path("metrics.json").write_bytes(b"damaged")
    again = Workdir(workdir.root)
    again.write_bytes("metrics.json", b"2")
    assert workdir.path("metrics.json").read_bytes() == b"2"


def test_file_that_was_about_to_come_is_the_jobs_only_with_the_announced_bytes(workdir):
    import hashlib

    digest = hashlib.sha256(b"announced").hexdigest()
    workdir.ledger.expect({"metrics.json": digest, "report.html": digest})  # And here the run was killed.
    workdir.path("metrics.json").write_bytes(b"announced")
    workdir.path("report.html").write_bytes(b"mine")
    again = Workdir(workdir.root)
    again.write_bytes("metrics.json", b"new")
    with pytest.raises(UsageError, match="report.html is in the way"):
        again.write_bytes("report.html", b"new")
    assert workdir.path("report.html").read_bytes() == b"mine"


def test_every_flipped_bit_of_the_mark_leaves_everybody_their_own_files(workdir):
    workdir.write_bytes("metrics.json", b"1")
    publish(workdir, b"1")
    workdir.path("model/notes").write_bytes(b"mine")
    good = workdir.path(MARK).read_bytes()
    for place in range(0, 8 * len(good), 97):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        workdir.path(MARK).write_bytes(bytes(bad))
        again = Workdir(workdir.root)
        assert [*again.ledger.below("metrics.json"), *again.ledger.below("model")] == ["metrics.json", "model/weights"]
    again.write_bytes("metrics.json", b"2")
    again.remove("model")
    assert [p.name for p in workdir.path("model").iterdir()] == ["notes"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"0", b"[" * 100_000, b"\xff" * 10], ids=len)
def test_directory_whose_mark_says_nothing_is_refused_and_stays(workdir, text):
    publish(workdir, b"1")
    workdir.path(MARK).write_bytes(text)
    again = Workdir(workdir.root)
    with pytest.raises(UsageError, match=r"whether this job made the files beside it: model\..*another --out"):
        publish(again, b"2")
    assert workdir.path("model/weights").read_bytes() == b"1" and workdir.path(MARK).read_bytes() == text


@pytest.mark.parametrize("what", ["pipe", "folder", "loop", "dangling link"])
def test_mark_that_is_no_regular_file_is_refused(workdir, what):
    mark = workdir.path(MARK)
    {
        "pipe": lambda: os.mkfifo(mark),
        "folder": mark.mkdir,
        "loop": lambda: mark.symlink_to(MARK),
        "dangling link": lambda: mark.symlink_to("nowhere"),
    }[what]()
    with pytest.raises(UsageError, match="is in the way: it is no regular file"):
        publish(workdir, b"1")
    assert not workdir.path("nowhere").exists()


@pytest.mark.parametrize("linked", ["model", "model/weights", "stages"])
def test_nothing_is_written_or_removed_through_a_link(workdir, tmp_path_factory, linked):
    """Users deploy so: the folder is moved to where a server reads it, and a link takes its place."""
    publish(workdir, b"1")
    workdir.write_bytes("stages/head/head.json", b"1")
    elsewhere = tmp_path_factory.mktemp("srv") / "moved"
    workdir.path(linked).rename(elsewhere)
    workdir.path(linked).symlink_to(elsewhere)
    before = {p: p.read_bytes() for p in [elsewhere, *elsewhere.rglob("*")] if p.is_file()}
    again = Workdir(workdir.root)
    with pytest.raises(UsageError, match=f"{linked} is in the way"):
        again.write_bytes("stages/head/head.json", b"2")
        publish(again, b"2")
    again.remove("model")
    again.remove("stages")
    assert {p: p.read_bytes() for p in before} == before and workdir.path(linked).is_symlink()


def test_numbers_of_a_list_share_a_line_and_texts_do_not(workdir):
    value = {"matrix": [[1, 0], [0.5, None]], "names": ["a[\n1\n]", "b"], "none": [], "mixed": [{"x": [1]}]}
    workdir.write_json("value.json", value)
    lines = workdir.path("value.json").read_text().splitlines()
    assert workdir.read_json("value.json") == value
    assert "    [1, 0]," in lines and "    [0.5, null]" in lines and '    "b"' in lines and '      "x": [1]' in lines


def test_json_that_is_missing_or_broken_reads_as_none(workdir):
    assert workdir.read_json("x.json") is None
    workdir.write_bytes("x.json", b"{half")
    assert workdir.read_json("x.json") is None
    workdir.write_bytes("x.json", b"[" * 100_000)
    assert workdir.read_json("x.json") is None
    workdir.write_json("x.json", {"name": "ü \udcff"})
    assert workdir.read_json("x.json")["name"].startswith("ü")


def test_names_are_listed_while_another_thread_adds_some(tmp_path):
    ledger, is_over = Ledger(tmp_path), threading.Event()
    ledger.wrote(f"a/{k}" for k in range(2000))

    def add():
        for k in itertools.count(2000):
            if is_over.is_set():
                return
            ledger.wrote([f"a/{k}"])

    thread = threading.Thread(target=add)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        assert all(len(ledger.below("a")) >= 2000 for _ in range(20))
    finally:
        sys.setswitchinterval(before)
        is_over.set()
        thread.join()
