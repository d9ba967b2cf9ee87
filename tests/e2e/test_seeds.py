"""A run with several seeds: what they share, what they leave, and that a kill between them changes nothing."""

import json
import re
import signal
import subprocess
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import paint_classes, quick_settings, run_job, start_job

SETTINGS = quick_settings("fine_tune.epochs=3", "fine_tune.global_batch_size=8", "checkpoint.every_s=0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of photos, the output of a run with one seed, and that of the same run with three seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    paint_classes(folder / "photos", per_class=20)
    command = ["run", "--data", folder / "photos", "--out", folder / "out", *SETTINGS]
    assert run_job(*command, "--stop-after", "fine_tune").returncode == 0
    with np.load(folder / "out/stages/fine_tune/weights.npz") as weights:
        single = {name: weights[name] for name in weights}
    done = run_job(*command, "--seeds", "3")
    assert done.returncode == 0, done.stderr
    return folder, single, done


def test_seeds_share_everything_before_fine_tuning_and_the_first_is_that_of_a_single_run(runs):
    folder, single, done = runs
    assert re.findall(r"^(\w+) +runs$", done.stderr, re.MULTILINE) == [
        "fine_tune",
        "evaluate",
        "heatmaps",
        "export",
        "convert",
        "report",
    ]
    assert re.findall(r"^  seed (\d), epoch 3 of 3:", done.stderr, re.MULTILINE) == ["0", "1", "2"]
    with np.load(folder / "out/stages/fine_tune/weights.npz") as weights:
        for name, values in single.items():
            assert weights[name].tobytes() == values.tobytes(), name
        last = max(single)  # The bias of the head. Others, of frozen layers, never change.
        assert weights[last.replace("seed 0", "seed 1")].tobytes() != single[last].tobytes()


def test_metrics_and_page_have_mean_and_spread_and_the_chosen_model_ships(runs):
    out = runs[0] / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    seeds = metrics["seeds"]
    assert list(seeds["models"]) == ["seed 0", "seed 1", "seed 2", "mean of the weights"]
    chosen = seeds["models"][seeds["chosen"]]
    assert metrics["fine_tuned"]["val"]["log_loss"] == chosen["val_log_loss"]
    assert seeds["spread"]["val_log_loss"] > 0
    assert json.loads((out / "model/parity.json").read_text())["agrees"]
    assert "standard deviation of the seeds" in (out / "report.html").read_text()


@pytest.mark.thorough
def test_kill_in_the_second_seed_changes_nothing(runs, tmp_path):
    folder = runs[0]
    command = ["run", "--data", folder / "photos", "--out", tmp_path / "out", *SETTINGS, "--seeds", "3"]
    command += ["--stop-after", "evaluate"]
    saved = tmp_path / "out" / "checkpoints" / "fine_tune_1"
    with start_job(*command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(saved.glob("[0-9]*")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not saved.with_name("fine_tune_2").exists()
    again = run_job(*command)
    assert again.returncode == 0 and "fine_tune_1: resuming from the checkpoint at step" in again.stderr, again.stderr
    assert "seed 0, epoch" not in again.stderr
    for name in ("stages/fine_tune/weights.npz", "stages/fine_tune/fine_tune.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "out" / name).read_bytes(), name
    tables = [pq.read_table(place / "out/stages/evaluate/predictions.parquet") for place in (folder, tmp_path)]
    assert tables[0].equals(tables[1])
