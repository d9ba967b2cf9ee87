"""1,640 odd, damaged and fuzzed files through the real intake: Pillow's and image-rs's tests, pngsuite, AFL corpora."""

import csv
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig
from job.sources.folders import FolderSource
from job.stages.intake import intake
from job.storage.workdir import Workdir
from tests.unit.reasons import unexplained
from tests.unit.watched import Watched

CONFIG = IntakeConfig(image_size=48, workers=1, max_quarantined_fraction=1)
# Why we refuse what Pillow 11 took: each a rule of docs/data.md. Anything else would be a photo lost without a reason.
STRICTER = {
    "side": r"a side is shorter than intake\.min_side_px",
    "aspect": r"longer than intake\.max_aspect_ratio",
    "pixels": r"more than intake\.max_pixels",
    "canvas": r"the canvas of .* disagrees with the first frame",
    "repaired": r"the decoder had to repair it",
    "checksum": r"the checksum of its \w+ chunk is wrong",
}


@pytest.fixture(scope="module")
def expected(shared):
    """What Pillow 11 did with each file: `ok` or `err`."""
    with open(shared / "data" / "hostile" / "EXPECT.tsv", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return {row[0]: row[1] for row in rows}


@pytest.fixture(scope="module")
def classes(shared, expected, tmp_path_factory):
    """A class of each subfolder, in a place of our own."""
    folder = tmp_path_factory.mktemp("hostile") / "photos"
    for path in expected:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared / "data" / "hostile" / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def run(classes, tmp_path_factory):
    """The table and the watched source, with every decoder out of order in this process."""

    def poisoned(*_, **__):
        raise AssertionError("the main process decodes")

    here = tmp_path_factory.mktemp("out")
    source = Watched(FolderSource(classes.resolve()), here / "peaks")
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "PIL.Image.open",
            "simplejpeg.decode_jpeg",
            "job.decoding.worker.decode",
            "job.decoding.decode.decode",
        ):
            patch.setattr(name, poisoned)
        context = Context(Workdir(here / "out"), Telemetry(None))
        examples = intake(CONFIG, source=source, listing=source.listing(), context=context).examples
    return examples, source


def outcomes(examples):
    return list(zip(*(examples[name] for name in ("path", "status", "reason")), strict=True))


def test_every_file_has_a_status_and_unless_used_a_reason(run, expected):
    examples, _ = run
    assert set(examples["path"]) == set(expected) and len(expected) >= 1640
    assert set(examples["status"]) <= {"used", "converted", "quarantined", "ignored"}
    assert [path for path, status, reason in outcomes(examples) if status != "used" and not reason] == []


def test_reasons_are_explained_in_plain_words(run):
    assert [(path, part) for path, _, reason in outcomes(run[0]) for part in unexplained(reason)] == []


def test_no_file_costs_a_decode_process(run):
    assert [o for o in outcomes(run[0]) if re.search("crashed|took longer|needs more memory", o[2])] == []


def test_decode_worker_stays_within_300_mb_of_an_idle_one(run):
    assert run[1].growth_mb() <= 300


def test_what_pillow_reads_and_we_refuse_falls_under_a_stated_rule(run, expected, record_property):
    refused = [o for o in outcomes(run[0]) if o[1] == "quarantined" and expected[o[0]] == "ok"]
    counts = Counter(next((n for n, p in STRICTER.items() if re.search(p, reason)), reason) for _, _, reason in refused)
    record_property("refused", dict(counts))
    assert set(counts) <= set(STRICTER)


def test_what_pillow_refuses_is_seldom_taken(run, expected):
    """An APNG whose animation is damaged and whose picture is whole."""
    taken = {path for path, status, _ in outcomes(run[0]) if status in ("used", "converted") and expected[path] == "err"}
    assert taken <= {"pillow/apng__chunk_no_fctl.png"}


def test_folder_is_as_it_was(run, classes, shared):
    for path in sorted(classes.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == Path(shared / "data" / "hostile" / path.relative_to(classes)).read_bytes()
