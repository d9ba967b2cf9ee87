"""Every entry of a folder with known faults against what became of it: 231 lines of TRUTH.tsv."""

import csv
import re
from pathlib import Path

import pytest

from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig, SplitConfig
from job.sources.folders import FolderSource
from job.stages.intake import intake
from job.stages.split import split
from job.storage.workdir import Workdir
from tests.unit.reasons import unexplained

TAKEN = {"used", "converted"}
# What its words (third column, up to the first `:`, `;` or bracket) ask of us.
WORDS = {
    "use": TAKEN,
    "use if content is sniffed": TAKEN,
    "use after RGB conversion": {"converted"},
    "use; upright only if EXIF is honoured": {"used"},
    "use first frame or policy": {"converted"},
    "use or skip hidden": TAKEN,
    "bad": {"quarantined"},
    "bad split": {"ignored"},
    "ignore": {"ignored"},
    "ignore or bad": {"ignored", "quarantined"},
    "duplicate within class": {"used", "excluded"},
    "duplicate across classes": {"quarantined"},
    "leak": {"used"},  # The held-out copy stays, its training copy is below.
    "near-duplicate leak": {"used"},
    "near duplicate": {"used"},
    "label noise": {"used"},  # It cannot be known before training; the report lists likely label errors.
}
# Where the words leave it open, and where we differ on purpose: the outcome and a part of its reason, with why.
DECIDED = {
    # policy: a picture whose decoder had to repair it or make up the rest is not trusted.
    "train/daisy/truncated_tail.jpg": ("quarantined", "cut off"),
    "train/tulips/bitrot.jpg": ("quarantined", "had to repair it"),
    # policy: too small or too thin to show anything (intake.min_side_px).
    "train/tulips/one_pixel.png": ("quarantined", "intake.min_side_px"),
    "train/daisy/thin_1x400.jpg": ("quarantined", "intake.min_side_px"),
    # differs from "use": beyond 20:1 a square of it shows nothing (intake.max_aspect_ratio can be raised).
    "train/roses/panorama_3000x60.jpg": ("quarantined", "intake.max_aspect_ratio"),
    # policy: the installed Pillow reads it.
    "train/tulips/real.avif": ("converted", "AVIF to RGB"),
    # policy: the first frame of an animation counts.
    "train/roses/animated.webp": ("converted", "first of 2 frames"),
    # policy: taken, and the report lists it as suspicious.
    "train/roses/uniform_gray.jpg": ("used", ""),
    # differs from "use after RGB conversion": it is RGB in 8 bits already, nothing is converted.
    "train/tulips/interlaced_like.png": ("used", ""),
    # policy: nothing says what is on a photo outside the class folders.
    "train/stray_at_top.jpg": ("ignored", "outside every class folder"),
    # policy: labelled by the top folder, however deep it lies.
    "train/tulips/sub/deeper/nested.jpg": ("used", ""),
    # policy: intake.drop_small_classes leaves out what cannot be trained and measured.
    "train/single_photo_class/only.jpg": ("ignored", "class left out"),
    # differs from "use": the other label's folder has the same bytes, and nobody can say which label is right.
    "train/roses/5073473370_bdbb5a99fc.jpg": (
        "quarantined",
        "label conflict: the same bytes as train/tulips/also_a_rose.jpg",
    ),
    # differs from "use": the user holds a copy out, so that training on this one would leak.
    "train/roses/8622493424_877ae35ed7.jpg": ("excluded", "a copy of val/roses/leaked_8622493424_877ae35ed7.jpg"),
    "train/tulips/13562266594_69b807f90c.jpg": ("excluded", "a copy of val/tulips/leaked_resaved.jpg"),
}
EMPTY_FOLDER = "class folder without photos"
FOLDER = "a folder named like a photo"


@pytest.fixture(scope="module")
def truth(shared):
    with open(shared / "data" / "messy" / "TRUTH.tsv", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return [row[:3] for row in rows]


@pytest.fixture(scope="module")
def table(shared, tmp_path_factory):
    source = FolderSource((shared / "data" / "messy").resolve())
    context = Context(Workdir(Path(tmp_path_factory.mktemp("messy")) / "out"), Telemetry(None))
    config = IntakeConfig(image_size=48, workers=1, max_quarantined_fraction=1)
    found = intake(config, source=source, listing=source.listing(), context=context)
    limits = {"max_quarantined_fraction": 1, "drop_small_classes": True}
    return split(SplitConfig(), examples=found.examples, images=found.images, **limits, context=context).examples


def outcome_of(table):
    return dict(zip(table["path"], zip(table["status"], table["reason"], strict=True), strict=True))


def short(words: str) -> str:
    return words if words in WORDS else re.split(r":|; TF| \(", words)[0]


def test_every_entry_gets_what_a_careful_loader_does(truth, table):
    found = outcome_of(table)
    wrong = []
    for path, kind, words in truth:
        if kind == EMPTY_FOLDER:
            continue
        status, reason = found[path.rstrip("/")]
        if path in DECIDED:
            expected, part = DECIDED[path]
            is_right = status == expected and part in reason
        else:
            is_right = status in WORDS[short(words)]
        if not is_right:
            wrong.append(f"{path}: {words!r} became {status} ({reason})")
    assert len(truth) == 231 and wrong == []


def test_folders_without_photos_are_no_examples_and_no_classes(truth, table):
    found = outcome_of(table)
    (empty,) = (Path(path).parent for path, kind, _ in truth if kind == EMPTY_FOLDER)
    assert empty.name not in table.class_names
    (named_like_photo,) = (path.rstrip("/") for path, kind, _ in truth if kind == FOLDER)
    assert found[named_like_photo] == ("ignored", "a folder named like a photo")
    inside = [found[path] for path in found if path.startswith((f"{empty}/", f"{named_like_photo}/"))]
    assert inside and all(status == "ignored" for status, _ in inside)


def test_nothing_is_in_the_table_that_the_truth_does_not_know(truth, table):
    known = {path.rstrip("/") for path, *_ in truth}
    left = set(table["path"]) - known
    assert left == {"LICENSE.txt", "TRUTH.tsv", "train/daisy/folder_named.jpg/.keep"}


def test_copies_share_a_group(table):
    group = dict(zip(table["path"], table["group"], strict=True))
    for copy, original in (
        ("train/daisy/copy_of_first.jpg", "train/daisy/14330343061_99478302d4_m.jpg"),
        ("train/daisy/near_dup_half_size.jpg", "train/daisy/4565255237_9ba29c4d4e_n.jpg"),
        ("val/tulips/leaked_resaved.jpg", "train/tulips/13562266594_69b807f90c.jpg"),
    ):
        assert group[copy] == group[original] >= 0


def test_reasons_are_explained_in_plain_words(table):
    assert [part for reason in table["reason"] for part in unexplained(reason)] == []
