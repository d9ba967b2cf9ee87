import errno
import os

import pytest

from job.errors import StorageFailed
from job.storage.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path)


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
    assert [p.name for p in workdir.root.iterdir()] == ["file"] and workdir.path("file").read_bytes() == b"old"


def test_full_disk_is_a_storage_error_with_the_path_and_the_way_out(workdir, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(workdir.path("file")))

    monkeypatch.setattr("job.storage.workdir.sync", full)
    with pytest.raises(
        StorageFailed,
        match=r"file: No space left on device\. .* GB are free there, and this alone needs 0\.1 kB\. Free some space",
    ):
        workdir.write_bytes("file", b"data")


def test_folder_is_published_whole_and_switched_in_one_step(workdir):
    workdir.publish_folder("model", lambda f: (f / "weights").write_bytes(b"1"))
    first = workdir.path("model").resolve()
    workdir.publish_folder("model", lambda f: (f / "weights").write_bytes(b"2"))
    assert (workdir.path("model") / "weights").read_bytes() == b"2" and not first.exists()

    def fail(folder):
        (folder / "weights").write_bytes(b"3")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        workdir.publish_folder("model", fail)
    assert (workdir.path("model") / "weights").read_bytes() == b"2"
    assert len(list(workdir.path("versions").iterdir())) == 1


def test_published_folder_can_be_published_again_unchanged(workdir):
    for _ in range(2):
        workdir.publish_folder("model", lambda f: (f / "weights").write_bytes(b"1"))
    assert (workdir.path("model") / "weights").read_bytes() == b"1"


def test_json_that_is_missing_or_broken_reads_as_none(workdir):
    assert workdir.read_json("x.json") is None
    workdir.write_bytes("x.json", b"{half")
    assert workdir.read_json("x.json") is None
    workdir.write_json("x.json", {"name": "ü \udcff"})
    assert workdir.read_json("x.json")["name"].startswith("ü")
