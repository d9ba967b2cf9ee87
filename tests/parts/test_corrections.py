"""`--corrections` on the command line: labels are put right, the source is not touched, and only what depends on it runs."""

import csv
import hashlib
import json
import shutil

import pyarrow.parquet as pq
import pytest

from tests.conftest import contents, paint_classes, run_job
from tests.faults import killer
from tests.faults.several import Run

SMALL = ("--set", "intake.image_size=48")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return paint_classes(tmp_path_factory.mktemp("corrections") / "photos", per_class=12)


@pytest.fixture(scope="module")
def split_once(photos):
    """The output of a run up to split, without corrections. Tests must not change it."""
    out = photos.parent / "out"
    assert split(photos, out).returncode == 0
    return out


@pytest.fixture
def out(split_once, tmp_path):
    return shutil.copytree(split_once, tmp_path / "out", symlinks=True)


def split(data, out, *more):
    return run_job("run", "--data", data, "--out", out, "--stop-after", "split", *SMALL, *more)


def examples(out):
    return {row["path"]: row for row in pq.read_table(out / "examples.parquet").to_pylist()}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table(folder, decisions, name="corrections.csv"):
    """A table with a row for each photo and its decision."""
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([("sha256", "decision"), *((sha256(photo), text) for photo, text in decisions.items())])
    return folder / name


def test_labels_are_corrected_and_the_source_is_not_touched(photos, out, tmp_path):
    before, was = contents(photos), examples(out)
    decisions = {photos / "stripes/stripes-000.jpg": "checks", photos / "stripes/stripes-001.jpg": "drop"}
    decisions |= {photos / "checks/checks-000.jpg": "keep"}
    done = split(photos, out, "--corrections", table(tmp_path, decisions))
    assert done.returncode == 0, done.stderr
    assert "Corrections: 1 label was changed, 1 photo was left out, 1 label stays." in done.stderr
    assert "intake    skipped: unchanged" in done.stderr, "no photo is decoded again"
    found = examples(out)
    moved, dropped, kept = (
        found[p] for p in ("stripes/stripes-000.jpg", "stripes/stripes-001.jpg", "checks/checks-000.jpg")
    )
    assert (moved["label"], moved["given_label"], moved["status"]) == ("checks", "stripes", "used")
    assert (dropped["status"], dropped["reason"]) == ("excluded", "left out by a correction")
    assert (kept["label"], kept["given_label"]) == ("checks", "checks")
    changed = {"stripes/stripes-000.jpg", "stripes/stripes-001.jpg", "checks/checks-000.jpg"}
    assert {path: row for path, row in found.items() if path not in changed} == {
        p: r for p, r in was.items() if p not in changed
    }
    assert moved["split"] == was["stripes/stripes-000.jpg"]["split"] and contents(photos) == before


def test_run_is_stale_if_the_decisions_have_changed_and_not_if_only_their_file_has(photos, out, tmp_path):
    file = table(tmp_path, {photos / "stripes/stripes-000.jpg": "checks"})
    assert split(photos, out, "--corrections", file).returncode == 0
    file.write_text(file.read_text().replace(",", ";") + f"{'0' * 64};\n")
    assert "Corrections" not in split(photos, out, "--corrections", file).stderr, "split does not run"
    file.write_text(file.read_text().replace("checks", "drop"))
    done = run_job("run", "--data", photos, "--out", out, *SMALL, "--corrections", file, "--dry-run")
    assert "split      runs: the corrections changed" in done.stdout
    assert split(photos, out).returncode == 0
    assert not any(row["given_label"] for row in examples(out).values()), (
        "without the table, the labels of the source are back"
    )


def test_photo_is_known_after_it_was_renamed_and_moved_to_another_class(photos, tmp_path):
    copy = shutil.copytree(photos, tmp_path / "photos")
    file = table(tmp_path, {copy / "stripes/stripes-000.jpg": "stripes", copy / "checks/checks-000.jpg": "stripes"})
    (copy / "stripes/stripes-000.jpg").rename(copy / "checks/moved.jpg")
    (copy / "checks/checks-001.jpg").unlink()
    assert split(copy, tmp_path / "out", "--corrections", file).returncode == 0
    found = examples(tmp_path / "out")
    assert (found["checks/moved.jpg"]["label"], found["checks/moved.jpg"]["given_label"]) == ("stripes", "checks")
    assert found["checks/checks-000.jpg"]["label"] == "stripes"


def test_file_under_two_classes_gets_the_label_that_the_decision_gives(photos, tmp_path):
    copy = shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(copy / "stripes/stripes-000.jpg", copy / "checks/twice.jpg")
    out = tmp_path / "out"
    assert split(copy, out, "--set", "intake.max_quarantined_fraction=0.5").returncode == 0
    assert {examples(out)[p]["status"] for p in ("checks/twice.jpg", "stripes/stripes-000.jpg")} == {"quarantined"}
    assert split(copy, out, "--corrections", table(tmp_path, {copy / "checks/twice.jpg": "stripes"})).returncode == 0
    found = [examples(out)[p] for p in ("checks/twice.jpg", "stripes/stripes-000.jpg")]
    assert {row["label"] for row in found} == {"stripes"} and "used" in {row["status"] for row in found}


