"""Files that are swapped between listing and reading: bytes from outside the source are never read, and nothing waits.

Intake, digests, predict and the parity check all read through `Source.read`.
"""

import os
import pickle
import resource

import pytest

from job.errors import StorageFailed
from job.sources.base import Entry
from job.sources.local import to_text
from job.sources.open import open_source
from job.sources.opening import opened, read_files

SECRET = b"secret"


@pytest.fixture
def root(tmp_path):
    """Two classes of files below a source, with links inside it, and a folder elsewhere that has the same names."""
    root = tmp_path / "data"
    for folder in (root, tmp_path / "elsewhere"):
        for name in ("cat/a.jpg", "cat/deep/er/b.jpg", "dog/c.jpg"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(name.encode() if folder == root else SECRET)
    (root / "dog" / "of-cat.jpg").symlink_to("../cat/a.jpg")
    (root / "dog" / "folder").symlink_to(root / "cat" / "deep")
    (root / "again").symlink_to("dog")
    rows = ["cat/a.jpg,cat", "cat/deep/er/b.jpg,cat", "dog/c.jpg,dog", "dog/of-cat.jpg,dog", "dog/folder/er/b.jpg,dog"]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]))
    return root


SOURCES = {
    "a folder": lambda root: open_source(str(root)),
    "a folder without labels": lambda root: open_source(str(root), labelled=False),
    "a table": lambda root: open_source(str(root / "labels.csv")),
    "a folder and a table": lambda root: open_source(str(root), str(root / "labels.csv")),
}


def remove(path):
    path.rename(path.with_name("aside"))


def link_file(root):
    remove(root / "cat" / "a.jpg")
    (root / "cat" / "a.jpg").symlink_to(root.parent / "elsewhere" / "cat" / "a.jpg")


def link_folder(root):
    remove(root / "cat" / "deep")
    (root / "cat" / "deep").symlink_to(root.parent / "elsewhere" / "cat" / "deep")


def link_class(root):
    remove(root / "cat")
    (root / "cat").symlink_to(root.parent / "elsewhere" / "cat")


def link_root(root):
    remove(root)
    root.symlink_to("elsewhere")


def link_links(root):
    for name in ("dog/of-cat.jpg", "dog/folder"):
        (root / name).unlink()
        (root / name).symlink_to(root.parent / "elsewhere" / ("cat/a.jpg" if name.endswith("jpg") else "cat/deep"))


def pipe(root):
    (root / "cat" / "a.jpg").unlink()
    os.mkfifo(root / "cat" / "a.jpg")


def folder(root):
    (root / "cat" / "a.jpg").unlink()
    (root / "cat" / "a.jpg").mkdir()


def nothing(root):
    """So that it is known what is read otherwise."""


SWAPS = {  # How many of the files of a table of five can still be read.
    nothing: 5,
    link_file: 3,
    link_folder: 3,
    link_class: 1,
    link_root: 0,
    link_links: 5,
    pipe: 3,
    folder: 3,
}


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_swapped_in_after_the_listing_is_not_read(root, kind, swap):
    source = SOURCES[kind](root)
    entries = [e for e in source.listing().entries if e.verdict is None and e.path != "labels.csv"]
    assert len({e.path for e in entries}) == len(entries) >= 3
    swap(root)
    read = list(pickle.loads(pickle.dumps(source)).read(pickle.loads(pickle.dumps(entries))))
    assert len(read) == len(entries)
    assert {payload for payload in read if isinstance(payload, bytes)} <= {b"cat/a.jpg", b"cat/deep/er/b.jpg", b"dog/c.jpg"}
    if kind == "a table":
        assert sum(isinstance(payload, bytes) for payload in read) == SWAPS[swap]
    said = {payload.strerror for payload in read if isinstance(payload, OSError)}
    assert said <= {"a link or something else took its place after it was listed"}
    if swap in (nothing, link_links):
        assert not said


def test_links_within_the_source_are_read_where_they_led_when_they_were_listed(root):
    found = {e.path: e for e in open_source(str(root)).listing().entries if e.verdict is None}
    assert found["again/folder/er/b.jpg"].real_path == "cat/deep/er/b.jpg"
    assert found["dog/of-cat.jpg"].real_path == "cat/a.jpg" and found["dog/c.jpg"].real_path == ""


def test_no_path_leads_out_by_dots_or_escapes(root):
    for path in ("../elsewhere/cat/a.jpg", "cat/../../elsewhere/cat/a.jpg", "..\\x2felsewhere\\x2fcat\\x2fa.jpg"):
        (read,) = open_source(str(root)).read([Entry(path, None, None, 0, "")])
        assert isinstance(read, OSError), path


def test_files_in_more_folders_than_stay_open_are_read_in_any_order(tmp_path):
    names = [f"{k:03d}/{'x/' * (k % 5)}a\n{k}.jpg" for k in range(100)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(name.encode())
    descriptors = len(os.listdir("/proc/self/fd"))
    again = [*names, *reversed(names), *names[::7]]
    assert list(read_files(tmp_path, map(to_text, again))) == [name.encode() for name in again]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_folder_that_may_be_entered_and_not_listed_is_enough(tmp_path):
    if os.getuid() == 0:
        pytest.skip("root may list everything")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"x")
    (tmp_path / "cat").chmod(0o311)
    assert list(read_files(tmp_path, ["cat/a.jpg"])) == [b"x"]


def test_table_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(OSError, match="not a regular file"):
        opened(tmp_path / "labels.csv")


def test_photos_are_not_blamed_where_there_are_no_more_descriptors(root):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        with pytest.raises(StorageFailed, match="Too many open files.*ulimit -n"):
            list(read_files(root, ["cat/a.jpg"]))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
