"""Figures that can be worked out by hand."""

import numpy as np
import pytest

from job.measure import metrics


def test_wilson_interval_of_a_textbook_case():
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662.
    assert metrics.wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert metrics.wilson(0, 10)[0] == 0 and metrics.wilson(10, 10)[1] == pytest.approx(1) and metrics.wilson(0, 0) == [0, 1]


def test_summary_of_four_examples():
    labels = np.asarray([0, 0, 1, 2])
    probabilities = np.asarray([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    found = metrics.summary(labels, probabilities.argmax(1), probabilities[np.arange(4), labels])
    assert found["num_examples"] == 4 and found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.8]).mean())


def test_classes_without_examples_do_not_count():
    found = metrics.summary(np.asarray([0, 0]), np.asarray([0, 0]), np.asarray([0.9, 0.9]))
    assert found["balanced_accuracy"] == 1 and found["macro_f1"] == 1


def test_confusion_has_given_labels_in_rows():
    assert metrics.confusion(np.asarray([0, 0, 1]), np.asarray([0, 1, 1]), 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_class_that_is_never_predicted_has_no_precision():
    found = metrics.per_class(np.asarray([0, 1]), np.asarray([0, 0]), np.arange(2), ("a", "b"), 10, seed=0)
    assert [row["precision"] for row in found] == [0.5, None] and [row["recall"] for row in found] == [1, 0]


def test_comparison_counts_disagreements_and_gives_mcnemars_exact_p():
    labels = np.zeros(20, int)
    first = np.asarray([0] * 10 + [1] * 10)
    second = np.asarray([0] * 9 + [1] + [0] * 8 + [1, 1])
    found = metrics.compare(labels, first, second, np.arange(20), 4000, seed=0)
    assert (found.only_first_correct, found.only_second_correct) == (1, 8)
    assert found.difference == pytest.approx(7 / 20)
    assert found.p_value == pytest.approx(2 * (1 + 9) / 2**9)
    low, high = found.difference_ci95
    assert low < found.difference < high
    weighted = metrics.compare(labels, first, second, np.arange(20), 4000, 0, np.repeat([4.0, 1.0], 10))
    assert weighted.difference == pytest.approx((-4 + 8) / 50)
    # Normal approximation of a paired difference: 0.35 +- 1.96 * sqrt((9/20 - 0.35^2) / 20).
    assert [low, high] == pytest.approx([0.10, 0.60], abs=0.06)


def test_bootstrap_draws_whole_groups():
    gain = np.asarray([1.0, 1, 1, 1, -1, -1, -1, -1])[:, None]
    alone = metrics.bootstrap(gain, np.arange(8), lambda s: s, 3000, seed=1)
    together = metrics.bootstrap(gain, np.repeat([0, 1], 4), lambda s: s, 3000, seed=1)
    assert together[1] - together[0] > alone[1] - alone[0]


def test_f1_interval_of_many_classes_is_that_of_its_own_counts():
    """Class 0 alone decides its F1, whether there are two more classes or two hundred."""
    labels = np.repeat([0, 1, 2], 40)
    predicted = np.where(np.arange(120) % 5 == 0, (labels + 1) % 3, labels)
    few = metrics.per_class(labels, predicted, np.arange(120), ("a", "b", "c"), 500, seed=3)
    many = metrics.per_class(labels, predicted, np.arange(120), tuple(map(str, range(200))), 500, seed=3)
    assert many[0]["f1_ci95"] == few[0]["f1_ci95"] and many[150]["f1_ci95"] == [0, 0]
    low, high = few[0]["f1_ci95"]
    assert few[0]["f1"] == pytest.approx(0.8) and 0.68 < low < 0.75 and 0.85 < high < 0.91


def test_single_group_tells_nothing_about_others():
    labels, better = np.asarray([0, 1, 0, 1]), np.asarray([0, 1, 0, 1])
    found = metrics.compare(labels, 1 - better, better, np.zeros(4), resamples=100, seed=0)
    assert found.difference == 1 and found.difference_ci95 == [-1, 1]
    for row in metrics.per_class(labels, better, np.zeros(4), ("a", "b"), resamples=100, seed=0):
        assert row["f1"] == 1 and row["f1_ci95"] == [0, 1]


def test_per_class_of_a_small_table():
    labels, predicted = np.asarray([0, 0, 0, 1]), np.asarray([0, 0, 1, 1])
    first, second, third = metrics.per_class(labels, predicted, np.arange(4), ("a", "b", "never"), 500, seed=0)
    assert (first["precision"], first["recall"], first["f1"]) == pytest.approx((1, 2 / 3, 0.8))
    assert (second["precision"], second["recall"], second["f1"]) == pytest.approx((0.5, 1, 2 / 3))
    assert third["num_examples"] == 0 and third["recall"] == 0 and third["recall_ci95"] == [0, 1]
    assert first["f1_ci95"][0] <= first["f1"] <= first["f1_ci95"][1]


def test_accuracy_by_group_counts_each_group_once():
    correct = np.asarray([1, 1, 1, 0, 0, 1], bool)
    groups = np.asarray([0, 0, 0, 0, 1, 2])
    found = metrics.by_group(correct, groups, resamples=400, seed=0)
    assert found["num_groups"] == 3 and found["accuracy"] == pytest.approx((0.75 + 0 + 1) / 3)
    assert found["accuracy_ci95"][0] < found["accuracy"] < found["accuracy_ci95"][1]
    alike = metrics.by_group(np.repeat([1, 0, 1, 1, 0, 1, 1, 1], 50).astype(bool), np.repeat(np.arange(8), 50), 400, 0)
    low, high = alike["photo_accuracy_ci95"]
    narrow = metrics.wilson(300, 400)
    assert high - low > 3 * (narrow[1] - narrow[0])
    one = metrics.by_group(np.asarray([True, False]), np.zeros(2), 100, 0)
    assert one["accuracy_ci95"] == one["photo_accuracy_ci95"] == [0.0, 1.0]
