"""The file of predictions: what is in it, and how exact."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from job.measure.calibration import Calibration
from job.measure.predicted import Predicted, StoredLogits
from job.stages import evaluate
from job.storage.workdir import Workdir
from tests.conftest import examples_of

NUMBERS = dict.fromkeys(("width", "height", "num_bytes", "phash", "brightness", "contrast", "has_exif", "row"), 0)


def written(folder, num_photos, num_classes):
    """Write the predictions of one model. Return the file and the probabilities that it should have."""
    rng = np.random.default_rng(0)
    names = tuple(f"class-{k:03d}" for k in range(num_classes))
    labels = rng.integers(0, num_classes, num_photos)
    records = [
        {
            **NUMBERS,
            "status": "used",
            "path": f"{k}.jpg",
            "sha256": f"{k:064x}",
            "label": names[label],
            "split": "test",
            "group": k,
        }
        for k, label in enumerate(labels)
    ]
    logits = rng.normal(0, 2, (num_photos, num_classes)).astype(np.float32)
    calibration = Calibration(1.5, np.zeros(num_classes))
    found = Predicted.of(labels, logits, calibration)
    workdir = Workdir(folder)
    answers = evaluate._answers(examples_of(records, names), np.arange(num_photos), found, "head")
    of_val_too = [np.zeros((7, num_classes)), logits]
    stored = StoredLogits(of_val_too, num_classes, folder)
    evaluate._write_predictions(answers, {"head": stored}, {"head": calibration}, workdir)
    return workdir.path(evaluate.PREDICTIONS), calibration.probabilities(logits)


@pytest.mark.parametrize(("num_classes", "error"), [(3, 1e-7), (100, 1e-7), (101, 2**-17)])
def test_probabilities_are_exact_up_to_100_classes_and_rounded_beyond(tmp_path, num_classes, error):
    file, expected = written(tmp_path, 50, num_classes)
    table = pq.read_table(file)
    assert np.abs(np.stack(table["head_probabilities"].to_numpy()) - expected).max() <= error
    assert table["fine_tuned_probabilities"].null_count == 50
    assert table["predicted"].to_pylist() == [f"class-{k:03d}" for k in expected.argmax(1)]
    assert table.schema.metadata[b"class_names"].decode().split("\n")[-1] == f"class-{num_classes - 1:03d}"


def test_predictions_of_a_thousand_classes_take_about_a_byte_for_each(tmp_path):
    file, _ = written(tmp_path, 5000, 1000)
    assert pq.ParquetFile(file).metadata.num_row_groups > 1  # Written in parts, to save memory.
    assert file.stat().st_size < 1.2 * 5000 * 1000
