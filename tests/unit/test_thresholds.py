"""Curves by hand, and promises that are kept as often as they say."""

import numpy as np
import pytest
from scipy.stats import binom

from job.measure.predicted import Predicted
from job.measure.thresholds import TARGETS, Answers, curves, more_photos, proof, thresholds
from job.storage.files import to_json

DRAWS = 1000


def answers(confidence, correct, groups=None):
    confidence = np.asarray(confidence, float)
    groups = np.arange(len(confidence)) if groups is None else np.asarray(groups)
    return Answers(confidence, np.asarray(correct, bool), groups)


def drawn(rng, num_photos, sureness=0.0):
    """Answers of a model of 88% accuracy, like that of the issue. It is right as often as its probability says, or less."""
    logits = rng.normal(3.2, 2.2, num_photos)
    right = rng.random(num_photos) < 1 / (1 + np.exp(-logits))
    return answers(np.maximum(0.2, 1 / (1 + np.exp(-logits - sureness))), right)


def precision_above(threshold, sureness=0.0):
    """The precision of very many answers that `drawn` gives."""
    logits = np.random.default_rng(0).normal(3.2, 2.2, 200_000)
    accepted = 1 / (1 + np.exp(-logits - sureness)) >= threshold
    return (1 / (1 + np.exp(-logits)))[accepted].mean()


def test_curves_are_those_of_a_case_done_by_hand():
    predicted = Predicted(np.asarray([0, 1, 1, 1]), np.asarray([0.9, 0.8, 0.6, 0.55]), np.zeros(4))
    found = curves(np.asarray([0, 0, 1, 1]), predicted, [0.0, 0.6, 0.85, 0.95], 3)
    assert found["thresholds"] == [0.0, 0.6, 0.85]  # Nothing is accepted at 0.95.
    assert found["precision"] == [0.75, 0.6667, 1.0]
    assert found["recall"] == [0.75, 0.5, 0.25] and found["coverage"] == [1.0, 0.75, 0.25]
    assert found["per_class"] == {
        "precision": [[1.0, 1.0, 1.0], [0.667, 0.5, None], [None, None, None]],
        "recall": [[0.5, 0.5, 0.5], [1.0, 0.5, 0.0], [None, None, None]],
        "coverage": [[1.0, 1.0, 0.5], [1.0, 0.5, 0.0], [None, None, None]],
    }


@pytest.mark.parametrize(("num_right", "target"), [(149, 0.98), (59, 0.95), (29, 0.9)])
def test_so_many_right_answers_in_a_row_prove_a_precision_and_one_fewer_does_not(num_right, target):
    assert proof(answers([0.999] * num_right, [True] * num_right), target) == (0.999, num_right, 0)
    fewer = answers([0.999] * (num_right - 1), [True] * (num_right - 1))
    assert proof(fewer, target) is None and 0 < more_photos(fewer, target) < num_right


@pytest.mark.parametrize("sureness", [0.0, 1.0], ids=["calibrated", "too sure"])
def test_a_promise_is_false_in_at_most_one_of_twenty_draws_also_if_probabilities_are_not_calibrated(sureness):
    rng, false_promises = np.random.default_rng(2), 0
    cuts = np.linspace(0.2, 0.9999, 400)
    precisions = np.asarray([precision_above(cut, sureness) for cut in cuts])
    for _ in range(DRAWS):
        found = proof(drawn(rng, 400, sureness), 0.95)
        false_promises += found is not None and np.interp(found.threshold, cuts, precisions) < 0.95
    assert false_promises <= binom.ppf(0.999, DRAWS, 0.05)


def test_430_photos_prove_95_percent_more_often_than_with_a_start_at_the_strictest_threshold():
    rng, proven, proven_from_strictest = np.random.default_rng(3), 0, 0
    for _ in range(200):
        found = drawn(rng, 430)
        proven += proof(found, 0.95) is not None
        strictest = np.argsort(-found.confidence_N)[:59]
        proven_from_strictest += found.correct_N[strictest].all()
    assert proven >= 190 > 185 >= proven_from_strictest


