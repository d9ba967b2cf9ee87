"""The contract for odd inputs, rows 1 to 25, through the real intake with real decode processes.

The inputs are in bad_inputs.py. What a whole folder decides is tested beside the code that decides it: rows 19, 21 in
test_sources.py, 6 (most files are pointers) and 23 in test_intake.py, 22, 24 and 26 in test_split.py; 28 to 30 with the run.
"""

import ctypes
import os
import re
import struct
from collections import Counter
from dataclasses import dataclass

import pytest

from job.reporting.gallery import Gallery
from job.sections import IntakeConfig, SplitConfig
from job.sources.folders import FolderSource
from job.stages.explore import _suspicious
from job.stages.intake import intake
from job.stages.split import split
from tests.conftest import paint_classes
from tests.unit.bad_inputs import CASES, bomb, file
from tests.unit.reasons import unexplained
from tests.unit.watched import Watched

CONFIG = IntakeConfig(image_size=48, workers=1, max_quarantined_fraction=1)
ROWS = sorted({case.row for case in CASES})
GOOD = {f"{kind}/{kind}-{k:03d}.jpg" for kind in ("stripes", "checks") for k in range(4)}
# What lies inside an odd folder is a photo like any other.
FOUND_INSIDE = {16: {"stripes/folder.jpg/in-it.jpg"}, 7: {"stripes/.ipynb_checkpoints/", "stripes/@eaDir/"}}


@dataclass(frozen=True)
class Outcome:
    status: str
    reason: str
    row: int
    group: int
    split: str


@pytest.fixture
def folder(tmp_path):
    """Two good classes of four photos; odd things go into the second."""
    return paint_classes(tmp_path / "photos", per_class=4)


def outcomes(folder, context, *, until_split):
    source = FolderSource(folder.resolve())
    found = intake(CONFIG, source=source, listing=source.listing(), context=context)
    table = found.examples
    if until_split:
        limits = {"max_quarantined_fraction": 1, "drop_small_classes": False}
        table = split(SplitConfig(seed=0), examples=table, images=found.images, **limits, context=context).examples
    columns = [table[name] for name in ("path", "status", "reason", "row", "group", "split")]
    return {path: Outcome(*rest) for path, *rest in zip(*columns, strict=True)}


def listed_as(case) -> str:
    name = case.name if isinstance(case.name, str) else case.name.decode("utf-8", "backslashreplace")
    escaped = name.replace("\\", "\\\\") if isinstance(case.name, str) else name
    return os.path.normpath(f"stripes/{escaped}")


def differences(cases, found):
    """Each case whose outcome is another one than the contract's, as a line to read."""
    return [
        f"row {case.row}: {listed_as(case)!r} is {got.status} ({got.reason!r}), not {case.status} ({case.reason!r})"
        for case in cases
        if case.status and (got := found[listed_as(case)])
        if got.status != case.status or not re.search(case.reason, got.reason)
    ]


def expected_paths(cases):
    inside = set().union(*(FOUND_INSIDE.get(row, set()) for row in {case.row for case in cases}))
    return GOOD | inside | {listed_as(case) for case in cases if case.status}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_alone_gets_what_the_contract_says(folder, context, row):
    cases = [case for case in CASES if case.row == row]
    for case in cases:
        case.put(folder / "stripes")
    found = outcomes(folder, context, until_split=row in (24, 25))
    assert set(found) == expected_paths(cases)
    if row != 24:
        assert differences(cases, found) == []
    assert all(found[path].status == "used" for path in GOOD)


def test_all_rows_together_change_nothing_for_each_other(folder, context):
    for case in CASES:
        case.put(folder / "stripes")
    found = outcomes(folder, context, until_split=False)
    assert set(found) == expected_paths(CASES)
    assert differences([case for case in CASES if case.row != 25], found) == []
    after = outcomes(folder, context, until_split=True)
    assert differences([case for case in CASES if case.row != 24], after) == []
    assert all(after[path].status == "used" for path in GOOD)
    assert [part for outcome in after.values() for part in unexplained(outcome.reason)] == []
    stored = [o.row for o in found.values() if o.status in ("used", "converted")]
    assert sorted(stored) == list(range(len(stored))) and all(o.row == -1 for o in found.values() if o.row not in stored)


def test_same_bytes_twice_with_one_label_are_one_group_and_counted_once(folder, context):
    for case in CASES:
        if case.row == 24:
            case.put(folder / "stripes")
    found = outcomes(folder, context, until_split=True)
    first, second = found["stripes/copy.jpg"], found["stripes/copy-again.jpg"]
    assert first.group == second.group and first.split == second.split
    statuses = Counter((first.status, second.status))
    assert statuses == ({"used": 2} if first.split == "train" else {"used": 1, "excluded": 1})


def test_constant_picture_is_used_and_listed_as_suspicious(folder, context, tmp_path):
    for case in CASES:
        if case.row == 15:
            case.put(folder / "stripes")
    source = FolderSource(folder.resolve())
    found = intake(CONFIG, source=source, listing=source.listing(), context=context)
    with Gallery.drawing(context.workdir, "gallery", found.images) as gallery:
        listed = _suspicious(found.examples, gallery)["shown"]
    assert [(photo["path"], photo["why"]) for photo in listed] == [("stripes/constant.jpg", "one flat colour")]


def test_bombs_are_refused_from_the_header_within_50_mb(folder, context, tmp_path):
    bombs = [case for case in CASES if case.row == 13]
    for case in bombs:
        case.put(folder / "stripes")
    source = Watched(FolderSource(folder.resolve()), tmp_path / "peaks")
    found = intake(CONFIG, source=source, listing=source.listing(), context=context)
    assert (found.examples["status"] == "quarantined").sum() == len(bombs)
    assert source.growth_mb() <= 50


def test_bomb_of_the_table_would_not_fit_if_it_were_decoded():
    assert len(bomb()) < 100_000 < 20_000 * 20_000


class _WithoutPrivileges(FolderSource):
    """Reads as anybody else would: root gives up the right to read what its owner has closed."""

    def read(self, entries):
        if os.geteuid() == 0:
            assert ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
        return super().read(entries)


def test_unreadable_file_is_quarantined(folder, context):
    closed = folder / "stripes" / "closed.jpg"
    closed.write_bytes(file(1)())
    closed.chmod(0)
    source = _WithoutPrivileges(folder.resolve())
    found = intake(CONFIG, source=source, listing=source.listing(), context=context).examples
    outcome = dict(zip(found["path"], zip(found["status"], found["reason"], strict=True), strict=True))
    assert outcome.pop("stripes/closed.jpg") == ("quarantined", "cannot be read: Permission denied")
    assert {status for status, _ in outcome.values()} == {"used"}


def test_device_is_ignored_and_not_opened(folder, context):
    try:
        os.mknod(folder / "stripes" / "device.jpg", 0o020666, os.makedev(1, 5))  # /dev/zero never ends.
    except PermissionError:
        pytest.skip("only root may make a device")
    found = outcomes(folder, context, until_split=False)
    assert (found["stripes/device.jpg"].status, found["stripes/device.jpg"].reason) == ("ignored", "not a regular file")


def test_table_covers_every_row_that_a_file_decides():
    assert set(ROWS) == set(range(1, 26)) - {21, 22, 23}
    assert len({listed_as(case) for case in CASES}) == len(CASES)
