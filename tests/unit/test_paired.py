"""Two kinds of classifiers on the same examples: cases by hand, and published tables."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_ind

from job.measure.paired import Answers, class_differences, differences, holm

ALONE = np.arange(8)  # Each example is a group of its own.


def answers(*rows, confidence=0.8):
    """Return answers of which 1 is right and 0 is wrong, a row for each classifier, all with one confidence."""
    correct_SN = np.asarray(rows, bool)
    confidence_SN = np.full(correct_SN.shape, confidence)
    return Answers(correct_SN, -np.log(np.where(correct_SN, confidence_SN, 0.1)), confidence_SN)


FIRST, SECOND = answers([1, 1, 1, 1, 0, 0, 0, 0]), answers([1, 1, 1, 0, 1, 1, 1, 0])


def test_differences_of_single_classifiers_are_those_of_their_scores():
    found, _ = differences(FIRST, SECOND, ALONE, 15, 500, 0)
    assert found["accuracy"]["difference"] == pytest.approx(6 / 8 - 4 / 8)
    assert found["log_loss"]["difference"] == pytest.approx(2 / 8 * (np.log(0.1) - np.log(0.8)))
    assert found["ece"]["difference"] == pytest.approx(abs(0.8 - 6 / 8) - abs(0.8 - 4 / 8))
    assert all(low < 0.25 for low, _ in (row["ci95"] for row in found.values()))
    assert all(row["seeds_ci95"] is None for row in found.values())


def test_exact_test_of_single_classifiers_is_mcnemars():
    _, compared = differences(FIRST, SECOND, ALONE, 15, 100, 0)
    assert (compared.only_first_correct, compared.only_second_correct) == (1, 3)
    assert compared.p_value == binomtest(3, 4).pvalue == 0.625  # 2 (1 + 4) / 16
    _, same = differences(FIRST, FIRST, ALONE, 15, 100, 0)
    assert same.p_value == 1 and same.difference_ci95 == [0, 0]


def test_of_several_seeds_the_mean_counts_and_the_spread_gives_welchs_interval():
    several = answers([1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0])  # Accuracies of 0.5 and 0.75.
    better = answers([1] * 7 + [0], [1] * 8)  # 0.875 and 1.
    found, compared = differences(several, better, ALONE, 15, 500, 0)
    assert found["accuracy"]["difference"] == pytest.approx(0.9375 - 0.625)
    assert (compared.only_first_correct, compared.only_second_correct) == (0, 4), (
        "of two examples half of the runs are right"
    )
    welch = ttest_ind([0.875, 1], [0.5, 0.75], equal_var=False).confidence_interval()
    assert found["accuracy"]["seeds_ci95"] == pytest.approx([welch.low, welch.high])


def test_copies_of_a_photo_widen_the_interval():
    gains = (answers([0] * 40 + [1] * 40), answers([1] * 20 + [0] * 20 + [1] * 40))
    width = []
    for groups_N in (np.arange(80), np.arange(80) // 10):
        low, high = differences(*gains, groups_N, 15, 2000, 0)[0]["accuracy"]["ci95"]
        width.append(high - low)
    assert width[1] > 2 * width[0]


def test_one_group_says_nothing_about_others():
    found, _ = differences(FIRST, SECOND, np.zeros(8), 15, 100, 0)
    assert found["accuracy"]["ci95"] == [-1, 1] and found["log_loss"]["ci95"] == pytest.approx([-36.04, 36.04], abs=0.01)
    assert found["ece"]["ci95"] == [-1, 1]


def test_interval_of_the_calibration_error_takes_off_its_bias():
    """On few photos the error of a calibrated model is above 0, and in a bootstrap sample once more."""
    rng = np.random.default_rng(0)
    confidence_N = rng.uniform(0.5, 1, 300)
    calibrated = rng.random(300) < confidence_N
    first = Answers(calibrated[None], np.ones((1, 300)), confidence_N[None])
    sure = Answers(calibrated[None], np.ones((1, 300)), np.full((1, 300), 0.999))
    found, _ = differences(first, sure, np.arange(300), 15, 1000, 0)
    low, high = found["ece"]["ci95"]
    assert low < found["ece"]["difference"] < high and low > 0
    assert (low + high) / 2 > found["ece"]["difference"], "the percentile interval would lie below"


def test_holm_corrects_for_the_number_of_tests():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # As in R: p.adjust(p, "holm").
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


def test_class_that_got_better_is_found_and_one_that_changed_by_chance_is_not():
    labels = np.asarray(["a"] * 20 + ["b"] * 20, object)
    first, second = answers([0] * 12 + [1] * 28), answers([1] * 30 + [0] * 2 + [1] * 8)
    a, b = class_differences(first, second, labels)
    assert (a["name"], a["first_recall"], a["recall"], a["num_examples"]) == ("a", 0.4, 1.0, 20)
    assert a["p_value"] == pytest.approx(2 / 2**12) and a["p_adjusted"] == pytest.approx(4 / 2**12)
    assert b["difference"] == pytest.approx(-0.1) and b["p_value"] == b["p_adjusted"] == 0.5