def test_copies_count_once_and_a_group_with_a_wrong_answer_is_wrong():
    pairs = np.repeat(np.arange(149), 2)
    assert proof(answers([0.999] * 150, [True] * 150, pairs[:150]), 0.98) is None
    assert proof(answers([0.999] * 298, [True] * 298, pairs), 0.98).num_accepted == 149
    one_wrong = [k != 7 for k in range(298)]
    assert proof(answers([0.999] * 298, one_wrong, pairs), 0.98) is None


def test_a_threshold_is_below_one_also_for_a_model_that_is_certain():
    assert proof(answers([1.0] * 149, [True] * 149), 0.98).threshold == 0.999999


def test_so_many_more_photos_as_estimated_prove_a_threshold_in_most_cases():
    rng = np.random.default_rng(4)
    estimates = [more_photos(drawn(rng, 200), 0.98) for _ in range(20)]
    more = int(np.median([estimate for estimate in estimates if estimate]))
    proven = [proof(drawn(rng, 200 + more), 0.98) is not None for _ in range(100)]
    assert sum(proven) >= 60


def test_a_handful_of_photos_is_told_how_many_more_are_needed_unless_no_number_helps():
    assert 149 <= more_photos(answers([0.9999] * 4, [True] * 4), 0.98) <= 250
    assert more_photos(answers([0.6] * 400, [k % 5 > 0 for k in range(400)]), 0.98) is None


def chosen(target, num_val, of_training=None, familiar=None, num_photos=400):
    rng = np.random.default_rng(5)
    found = drawn(rng, num_photos)
    labels = np.zeros(num_photos, int)
    predicted = Predicted(np.where(found.correct_N, 0, 1), found.confidence_N, found.confidence_N)
    return thresholds(
        target,
        labels_N=labels,
        predicted=predicted,
        groups_N=np.arange(num_photos),
        num_val=num_val,
        num_classes=2,
        of_training=of_training,
        familiar_N=familiar,
    )


def test_training_photos_count_only_where_validation_photos_are_too_few():
    asked = []

    def of_training():
        asked.append(1)
        more = drawn(np.random.default_rng(6), 2000)
        return Answers(more.confidence_N, more.correct_N, 1000 + np.arange(2000))

    assert chosen(None, 200, of_training)["chosen"] is None and not asked
    assert chosen(0.9, 200, of_training)["chosen"]["min_probability"] and not asked
    made = chosen(0.98, 200, of_training)["chosen"]
    assert asked and made["with_training_photos"] and made["num_accepted"] > 200 and made["held_out"]["coverage"] > 0.3


def test_promises_are_told_without_being_asked_for_and_measured_on_held_out_photos():
    found = chosen(None, 300)
    assert [made["target_precision"] for made in found["offered"]] == list(TARGETS)
    first = found["offered"][0]
    place = found["curves"]["thresholds"].index(first["min_probability"])
    assert 0.9 <= first["lower_bound"] < 1 - first["num_wrong"] / first["num_accepted"]
    assert first["held_out"]["coverage"] == pytest.approx(found["curves"]["coverage"][place], abs=1e-4)
    assert first["held_out"]["precision"] == pytest.approx(found["curves"]["precision"][place], abs=1e-4)


def test_unfamiliar_photos_are_never_accepted_and_prove_nothing():
    none = chosen(0.9, 300, lambda: answers([0.5], [True], [9999]), np.zeros(400, bool))
    assert none["chosen"]["min_probability"] is None and none["curves"]["thresholds"] == []
    half = chosen(0.9, 300, familiar=np.arange(400) % 2 == 0)
    assert half["curves"]["coverage"][0] == 0.5 and half["chosen"]["num_accepted"] <= 150


def test_curves_of_a_thousand_classes_take_less_than_300_kilobytes():
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 1000, 50_000)
    predicted = Predicted(np.where(rng.random(50_000) < 0.8, labels, 0), rng.random(50_000), np.zeros(50_000))
    found = thresholds(
        None,
        labels_N=labels,
        predicted=predicted,
        groups_N=np.arange(50_000),
        num_val=20_000,
        num_classes=1000,
        of_training=lambda: answers([], []),
    )
    assert len(to_json({"thresholds": found})) < 300_000
