"""Folders and tables as people have them: each gives what their list says."""

import re

import pytest

from job.errors import DataUnusable
from job.sections import IntakeConfig
from job.sources.open import open_source

FLOWERS = ("daisy", "dandelion", "roses")
ALL = {None}
# The classes and the splits of the usable photos.
TAKEN = {
    "training-testing": (FLOWERS, {"train", "test"}),
    "train-dev-eval": (FLOWERS, {"train", "val", "test"}),
    "nfd-files": (FLOWERS, ALL),
    "ext-case": (FLOWERS, ALL),
    "one-hot-single": (("BCC", "MEL", "NV"), ALL),
    "whale": (("w_0", "w_1", "w_2"), ALL),
    "aptos": (("0", "1", "2"), ALL),
    "birds": (FLOWERS, {"train", "test"}),
    "split-training": (FLOWERS, {"train", "test"}),
    "unassigned": (FLOWERS, ALL),
    "trailing-comma": (FLOWERS, ALL),
    "hf-metadata": (FLOWERS, {"train", "test"}),
    "test-flat": (FLOWERS, {"train"}),
    "12bit-png": (FLOWERS, ALL),
    "abs-other-machine": (FLOWERS, ALL),
    "windows-abs": (FLOWERS, ALL),
    "group": (FLOWERS, ALL),
    "fold": (FLOWERS, ALL),
    "comment": (FLOWERS, ALL),
    "vehicles": (("bus", "car", "train"), ALL),
}
REFUSED = {
    "wrapper-folder": r"--data \S+/wrapper-folder/flower_photos",
    "label-studio": r"--data \S+/label-studio/images .*header is 'image', 'id', 'choice'.*--label-column NAME",
    "boxes": "table for object detection",
    "space-multi": "exactly one class",
    "leading-zeros": "nearest file is '00000.jpg'.*leading zeros",
    "urls": r"These are URLs.*\d+ of \d+ of these rows would match",
    "yolo-detect": "export for object detection",
}


def ways(folder):
    """Yield what the owner would give as --data: the folder, and the table in it."""
    yield folder
    yield from sorted(folder.glob("*.csv"))


def listing(data, **settings):
    return open_source(str(data), settings=IntakeConfig(**settings)).listing()


@pytest.mark.parametrize("name", TAKEN)
def test_layout_is_understood(shared, name):
    class_names, splits = TAKEN[name]
    for data in ways(shared / "data" / "layouts" / name):
        found = listing(data)
        used = [entry for entry in found.entries if entry.verdict is None]
        assert found.class_names == class_names and {entry.split for entry in used} == splits
        assert not any(entry.verdict == "quarantined" for entry in found.entries)


@pytest.mark.parametrize("name", REFUSED)
def test_layout_is_refused_with_what_to_type(shared, name):
    for data in ways(shared / "data" / "layouts" / name):
        with pytest.raises(DataUnusable) as refused:
            listing(data)
        assert re.search(REFUSED[name], str(refused.value).replace("\n", " "))


def test_columns_of_groups_and_folds(shared):
    found = listing(shared / "data" / "layouts" / "group" / "labels.csv", group_column="patient_id")
    assert len({entry.group for entry in found.entries}) > 1 and all(entry.group for entry in found.entries)
    found = listing(shared / "data" / "layouts" / "fold" / "labels.csv", split_column="fold", test_values=("4",))
    assert {entry.split for entry in found.entries} == {"train", "test"}


def test_photos_of_a_flat_test_folder_are_counted(shared):
    summary = listing(shared / "data" / "layouts" / "test-flat").summary()
    assert any("12 x unlabelled" in line for line in summary)