def test_decisions_about_photos_that_are_gone_wait_and_are_counted(photos, out, tmp_path):
    file = table(tmp_path, {photos / "stripes/stripes-000.jpg": "checks"})
    file.write_text(file.read_text() + f"{'0' * 64},drop\n")
    done = split(photos, out, "--corrections", file)
    assert done.returncode == 0 and "1 of 2 are about photos that are not here." in done.stderr


@pytest.mark.parametrize(
    ("decision", "said"),
    [("stripse", "Did you mean 'stripes'?"), ("a new class", "nor a class"), ("x" * 300, "nor a class")],
)
def test_unknown_class_ends_the_run_before_a_photo_is_decoded(photos, tmp_path, decision, said):
    file = table(tmp_path, {photos / "stripes/stripes-000.jpg": decision})
    done = split(photos, tmp_path / "out", "--corrections", file)
    assert done.returncode == 65 and said in done.stderr and "intake" not in done.stderr
    assert not (tmp_path / "out" / "cache").exists()
    checked = run_job("doctor", "--data", photos, "--out", tmp_path / "other", *SMALL, "--corrections", file)
    assert said in checked.stdout


def test_class_that_corrections_empty_is_refused_or_left_out_as_any_other(photos, tmp_path):
    copy = shutil.copytree(photos, tmp_path / "photos")
    for k in range(6):
        (copy / "third").mkdir(exist_ok=True)
        (copy / f"stripes/stripes-{k:03d}.jpg").rename(copy / f"third/{k}.jpg")
    file = table(tmp_path, dict.fromkeys(sorted((copy / "third").iterdir()), "stripes"))
    done = split(copy, tmp_path / "out", "--corrections", file)
    assert done.returncode == 65 and "third: no usable photos" in done.stderr
    done = split(copy, tmp_path / "out", "--corrections", file, "--set", "intake.drop_small_classes=true")
    assert done.returncode == 0, done.stderr


def test_table_in_the_output_is_refused_because_the_next_run_replaces_it(photos, out):
    (out / "label_issues.csv").write_text(f"sha256,decision\n{'0' * 64},drop\n")
    done = split(photos, out, "--corrections", out / "label_issues.csv")
    assert done.returncode == 2 and "Copy it first" in done.stderr and "my-label_issues.csv" in done.stderr


def test_labels_from_a_table_are_corrected_as_those_of_folders(photos, tmp_path):
    rows = "".join(f"{p.relative_to(photos)},{p.parent.name}\n" for p in sorted(photos.rglob("*.jpg")))
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}")
    file = table(tmp_path, {photos / "stripes/stripes-000.jpg": "checks"})
    done = split(photos, tmp_path / "out", "--labels", tmp_path / "labels.csv", "--corrections", file)
    assert done.returncode == 0 and examples(tmp_path / "out")["stripes/stripes-000.jpg"]["label"] == "checks"


def test_table_of_an_earlier_version_without_the_column_keeps_its_split(out, photos):
    file = out / "stages/split/examples.parquet"
    old = pq.read_table(file)
    pq.write_table(old.drop_columns(["given_label"]), file)
    assert split(photos, out, "--set", "split.seed=0").returncode == 0
    kept = {row["path"]: row["split"] for row in old.to_pylist()}
    assert {path: row["split"] for path, row in examples(out).items()} == kept


def test_where_decisions_lie_is_in_run_json(photos, out, tmp_path):
    file = table(tmp_path, {photos / "stripes/stripes-000.jpg": "checks"})
    assert split(photos, out, "--corrections", file).returncode == 0
    run = json.loads((out / "run.json").read_text())
    assert run["config"]["intake"]["corrections"] == str(file) and "--corrections" in run["command"]


def test_two_workers_leave_what_one_leaves(photos, tmp_path):
    file = table(tmp_path, {photos / "stripes/stripes-000.jpg": "checks", photos / "checks/checks-000.jpg": "drop"})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    several = Run(photos, tmp_path / "two/out", stop_after="split", options=("--corrections", str(file)))
    assert several.codes() == [0, 0], several.said(0) + several.said(1)
    alone = run_job(*killer.command(photos, tmp_path / "one/out")[3:], "--stop-after", "split", "--corrections", file)
    assert alone.returncode == 0, alone.stderr
    assert examples(tmp_path / "two/out") == examples(tmp_path / "one/out")
    assert examples(tmp_path / "two/out")["stripes/stripes-000.jpg"]["label"] == "checks"
