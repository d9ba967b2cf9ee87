import os

import pytest

from job.errors import DataUnusable, UsageError
from job.sources.folders import FolderSource
from job.sources.open import open_source
from tests.conftest import paint


def listing(folder):
    return FolderSource(folder.resolve()).listing()


def verdicts(folder):
    return {e.path: (e.verdict, e.reason) for e in listing(folder).entries}


def test_class_folders_label_however_deep_a_photo_lies(tmp_path):
    paint(tmp_path / "cat" / "a.jpg", 1)
    paint(tmp_path / "cat" / "garden" / "2024" / "b.jpg", 2)
    paint(tmp_path / "dog" / "c.jpg", 3)
    found = listing(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert [(e.path, e.label, e.split) for e in found.entries] == [
        ("cat/a.jpg", "cat", None),
        ("cat/garden/2024/b.jpg", "cat", None),
        ("dog/c.jpg", "dog", None),
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_split_folders_are_splits_and_never_classes(tmp_path, val):
    for split in ("train", val, "test"):
        paint(tmp_path / split / "cat" / "a.jpg", 1)
        paint(tmp_path / split / "dog" / "a.jpg", 2)
    found = listing(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert sorted({e.split for e in found.entries}) == ["test", "train", "val"]


def test_folder_called_train_with_photos_in_it_is_a_class(tmp_path):
    paint(tmp_path / "train" / "a.jpg", 1)
    paint(tmp_path / "bus" / "a.jpg", 2)
    assert listing(tmp_path).class_names == ("bus", "train")


def test_what_people_and_systems_leave_behind_is_ignored(tmp_path):
    paint(tmp_path / "cat" / "a.jpg", 1)
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "README.md", "LICENSE"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    paint(tmp_path / "cat" / ".ipynb_checkpoints" / "a.jpg", 1)
    paint(tmp_path / "stray.jpg", 4)
    paint(tmp_path / ".net" / "a.jpg", 6)
    for name in ("license.jpg", "README.jpeg"):
        paint(tmp_path / "cat" / name, 5)
    found = verdicts(tmp_path)
    assert {found.pop(f"cat/{name}") for name in ("a.jpg", "license.jpg", "README.jpeg")} == {(None, "")}
    assert found.pop("stray.jpg") == ("ignored", "outside every class folder")
    assert found["cat/.ipynb_checkpoints/"] == ("ignored", "a folder that systems leave beside photos")
    assert found[".net/"] == ("ignored", "a hidden folder; rename it if it is a class")
    assert all(verdict == "ignored" for verdict, _ in found.values()) and len(found) == 8


def test_links_stay_inside_and_every_file_is_seen_once(tmp_path):
    outside = paint(tmp_path / "elsewhere" / "secret.jpg", 9)
    root = tmp_path / "data"
    paint(root / "cat" / "a.jpg", 1)
    (root / "cat" / "inside.jpg").symlink_to(root / "cat" / "a.jpg")
    (root / "cat" / "outside.jpg").symlink_to(outside)
    (root / "cat" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "cat" / "loop").symlink_to(root / "cat")
    found = verdicts(root)
    assert found["cat/inside.jpg"] == (None, "")
    assert found["cat/outside.jpg"] == ("quarantined", "a link that leaves the source folder")
    assert found["cat/gone.jpg"] == ("quarantined", "a link that points to nothing")
    assert len(found) == 4


def test_pipes_do_not_block_and_are_ignored(tmp_path):
    paint(tmp_path / "cat" / "a.jpg", 1)
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    assert verdicts(tmp_path)["cat/pipe.jpg"] == ("ignored", "not a regular file")


def test_awkward_names_are_read_back(tmp_path):
    names = [b"two words.jpg", "ünï 🌼.jpg".encode(), b"new\nline.jpg", b"<img onerror=x>.jpg", b"-rf.jpg", b"%s\\x41.jpg"]
    names += [b"\xff\xfe.jpg", b"back\\slash.jpg", b"a" * 251 + b".jpg"]
    for k, name in enumerate(names):
        photo = paint(tmp_path / "cat" / f"{k}.jpg", k)
        os.rename(os.fsencode(photo), os.fsencode(photo.parent) + b"/" + name)
    source = FolderSource(tmp_path.resolve())
    entries = source.listing().entries
    assert len(entries) == len(names)
    for entry in entries:
        entry.path.encode("utf-8")
    assert all(isinstance(payload, bytes) and payload for payload in source.read(entries))


def test_unlabelled_photos_are_an_error_with_the_way_out(tmp_path):
    paint(tmp_path / "a.jpg", 1)
    with pytest.raises(DataUnusable, match="unlabelled.*folder of its own"):
        listing(tmp_path)
    assert [e.path for e in open_source(str(tmp_path), labelled=False).listing().entries] == ["a.jpg"]


def test_what_cannot_be_read_is_an_error_in_its_place(tmp_path):
    paint(tmp_path / "cat" / "a.jpg", 1)
    paint(tmp_path / "cat" / "b.jpg", 2)
    source = FolderSource(tmp_path.resolve())
    entries = source.listing().entries
    (tmp_path / "cat" / "a.jpg").unlink()
    gone, read = source.read(entries)
    assert isinstance(gone, OSError) and isinstance(read, bytes)


def test_outputs_of_the_job_among_photos_are_left_out_with_a_note(tmp_path):
    for name in (
        "cat/a.jpg",
        "cat/out/photos/x.jpg",
        "runs/first/x.jpg",
        "second/train/x.jpg",
        "valid/x.jpg",
        "empty/deep/",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch() if name[-1] != "/" else (tmp_path / name).mkdir()
    for output in ("cat/out", "runs/first", "second", "valid"):
        (tmp_path / output / ".transfer-job").touch()
    (tmp_path / "cat" / "link").symlink_to(tmp_path / "second")
    found = listing(tmp_path)
    assert [entry.path for entry in found.entries if entry.verdict is None] == ["cat/a.jpg"]
    assert found.class_names == ("cat", "empty")
    outputs = ["cat/link/", "cat/out/", "runs/first/", "second/", "valid/"]
    assert [e.path for e in found.entries if e.reason == "an output of this job: nothing in it is looked at"] == outputs
    assert found.notes == ("Outputs of this job, which were not looked into: cat/link, cat/out, runs/first, second, valid.",)
    unlabelled = open_source(str(tmp_path), labelled=False).listing()
    assert [e.path for e in unlabelled.entries if e.verdict is None] == ["cat/a.jpg"] and unlabelled.notes == found.notes


def test_table_may_name_photos_in_an_output_and_what_it_does_not_name_there_is_left_out(tmp_path):
    (tmp_path / "demo" / "photos").mkdir(parents=True)
    for name in ("demo/.transfer-job", "demo/photos/a.jpg", "demo/photos/b.jpg", "c.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text("path,label\ndemo/photos/a.jpg,cat\nc.jpg,dog\n")
    found = open_source(str(tmp_path), str(tmp_path / "labels.csv")).listing()
    assert [entry.path for entry in found.entries if entry.verdict is None] == ["c.jpg", "demo/photos/a.jpg"]
    assert [entry.path for entry in found.entries if entry.verdict] == ["demo/", "labels.csv"]
    assert found.notes == ("Outputs of this job, which were not looked into: demo.",)


@pytest.mark.parametrize("labelled", [True, False])
def test_output_given_as_the_source_is_refused(tmp_path, labelled):
    (tmp_path / "photos").mkdir()
    (tmp_path / ".transfer-job").touch()
    with pytest.raises(UsageError, match=r"is an output of this job: it holds \.transfer-job\. Give the folder"):
        open_source(str(tmp_path), labelled=labelled).listing()
    (tmp_path / "photos" / "a.jpg").touch()
    assert open_source(str(tmp_path / "photos"), labelled=False).listing().entries[0].path == "a.jpg"
