"""A finished run whose labels are corrected: what runs again, and whether the new model is called better."""

import csv
import json
import shutil

import pyarrow.parquet as pq
import pytest

from tests.conftest import quick_settings, run_job
from tests.pages import Page

LENIENT = ("export.max_changed_fraction=1.0",)  # Predictions of random weights are close to each other.


def rows_of(out, split):
    return [r for r in pq.read_table(out / "examples.parquet").to_pylist() if r["status"] == "used" and r["split"] == split]


def other(label):
    return {"stripes": "checks", "checks": "stripes"}[label]


def corrected_run(painted, finished_run, folder, decisions):
    """A run after the finished one, with these decisions, and how it ended."""
    out = shutil.copytree(finished_run, folder / "out", symlinks=True)
    file = folder / "checked.csv"
    file.write_text("sha256,decision\n" + "".join(f"{digest},{decision}\n" for digest, decision in decisions.items()))
    done = run_job("run", "--data", painted, "--out", out, "--corrections", file, *quick_settings(*LENIENT))
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture(scope="module")
def corrected(painted, finished_run, tmp_path_factory):
    """A run with two corrected training labels, a corrected test label, and a dropped training photo. Do not change it."""
    train, test = rows_of(finished_run, "train"), rows_of(finished_run, "test")
    decisions = {row["sha256"]: other(row["label"]) for row in (*train[:2], test[0])}
    decisions |= {train[2]["sha256"]: "drop", "0" * 64: "keep"}
    return *corrected_run(painted, finished_run, tmp_path_factory.mktemp("corrected"), decisions), decisions


def test_nothing_is_decoded_or_passed_through_the_frozen_backbone_again(corrected):
    out, done, _ = corrected
    assert "intake    skipped: unchanged" in done.stderr
    assert not {"forward", "decode"} & json.loads((out / "stages/extract.json").read_text())["spent_s"].keys()


def test_accuracy_before_and_after_is_reported_by_both_kinds_of_labels(corrected, finished_run):
    out, done, _ = corrected
    metrics = json.loads((out / "metrics.json").read_text())
    found, now = metrics["corrections"], metrics[metrics["shipped"]]["test"]
    assert found["changed"] == {"train": 2, "val": 0, "test": 1} and found["num_dropped"] == 1 and found["num_kept"] == 0
    assert found["by_corrected_labels"]["accuracy"] == now["accuracy"]
    assert found["by_corrected_labels"]["versus"] == metrics["earlier"]["all"]
    before = json.loads((finished_run / "metrics.json").read_text())
    then = found["by_given_labels"]["versus"]["earlier_accuracy"]
    assert then == pytest.approx(before[before["shipped"]]["test"]["accuracy"])
    assert found["unchanged_labels"]["num_examples"] == now["num_examples"] - 1
    assert "3 labels were corrected: 2 for training, 1 in the test set. 1 photo was left out." in done.stdout
    page = Page((out / "report.html").read_text())
    assert "photos whose label was not changed" in page.sections["corrections"] and "3 labels were corrected" in page.top


def test_next_list_ends_with_the_decisions_and_can_be_given_in_their_place(corrected, painted):
    out, _, decisions = corrected
    assert (out / "label_issues.csv").read_bytes().startswith(b"\xef\xbb\xbfpath,"), "Excel reads UTF-8 only with this mark"
    with (out / "label_issues.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    decided = {row["sha256"]: row["decision"] for row in rows if row["decision"]}
    assert decided == decisions and all(row["decision"] for row in rows[-len(decisions) :])
    shutil.copy(out / "label_issues.csv", out.parent / "next.csv")
    planned = run_job(
        "run",
        "--data",
        painted,
        "--out",
        out,
        "--corrections",
        out.parent / "next.csv",
        *quick_settings(*LENIENT),
        "--dry-run",
    )
    assert " runs: " not in planned.stdout, planned.stdout


@pytest.mark.thorough
def test_model_is_not_called_better_where_only_test_labels_were_changed(painted, finished_run, tmp_path):
    decisions = {row["sha256"]: other(row["label"]) for row in rows_of(finished_run, "test")[:3]}
    out, done = corrected_run(painted, finished_run, tmp_path, decisions)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["corrections"]["verdict"] == "only the test set changed" and metrics["earlier"]["only_test_changed"]
    assert metrics["earlier"]["all"]["difference"] == 0, "the model is the same"
    assert "the model is not called better" in done.stdout and "new model is better" not in done.stdout
