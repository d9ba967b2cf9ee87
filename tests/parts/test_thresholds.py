"""A threshold with a proven precision, asked for through the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.conftest import quick_settings, run_job


@pytest.fixture
def coloured(tmp_path):
    """Two classes of sixty photos of noise that even a backbone with random weights tells apart: red and blue ones."""
    rng = np.random.default_rng(0)
    for name, tint in (("red", (160, 0, 0)), ("blue", (0, 0, 160))):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for k in range(60):
            pixels = rng.integers(0, 90, (8, 8, 3)) + tint
            Image.fromarray(pixels.astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    return tmp_path / "photos"


def test_run_proves_the_precision_that_was_asked_for_and_tells_how_many_photos_it_answers(coloured, tmp_path):
    def run(target, *more):
        words = [
            "run",
            "--data",
            coloured,
            "--out",
            tmp_path / "out",
            *quick_settings(f"evaluate.target_precision={target}"),
        ]
        done = run_job(*words, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run(0.999, "--stop-after", "evaluate")
    assert "No threshold is proven to keep a precision of 99.9%, so the model has none." in said
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["thresholds"]["chosen"]["min_probability"] is None and metrics["min_probability"] == 0

    said = run(0.9)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    made = metrics["thresholds"]["chosen"]
    assert made["with_training_photos"]  # 29 right answers in a row are needed, and only 18 photos are for validation.
    assert made["num_accepted"] > 29 and made["lower_bound"] >= 0.9 and made["held_out"]["coverage"] > 0.5
    assert metrics["min_probability"] == made["min_probability"] > 0.2
    sentence = "At 90% precision the model answers "
    assert sentence in said and sentence in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("target", [0.5, 1, 98])
def test_target_that_no_threshold_can_keep_is_refused(target, tmp_path):
    done = run_job("run", "--data", tmp_path, "--out", tmp_path / "out", "--set", f"evaluate.target_precision={target}")
    assert done.returncode == 2 and "evaluate.target_precision" in done.stderr
