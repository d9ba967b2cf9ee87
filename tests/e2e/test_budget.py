"""Runs with a time budget: the head in time, training that ends early, and starts that count together."""

import json
import math
import re
import signal
import time

import pytest

import job
from job.pipeline.budget import Budget
from tests.conftest import QUICK, paint_classes, quick_settings, run_job, start_job


def test_head_ships_where_no_quality_fits(painted, tmp_path):
    out = tmp_path / "out"
    done = run_job("run", "--data", painted, "--out", out, *quick_settings(), "--budget", "1s")
    assert done.returncode == 0, done.stderr
    for quality in ("head", "fast", "balanced", "best"):
        assert re.search(rf"^  {quality} +\d.* of disk, .* of memory: too long$", done.stderr, re.MULTILINE), done.stderr
    assert "  head is taken: nothing is fine-tuned" in done.stderr
    assert re.search(r"^Budget 1\.0 s: head, predicted .+, took .+\.$", done.stderr, re.MULTILINE)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["shipped"] == "head" and metrics["fine_tuned"] is None
    assert json.loads((out / "model" / "parity.json").read_text())["agrees"]
    again = run_job("run", "--data", painted, "--out", out, *quick_settings(), "--budget", "1s")
    assert again.returncode == 0 and " runs\n" not in again.stderr, "the choice is kept"


@pytest.mark.thorough
def test_time_of_a_start_that_was_killed_counts(painted, tmp_path):
    out = tmp_path / "out"
    command = ["run", "--data", painted, "--out", out, *quick_settings(), "--budget", "1000s", "--stop-after", "extract"]
    said = tmp_path / "said.txt"
    with said.open("w") as file, start_job(*command, stderr=file) as process:
        while process.poll() is None and "split     done" not in said.read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    log = out / "logs" / "events.jsonl"
    first, *rest = log.read_text().splitlines(keepends=True)
    earlier = {**json.loads(first), "time": json.loads(first)["time"] - 1000}  # As if the start had been so much earlier.
    log.write_text("".join([json.dumps(earlier) + "\n", *rest]))
    done = run_job(*command)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Budget 16 min 40 s, of which 1[678] min are spent\.", done.stderr, re.MULTILINE), done.stderr
    assert "head is taken" in done.stderr


@pytest.mark.thorough
def test_training_ends_early_if_there_is_no_time_for_another_epoch(tmp_path, monkeypatch):
    paint_classes(tmp_path / "photos", per_class=20)
    monkeypatch.setattr(Budget, "training_clock", lambda self: lambda: 0.0)
    config = job.Config.load(None, [*QUICK, "fine_tune.epochs=5", "fine_tune.layer_decay=0.7", "train.budget_s=10h"])
    for _ in range(2):
        job.run(tmp_path / "photos", tmp_path / "out", config=config, stop_after="fine_tune")
        tuned = json.loads((tmp_path / "out/stages/fine_tune/fine_tune.json").read_text())
        assert [entry["epoch"] for entry in tuned["history"]] == [0, 1]
        assert "The time ran out after epoch 1." in tuned["note"]
    choice = json.loads((tmp_path / "out/stages/budget.json").read_text())["chosen"]
    assert choice["name"] == "best" and choice["seconds"] > choice["later_s"] > 0


@pytest.mark.thorough
def test_seed_that_has_no_time_for_its_last_epoch_is_left_out(tmp_path, monkeypatch):
    paint_classes(tmp_path / "photos", per_class=20)
    left_s = iter([math.inf, 0.0])  # After the first of two epochs of each seed.
    monkeypatch.setattr(Budget, "training_clock", lambda self: left_s.__next__)
    config = job.Config.load(None, [*QUICK, "train.seeds=3", "train.budget_s=10h"])
    job.run(tmp_path / "photos", tmp_path / "out", config=config, stop_after="fine_tune")
    tuned = json.loads((tmp_path / "out/stages/fine_tune/fine_tune.json").read_text())
    assert {entry["seed"] for entry in tuned["history"]} == {0} and len(tuned["history"]) == 3
    assert "Seed 1 is left out: the time ran out before its last epoch." in tuned["note"]
