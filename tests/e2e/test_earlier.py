"""The second run of a growing data set says how its model compares with the one that is published."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from tests.conftest import contents, paint, quick_settings, run_job
from tests.pages import Page

# Predictions of random weights are so close to each other that the exported graph may change them.
LENIENT = ("export.max_changed_fraction=1.0",)


@pytest.fixture(scope="module")
def grown(painted, tmp_path_factory):
    """The photos of a finished run with more of them, one less, and a new class."""
    photos = shutil.copytree(painted, tmp_path_factory.mktemp("grown") / "photos")
    for k in range(20):
        for kind in ("checks", "stripes"):
            paint(photos / kind / f"new-{k:02d}.jpg", seed=8000 + k, kind=kind)
        paint(photos / "wide" / f"{k:02d}.jpg", seed=7000 + k, size=(200, 60))
    (photos / "checks" / "checks-003.jpg").unlink()
    return photos


@pytest.fixture(scope="module")
def compared(grown, finished_run):
    """The folder of a run on the grown photos after the finished run, and how it ended. Tests must not change it."""
    folder = grown.parent
    shutil.copytree(finished_run, folder / "out", symlinks=True)
    return folder, run(folder)


def copy_of(out, photos, folder):
    """A folder with a copy of an output, which a test may change, and these photos."""
    shutil.copytree(out, folder / "out", symlinks=True)
    (folder / "photos").symlink_to(photos)
    return folder


def run(folder, *settings):
    done = run_job("run", "--data", folder / "photos", "--out", folder / "out", *quick_settings(*LENIENT, *settings))
    assert done.returncode == 0, done.stderr
    return done


def earlier(folder):
    return json.loads((folder / "out" / "metrics.json").read_text())["earlier"]


def test_new_model_is_compared_with_the_published_one_on_todays_test_photos(compared, finished_run, tmp_path):
    assert json.loads((finished_run / "metrics.json").read_text())["earlier"] is None
    assert not (finished_run / "comparison.parquet").exists()
    (folder, done), found = compared, earlier(compared[0])

    then = {row["sha256"]: row["predicted"] for row in pq.read_table(finished_run / "predictions.parquet").to_pylist()}
    rows = pq.read_table(folder / "out" / "comparison.parquet").to_pylist()
    today = pq.read_table(folder / "out" / "predictions.parquet")
    assert [row["path"] for row in rows] == today["path"].to_pylist()
    assert [row["predicted"] for row in rows] == today["predicted"].to_pylist()
    is_new = [row["earlier_split"] is None for row in rows]
    assert 0 < sum(is_new) == found["num_new"] < len(rows)
    assert all(row["earlier_predicted"] == then[row["sha256"]] for row, new in zip(rows, is_new, strict=True) if not new)
    answers = tmp_path / "answers.parquet"
    run_job("predict", "--model", finished_run, "--data", folder / "photos", "--out", answers)
    labels = {row["path"]: row["label"] for row in pq.read_table(answers).to_pylist()}
    assert [row["earlier_predicted"] for row in rows if not row["earlier_split"]] == [
        labels[row["path"]] for row in rows if not row["earlier_split"]
    ]

    right = [(row["earlier_predicted"] == row["label"], row["predicted"] == row["label"]) for row in rows]
    assert found["all"]["num_examples"] == len(rows) and found["num_seen"] == 0 and found["note"] == ""
    assert found["all"]["earlier_accuracy"] == sum(before for before, _ in right) / len(rows)
    assert found["all"]["right_to_wrong"] == right.count((True, False)) == sum(r["flip"] == "right to wrong" for r in rows)
    assert found["all"]["wrong_to_right"] == right.count((False, True)) == sum(r["flip"] == "wrong to right" for r in rows)
    assert found["known_classes"]["num_examples"] == sum(row["label"] != "wide" for row in rows) < len(rows)
    changes = {"new": 60, "gone": 1, "relabelled": 0, "new_classes": ["wide"], "gone_classes": []}
    assert found["changes"] == changes
    said = f"On the same {len(rows)} held-out photos, the earlier model has an accuracy of "
    assert said in done.stdout and "The earlier model does not know wide." in done.stdout
    page = Page((folder / "out" / "report.html").read_text())
    assert said in page.top and "photos 60 new, 1 gone. New classes: wide." in page.sections["earlier"]


@pytest.mark.thorough
def test_comparison_stays_until_another_model_is_published(compared, grown, tmp_path):
    """Neither a run without changes nor one that only evaluates again compares the model with itself."""
    folder = copy_of(compared[0] / "out", grown, tmp_path)
    before, table = earlier(folder), contents(folder / "out", "comparison.parquet")
    assert " runs\n" not in run(folder).stderr and earlier(folder) == before
    outcome = contents(folder / "out" / "stages" / "evaluate")
    (folder / "out" / "stages" / "evaluate.json").unlink()  # As if the run was killed before it wrote the record.
    again = run(folder).stderr
    assert "evaluate  runs" in again and "export    skipped: unchanged" in again
    assert contents(folder / "out" / "stages" / "evaluate") == outcome
    for count in (3, 4):
        run(folder, f"evaluate.mistakes={count}")
        assert earlier(folder) == before and contents(folder / "out", "comparison.parquet") == table
    run(folder, "fine_tune.epochs=1", "head.c_grid=[0.001]")
    now = earlier(folder)
    assert now["model_sha256"] != before["model_sha256"] and now["num_new"] == 0
    assert now["changes"] == {"new": 0, "gone": 0, "relabelled": 0, "new_classes": [], "gone_classes": []}


@pytest.mark.thorough
def test_other_image_size_is_compared_on_photos_that_both_runs_have_tested(finished_run, grown, tmp_path):
    folder = copy_of(finished_run, grown, tmp_path)
    done, found = run(folder, "intake.image_size=64", "fine_tune.epochs=0"), earlier(folder)
    rows = pq.read_table(folder / "out" / "comparison.parquet").to_pylist()
    assert 0 < found["all"]["num_examples"] == len(rows) - found["num_new"]
    assert found["note"].startswith("The earlier model takes photos in another size") and found["note"] in done.stdout
