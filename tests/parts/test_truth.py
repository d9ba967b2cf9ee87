"""The page says of the data what the table of examples says, and says it the same way twice.

Everything is real but the features, which are made up from the name of the scene that a photo shows. The data has something
of all that the page states in more than one place.
"""

import csv
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from job.config import Config
from job.data.examples import USED_FOR
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import AuditConfig, ExploreConfig, IntakeConfig, ReportConfig, SplitConfig
from job.sources.folders import FolderSource
from job.stages.audit import audit
from job.stages.explore import explore
from job.stages.intake import intake
from job.stages.report import report
from job.stages.split import split
from job.storage.workdir import Workdir
from job.stores.arrays import StoreWriter
from job.text.numbers import percent
from tests.pages import Page
from tests.unit.test_registration import scene
from tests.unit.test_report import RUN, TIMINGS

CLASSES = {"cat": 60, "dog": 15}
SPLITS = ("train", "val", "test")


def draw(folder: Path) -> None:
    """Draw scenes, exact, recompressed and mirrored copies of them, some in the other class, and a file that is no photo."""
    for number, (name, count) in enumerate(CLASSES.items()):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            scene(100 * number + k).save(folder / name / f"{name}{k:02d}.png")

    def cat(number: int) -> Image.Image:
        return Image.open(folder / "cat" / f"cat{number:02d}.png")

    shutil.copy(folder / "cat/cat00.png", folder / "cat/cat00-exact.png")
    shutil.copy(folder / "cat/cat01.png", folder / "dog/cat01-exact.png")
    cat(2).save(folder / "cat/cat02-saved.jpg", quality=90)
    cat(3).save(folder / "dog/cat03-saved.jpg", quality=90)
    ImageOps.mirror(cat(4)).save(folder / "dog/cat04-mirrored.png")
    for number in range(10, 30):
        ImageOps.mirror(cat(number)).save(folder / "cat" / f"cat{number:02d}-mirrored.png")
    for number in range(10, 30):
        cat(number).save(folder / "cat" / f"cat{number:02d}-saved.jpg", quality=90)
    (folder / "cat/broken.jpg").write_bytes(b"<html><body>404</body></html>")


def give_splits(folder: Path) -> None:
    """Move every fourth photo into a test split, whichever scene it shows."""
    for path in sorted(folder.rglob("*.*")):
        split_name = "test" if hash_of(path.name) % 4 == 0 else "train"
        moved = folder / split_name / path.parent.name / path.name
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)


def hash_of(name: str) -> int:
    return sum(name.encode())


def made_up_features(paths: list[str]) -> np.ndarray:
    """Features of photos of one scene are nearly the same, and classes lie apart."""
    rows = []
    for path in paths:
        name, number = re.match(r"(\D+)(\d+)", Path(path).name).groups()
        of_scene = np.random.default_rng(int(number) + 100 * (name == "dog")).normal(size=32)
        rows.append(of_scene + 2 * (name == "dog") + 0.01 * np.random.default_rng(hash_of(path)).normal(size=32))
    return np.asarray(rows, np.float32)


class Looked:
    """The page after the audit, the table of examples, and the numbers of the audit."""

    def __init__(self, photos: Path, out: Path) -> None:
        self.context = Context(Workdir(out), Telemetry(None))
        source = FolderSource(photos.resolve())
        found = intake(IntakeConfig(image_size=96), source=source, listing=source.listing(), context=self.context)
        parted = split(
            SplitConfig(),
            examples=found.examples,
            images=found.images,
            max_quarantined_fraction=0.5,
            drop_small_classes=False,
            context=self.context,
        ).examples
        notes = source.listing().summary()
        explore(ExploreConfig(), examples=parted, images=found.images, source_notes=notes, context=self.context)
        path_of_row = dict(zip(parted["row"].tolist(), parted["path"].tolist(), strict=True))
        writer = StoreWriter(out / "cache" / "features", (32,), "float32")
        writer.write(found.images.keys, made_up_features([path_of_row[row] for row in range(len(found.images))]))
        features = writer.finish(found.images.keys)
        looked = audit(AuditConfig(), examples=parted, images=found.images, features=features, context=self.context)
        self.examples, self.numbers = looked.examples, looked.numbers
        self.page = self.drawn()
        self.used = set(self.examples["path"][self.examples.of()])
        columns = {name: self.examples[name].tolist() for name in ("path", "label", "split", "status", "reason")}
        self.row = {path: dict(zip(columns, values, strict=True)) for path, *values in self._rows(columns)}

    @staticmethod
    def _rows(columns):
        return [(values[0], *values) for values in zip(*columns.values(), strict=True)]

    def drawn(self, **config) -> Page:
        settings = Config.load(None, [f"{name}={value}" for name, value in config.items()]).model_dump(mode="json")
        timings = {name: TIMINGS[name] for name in ("intake", "explore", "audit")}
        made = report(ReportConfig(), run={**RUN, "config": settings}, timings=timings, context=self.context)
        return Page(made.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Looked:
    """Splits that the job draws."""
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder / "photos")
    return Looked(folder / "photos", folder / "out")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Looked:
    """Splits of the user, with copies across them."""
    folder = tmp_path_factory.mktemp("given")
    draw(folder / "photos")
    give_splits(folder / "photos")
    return Looked(folder / "photos", folder / "out")


@pytest.fixture(params=["drawn", "given"])
def looked(request) -> Looked:
    return request.getfixturevalue(request.param)


