"""The terminal, the page and the files of one run give the same numbers."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from job.text.numbers import percent
from tests.conftest import paint, quick_settings, run_job
from tests.pages import Page


class Run:
    def __init__(self, out: Path, terminal: str) -> None:
        self.out, self.terminal = out, terminal
        self.page = Page((out / "report.html").read_text(encoding="utf-8"))
        self.predictions = pq.read_table(out / "predictions.parquet").to_pylist()
        metrics = json.loads((out / "metrics.json").read_text())
        self.test = metrics[metrics["shipped"]]["test"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A whole run with a quality gate that no model passes, because the two classes are alike."""
    folder = tmp_path_factory.mktemp("gate")
    for k in range(60):
        paint(folder / "photos" / ("even", "odd")[k % 2] / f"{k:02d}.jpg", seed=k)
    settings = quick_settings("evaluate.min_accuracy=1.0", "fine_tune.epochs=1")
    done = run_job("run", "--data", folder / "photos", "--out", folder / "out", *settings)
    assert done.returncode == 3, done.stderr
    return Run(folder / "out", done.stderr)


def test_accuracy_is_the_same_on_the_terminal_on_the_page_and_in_the_files(run):
    num_photos, right = len(run.predictions), sum(row["label"] == row["predicted"] for row in run.predictions)
    share, (low, high) = percent(run.test["accuracy"]), map(percent, run.test["accuracy_ci95"])
    assert f"Accuracy {share} ({right} of {num_photos} held-out photos; 95% interval {low} to {high})" in run.terminal
    assert f"{share} of the held-out photos" in run.page.top and f"{right} of {num_photos}." in run.page.top
    assert f"95% confidence interval: {low} to {high}." in run.page.top
    assert any(cells[1:4] == [str(num_photos), share, f"{low} to {high}"] for cells in run.page.rows)


def test_gate_that_fails_is_told_with_the_same_numbers(run):
    num_photos = len(run.predictions)
    assert f"evaluate.min_accuracy = 1.0 asks for {num_photos} held-out photos." in run.terminal
    assert f"{num_photos} of {num_photos}. Only {round(run.test['accuracy'] * num_photos)} " in run.page.top
    assert "model/" not in run.page.text and not (run.out / "model").exists()


def test_times_and_counts_of_the_stages_are_those_of_the_terminal(run):
    told = dict(re.findall(r"^(\w+) +done in (.+)$", run.terminal, re.MULTILINE))
    shown = {cells[0]: cells[1] for cells in run.page.rows if cells and cells[0] in told}
    assert len(shown) > 6 and shown == {stage: told[stage] for stage in shown}
    (splits,) = re.findall(r"Splits: (\d+) train, (\d+) val, (\d+) test", run.terminal)
    assert "training {} validation {} test (held out) {}".format(*splits) in run.page.text
