"""Scores of several seeds, on cases that can be done by hand."""

import numpy as np
import pytest

from job.measure.predicted import Predicted
from job.measure.seeds import MEAN_OF_WEIGHTS, compared_seeds

LABELS = np.asarray([0, 1, 0, 1])  # Two validation photos, then two held-out ones.


def predicted(classes, of_label):
    of_label_N = np.asarray(of_label)
    return Predicted(np.asarray(classes), of_label_N, of_label_N)


def test_mean_of_the_weights_is_chosen_and_the_spread_is_that_of_the_seeds():
    found = compared_seeds(
        {
            "seed 3": predicted([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]),
            "seed 4": predicted([0, 0, 0, 0], [0.5, 0.125, 0.5, 0.5]),
            MEAN_OF_WEIGHTS: predicted([0, 1, 1, 0], [0.5, 0.5, 0.1, 0.1]),
        },
        LABELS,
        num_val=2,
    )
    assert found["chosen"] == MEAN_OF_WEIGHTS
    assert found["models"]["seed 4"] == {
        "val_accuracy": 0.5, "val_log_loss": pytest.approx(2 * np.log(2)), "test_accuracy": 0.5, "test_log_loss": np.log(2)
    }  # fmt: skip
    assert found["mean"]["val_accuracy"] == 0.75 and found["mean"]["val_log_loss"] == pytest.approx(1.5 * np.log(2))
    assert found["spread"]["test_accuracy"] == pytest.approx(np.sqrt(0.125)) and found["spread"]["test_log_loss"] == 0


def test_seed_is_chosen_if_it_is_clearly_better_on_validation_than_the_mean_of_the_weights():
    labels = np.zeros(8, int)
    of_label = {"seed 0": [0.9, 0.8] * 4, "seed 1": [0.5, 0.4] * 4, MEAN_OF_WEIGHTS: [0.3, 0.2] * 4}
    models = {name: predicted(labels, shares) for name, shares in of_label.items()}
    assert compared_seeds(models, labels, num_val=6)["chosen"] == "seed 0"
    of_label[MEAN_OF_WEIGHTS] = [0.95, 0.7] * 4  # Worse on some photos and better on others: not clearly worse.
    models = {name: predicted(labels, shares) for name, shares in of_label.items()}
    assert compared_seeds(models, labels, num_val=6)["chosen"] == MEAN_OF_WEIGHTS


def test_model_that_rules_a_label_out_is_not_kept_for_it():
    labels = np.zeros(8, int)
    of_label = {"seed 0": [0.9] * 8, MEAN_OF_WEIGHTS: [0.0, 0.1] * 4}  # The mean loss of the latter would be infinite.
    models = {name: predicted(labels, shares) for name, shares in of_label.items()}
    assert compared_seeds(models, labels, num_val=6)["chosen"] == "seed 0"


def test_single_seed_is_chosen_and_has_no_spread():
    found = compared_seeds({"seed 0": predicted([0, 1, 0, 0], [0.9, 0.9, 0.9, 0.1])}, LABELS, num_val=2)
    assert found["chosen"] == "seed 0" and found["mean"]["test_accuracy"] == 0.5 and found["spread"] is None
