"""The file of predictions, and the choice of the model that ships."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from job.measure import predictions
from job.measure.calibration import Calibration
from job.measure.predicted import Predicted, StoredLogits
from job.sections import EvaluateConfig
from job.stages import evaluate
from job.storage.workdir import Workdir
from tests.conftest import examples_of

NUMBERS = dict.fromkeys(("width", "height", "num_bytes", "phash", "brightness", "contrast", "has_exif", "row"), 0)


def examples_with(labels, names, split):
    known = {**NUMBERS, "status": "used", "split": split}
    records = [
        {**known, "path": f"{k}.jpg", "sha256": f"{k:064x}", "label": names[label], "group": k}
        for k, label in enumerate(labels)
    ]
    return examples_of(records, names)


def written(folder, num_photos, num_classes):
    """Write the predictions of one model. Return the file and the probabilities that it should have."""
    rng = np.random.default_rng(0)
    names = tuple(f"class-{k:03d}" for k in range(num_classes))
    labels = rng.integers(0, num_classes, num_photos)
    logits = rng.normal(0, 2, (num_photos, num_classes)).astype(np.float32)
    calibration = Calibration(1.5, np.zeros(num_classes))
    found = Predicted.of(labels, logits, calibration)
    workdir = Workdir(folder)
    examples, all_of_them = examples_with(labels, names, "test"), np.ones(num_photos, bool)
    answers = predictions.answers_of(examples, np.arange(num_photos), found, "head", all_of_them, None, all_of_them)
    of_val_too = [np.zeros((7, num_classes)), logits]
    stored = StoredLogits(of_val_too, num_classes, folder)
    predictions.write_predictions(answers, {"head": stored}, {"head": calibration}, workdir)
    return workdir.path(predictions.PREDICTIONS), calibration.probabilities(logits)


@pytest.mark.parametrize(("num_classes", "error"), [(3, 1e-7), (100, 1e-7), (101, 2**-16)])
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
    assert file.stat().st_size < 1.1 * 5000 * 1000


def choice(head, fine_tuned, labels=(0, 1, 0, 1), metric="accuracy"):
    """Return which model ships and why. Of each photo, both models are given the probability of its own label."""
    examples = examples_with(labels, ("a", "b"), "val")

    def predicted(of_label):
        of_label, true = np.asarray(of_label), np.asarray(labels)
        return Predicted(np.where(of_label > 0.5, true, 1 - true), np.maximum(of_label, 1 - of_label), of_label)

    models = {"head": predicted(head), "fine_tuned": predicted(fine_tuned)}
    return evaluate._Judge(EvaluateConfig(metric=metric), examples, seed=0).choice(models)


def test_the_model_with_the_lower_log_loss_on_validation_ships_also_where_it_has_no_more_right_answers():
    shipped, why = choice(head=[0.6, 0.6, 0.6, 0.4], fine_tuned=[0.9, 0.9, 0.9, 0.4])
    assert shipped == "fine_tuned" and why["comparison"]["difference"] == 0
    assert why["log_loss"]["fine_tuned"] == pytest.approx(-np.log([0.9, 0.9, 0.9, 0.4]).mean())
    assert "The fine-tuned model ships. On the 4 validation photos" in why["reason"]
    shipped, why = choice(head=[0.8] * 4, fine_tuned=[0.99, 0.99, 0.99, 0.01])
    assert shipped == "head" and "The head ships." in why["reason"]


def test_models_that_are_equally_good_leave_the_head():
    assert choice(head=[0.7] * 4, fine_tuned=[0.7] * 4)[0] == "head"


def test_every_class_counts_the_same_in_the_choice_where_balanced_accuracy_is_wanted():
    models = {"head": [0.9, 0.9, 0.9, 0.3], "fine_tuned": [0.7, 0.7, 0.7, 0.6]}
    assert choice(**models, labels=(0, 0, 0, 1))[0] == "head"
    assert choice(**models, labels=(0, 0, 0, 1), metric="balanced_accuracy")[0] == "fine_tuned"
