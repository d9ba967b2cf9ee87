"""A model for which every class counts the same, on classes of very different size."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import job
from job.measure import calibration
from tests.conftest import QUICK, paint, paint_classes


@pytest.mark.thorough
def test_exported_model_favours_rare_classes_as_much_as_was_measured(tmp_path, monkeypatch):
    paint_classes(tmp_path / "photos", per_class=12)
    for k in range(100, 136):
        paint(tmp_path / "photos" / "stripes" / f"{k}.jpg", seed=k)
    monkeypatch.setattr(calibration, "_STRENGTHS", (1.0,))  # With so few photos, none at all may be as good.
    config = job.Config.load(None, [*QUICK, "evaluate.metric=balanced_accuracy"])
    result = job.run(tmp_path / "photos", tmp_path / "out", config=config)
    out = tmp_path / "out"
    examples = pq.read_table(out / "examples.parquet").to_pylist()
    of_train = [row["label"] for row in examples if row["split"] == "train" and row["status"] == "used"]
    shares = np.asarray([of_train.count(name) for name in ("checks", "stripes")]) / len(of_train)
    card = json.loads((out / "model" / "model.json").read_text())
    assert card["class_offsets"] == pytest.approx(-np.log(shares)) and shares[1] > 0.7
    parity = json.loads((out / "model" / "parity.json").read_text())
    assert parity["agrees"] and parity["arrays"]["largest_difference"] < 1e-4
    assert "Balanced accuracy, fine-tuned minus head" in (out / "report.html").read_text()
    assert result.metrics["metric"] == "balanced_accuracy"