def test_counts_of_a_class_are_the_same_wherever_they_stand(looked):
    used = [looked.row[path] for path in looked.used]
    for name in CLASSES:
        counts = Counter(row["split"] for row in used if row["label"] == name)
        (cells,) = [cells for cells in looked.page.rows if cells[0] == name and len(cells) > 7]
        assert cells[2:6] == [str(sum(counts.values())), *(str(counts[split_name]) for split_name in SPLITS)]
    total = Counter(row["split"] for row in used)
    assert f"training {total['train']} validation {total['val']} test (held out) {total['test']}" in looked.page.text
    assert f"{len(used)} usable photos in 2 classes" in looked.page.top
    assert looked.examples.in_words().endswith(f"Splits: {total['train']} train, {total['val']} val, {total['test']} test")


def test_statuses_are_those_of_the_table(looked):
    counts = Counter(looked.examples["status"])
    shown = {cells[0]: cells[1] for cells in looked.page.rows if cells and cells[0] in counts}
    assert shown == {status: str(count) for status, count in counts.items()}
    assert f"{len(looked.examples)} files were found" in looked.page.text
    assert f"Splits: {looked.examples.splits()['train']} train" in looked.examples.in_words()


def test_photos_that_the_audit_leaves_out_are_named_where_they_are_still_counted(looked):
    num_left_out = len(looked.numbers["left_out"])
    note = f"This includes {num_left_out} photos that the audit left out later."
    assert num_left_out > 5 and looked.page.text.count(note) >= 3
    late = looked.numbers["late_copies"]
    torn = late["torn_by_user"]["num_left_out"] + late["torn_by_job"]["num_left_out"]
    assert torn + late["num_conflicts"] == num_left_out
    assert f"{num_left_out} photos were left out because of this, {late['num_conflicts']} of them" in looked.page.text


def test_what_became_of_a_copy_is_what_the_table_says_in_every_list(looked):
    fates = looked.page.fates()
    assert len(fates) > 30 and len({path for path, _ in fates}) < len(fates), "some photos are in two lists"
    for path, fate in fates:
        row = looked.row[path]
        expected = USED_FOR[row["split"]] if path in looked.used else f"left out: {row['reason']}"
        assert fate.endswith(expected), path


def test_reason_names_the_split_of_the_copy_that_stays(looked):
    reasons = [re.fullmatch("a copy of (.+), which is (.+)", row["reason"]) for row in looked.row.values()]
    found = [match.groups() for match in reasons if match]
    assert {use for _, use in found} == {USED_FOR["val"], USED_FOR["test"]}
    assert all(path in looked.used and USED_FOR[looked.row[path]["split"]] == use for path, use in found)


def test_copies_are_denied_nowhere(looked):
    section = looked.page.sections["duplicates"]
    assert "The same bytes under two classes" in section and "One picture under two classes." in section
    assert not re.search(r"No picture|No more copies|No copies", section)
    conflicts = [row for row in looked.row.values() if row["reason"].startswith("label conflict")]
    assert len(conflicts) >= 6 and f"{len(conflicts)} photos have copies in another class." in looked.page.top
    assert "1 file cannot be used." in looked.page.top, "files in conflict are no faulty files"


def test_page_and_advice_know_who_made_the_splits(drawn, given):
    assert "your splits" not in drawn.page.text.lower() and "found only after the photos had been divided" in drawn.page.top
    assert "Your data had no splits" in drawn.page.text
    torn = given.numbers["late_copies"]["torn_by_user"]
    assert f"{torn['num_groups']} scenes are in more than one of your splits" in given.page.top
    assert f"into one split. {torn['num_left_out']} photos were left out" in given.page.top
    assert "already divided into train and test" in given.page.text and "Your splits were kept." in given.page.text


def test_metric_that_is_set_is_not_advised(drawn):
    assert "--set evaluate.metric=balanced_accuracy" in drawn.page.top
    set_already = drawn.drawn(**{"evaluate.metric": "balanced_accuracy"})
    assert "The model favours them already" in set_already.top and "--set" not in set_already.top.partition("Do this")[2]


def test_labels_that_may_be_wrong_are_as_many_as_the_table_marks(looked):
    issues = looked.numbers["label_issues"]
    with looked.context.workdir.path("stages/audit/label_issues.csv").open(encoding="utf-8-sig", newline="") as file:
        likely = [row["likely"] == "True" for row in csv.DictReader(file)]
    assert (issues["num_listed"], issues["num_likely"]) == (len(likely), sum(likely))
    assert issues["num_first"] <= 25 and all(likely[: issues["num_first"]])
    assert ("may be wrong" in looked.page.top) == (issues["trust"] != "none" and any(likely))
    assert f"{percent(issues['agreement'])} of the labels agree" in looked.page.sections["labels"]


def test_gain_that_may_be_chance_is_called_so_and_not_advised(looked):
    curve = looked.numbers["learning_curve"]
    half, whole = curve["last_doubling"]
    is_chance = abs(whole - half) <= curve["noise"]
    section = looked.page.sections["more-photos"]
    assert ("a difference that may be chance" in section) == is_chance
    means = [cells[2] for cells in looked.page.rows if cells and cells[0] in ("50%", "100%")]
    assert means == [percent(half), percent(whole)] and f"{means[0]} with half of them, {means[1]} with all" in section
    assert not (is_chance and "More photos would help" in looked.page.top)


def test_shortcuts_work_in_the_advice_and_in_their_section_or_in_neither(looked):
    assert ("can be guessed from the file alone" in looked.page.top) == (
        "Here it works." in looked.page.sections["shortcuts"]
    )
