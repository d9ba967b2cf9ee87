"""The user's folder is the same after the job has read it, by name, bytes and time; and it may be read-only."""

import os
import subprocess

import pytest

from job.sections import IntakeConfig, SplitConfig
from job.sources.folders import FolderSource
from job.stages.intake import intake
from job.stages.split import split
from tests.conftest import paint_classes
from tests.unit.bad_inputs import CASES

CONFIG = IntakeConfig(image_size=48, workers=1, max_quarantined_fraction=1)


@pytest.fixture
def folder(tmp_path):
    """Good photos and everything odd: a decoder that repairs, renames or leaves a lock file would show here."""
    folder = paint_classes(tmp_path / "photos", per_class=4)
    for case in CASES:
        case.put(folder / "stripes")
    return folder


def state(folder):
    """Name, kind, permissions, size, times in nanoseconds and bytes of everything, links and pipes unopened."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")], key=os.fsencode):
        status = path.lstat()
        is_file = path.is_file() and not path.is_symlink()
        found[os.fsencode(path.relative_to(folder))] = (
            (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink),
            path.read_bytes() if is_file else b"",
        )
    return found


def take_in_and_split(folder, context):
    source = FolderSource(folder.resolve())
    found = intake(CONFIG, source=source, listing=source.listing(), context=context)
    return split(
        SplitConfig(seed=0),
        examples=found.examples,
        images=found.images,
        max_quarantined_fraction=1,
        drop_small_classes=True,
        context=context,
    )


def test_names_bytes_and_times_are_the_same_afterwards(folder, context):
    before = state(folder)
    take_in_and_split(folder, context)
    assert state(folder) == before and len(before) > 100


def test_source_that_is_mounted_read_only_is_enough(folder, context, tmp_path):
    """A bind mount, because permissions alone do not keep root from writing."""
    place = tmp_path / "mounted"
    place.mkdir()
    mounted = subprocess.run(["mount", "--bind", folder, place], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this system does not let us mount: {mounted.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (place / "stripes" / "new.jpg").write_bytes(b"")
        result = take_in_and_split(place, context).examples
    finally:
        subprocess.run(["umount", place], check=True)
    assert set(result.class_names) == {"stripes", "checks"} and len(result.of()) > 50


def test_source_whose_permissions_forbid_writing_is_enough(tmp_path, context):
    folder = paint_classes(tmp_path / "photos", per_class=4)
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state(folder)
    try:
        result = take_in_and_split(folder, context).examples
        assert state(folder) == before and len(result.of()) == 8
    finally:
        for path in paths:
            path.chmod(0o755)
