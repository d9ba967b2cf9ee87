"""The temperature, the calibration error and its floor, on numbers whose answer is known."""

import numpy as np
import pytest

from job.measure import calibration
from job.measure.calibration import Calibration


def drawn(num_examples, num_classes, seed=0):
    """Return logits, and labels that are drawn from their softmax: a calibrated classifier."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (num_examples, num_classes))
    cumulated = Calibration().probabilities(logits).cumsum(axis=1)
    return logits, (rng.random((num_examples, 1)) > cumulated).sum(axis=1).clip(max=num_classes - 1)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_temperature_undoes_a_scale_of_the_logits(scale):
    logits, labels = drawn(4000, 5)
    assert calibration.temperature(labels, scale * logits) == pytest.approx(scale, rel=0.05)


def test_temperature_for_smoothed_labels_gives_the_label_their_share():
    """Logits of 6 for the label and 0 for three others, as probabilities: 0.925 and 0.025 for a smoothing of 0.1."""
    labels = np.arange(40) % 4
    found = calibration.temperature(labels, 6.0 * np.eye(4)[labels], missing=0.1 * 3 / 4)
    assert found == pytest.approx(6 / np.log(0.925 / 0.025), rel=1e-3)


def test_temperature_stays_finite_where_all_labels_are_right():
    logits = np.asarray([[3.0, 0.0], [0.0, 3.0]] * 5)
    found = calibration.temperature(logits.argmax(1), logits)
    assert 0.3 < Calibration(found).probabilities(logits).max() < 0.96 and 0.5 < found < 3


def test_temperature_changes_no_label_and_sums_stay_one():
    logits, _ = drawn(50, 7)
    warm = Calibration(2.5).probabilities(logits)
    assert (warm.argmax(1) == logits.argmax(1)).all() and np.allclose(warm.sum(1), 1)


def long_tail(num, seed, shares=(0.9, 0.08, 0.02)):
    """Examples of three classes that overlap. As in a well fitted classifier, logits contain the share of the class."""
    rng, shares = np.random.default_rng(seed), np.asarray(shares)
    labels = rng.choice(3, num, p=shares)
    return labels, np.eye(3)[labels] + rng.normal(0, 1, (num, 3)) + np.log(shares)


def test_offsets_take_back_the_advantage_of_frequent_classes_if_that_makes_classes_equally_good():
    (labels, logits), (new_labels, new_logits) = long_tail(20_000, 0), long_tail(20_000, 1)
    found = calibration.balanced(labels, logits, 1.0, np.bincount(labels))
    assert found.offsets_C == pytest.approx(-np.log(np.bincount(labels) / len(labels))), "all of it, as logits are exact"
    scores = [recall(new_labels, of.probabilities(new_logits)) for of in (Calibration(), found)]
    assert scores[0] < 0.4 and scores[1] > 0.6


def recall(labels, probabilities):
    return np.mean([(probabilities[labels == k].argmax(1) == k).mean() for k in range(3)])


def test_offsets_are_zero_where_they_gain_nothing():
    labels = np.asarray([0] * 50 + [1] * 5)
    found = calibration.balanced(labels, 9.0 * np.eye(2)[labels], 2.0, np.asarray([500, 50]))
    assert found.temperature == 2 and not found.offsets_C.any()
    assert np.allclose(found.probabilities(np.ones((1, 2))), 0.5)


def test_calibration_error_by_hand():
    confidence, correct = np.asarray([0.9, 0.9, 0.6, 0.6]), np.asarray([1, 1, 1, 0], bool)
    assert calibration.expected_calibration_error(confidence, correct, 10) == pytest.approx(
        (abs(1.8 - 2) + abs(1.2 - 1)) / 4
    )


def test_floor_is_what_a_calibrated_classifier_stays_below_in_nineteen_of_twenty_cases():
    below = 0
    for seed in range(100):
        logits, labels = drawn(400, 4, seed)
        probabilities = Calibration().probabilities(logits)
        confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
        error = calibration.expected_calibration_error(confidence, correct, 15)
        below += error <= calibration.calibration_error_floor(confidence, 15, seed=1)
    assert 89 <= below <= 99


def test_reliability_has_the_bins_that_hold_examples():
    found = calibration.reliability(np.asarray([0.95, 1.0, 0.3]), np.asarray([True, False, True]), 10)
    assert [b["num_examples"] for b in found] == [1, 2] and found[1]["accuracy"] == 0.5
    low, high = found[1]["accuracy_ci95"]
    assert low < 0.5 < high
