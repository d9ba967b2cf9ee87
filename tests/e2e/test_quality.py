"""A model of a higher quality than the default."""

import json

import job
from tests.conftest import QUICK, paint_classes


def test_exported_model_of_the_best_quality_mirrors_photos_as_was_measured(tmp_path):
    paint_classes(tmp_path / "photos", per_class=12)
    config = job.Config.load(None, [*QUICK, "train.quality=best"])
    result = job.run(tmp_path / "photos", tmp_path / "out", config=config)
    card = json.loads((result.model / "model.json").read_text())
    parity = json.loads((result.model / "parity.json").read_text())
    assert result.metrics["shipped"] == "fine_tuned" and card["mirrors"]
    assert parity["agrees"] and parity["arrays"]["largest_difference"] < 1e-4
    assert "mean over a photo and its mirror image" in result.report.read_text()
