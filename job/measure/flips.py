"""Comparison of an earlier model with a new one: their accuracies on the same photos, and the photos that flipped."""

from typing import TypedDict

import numpy as np

from job.measure import metrics

RIGHT_TO_WRONG, WRONG_TO_RIGHT = "right to wrong", "wrong to right"


class Versus(TypedDict):
    """The accuracies of two models on the same photos. `difference` is the new one's minus the earlier one's.

    `right_to_wrong` photos are right by the earlier model and wrong by the new one, `wrong_to_right` photos the other way
    round. `p_value` is from McNemar's exact test.
    """

    num_examples: int
    earlier_accuracy: float
    accuracy: float
    difference: float
    difference_ci95: list[float]
    p_value: float
    right_to_wrong: int
    wrong_to_right: int


def versus(
    labels_N: np.ndarray, earlier_N: np.ndarray, now_N: np.ndarray, groups_N: np.ndarray, resamples: int, seed: int
) -> Versus | None:
    """Compare two models by their answers for the same photos. Return None if there are no photos."""
    if not len(labels_N):
        return None
    found = metrics.compare(labels_N, earlier_N, now_N, groups_N, resamples, seed)
    return {
        "num_examples": found.num_examples,
        "earlier_accuracy": float((earlier_N == labels_N).mean()),
        "accuracy": float((now_N == labels_N).mean()),
        "difference": found.difference,
        "difference_ci95": found.difference_ci95,
        "p_value": found.p_value,
        "right_to_wrong": found.only_first_correct,
        "wrong_to_right": found.only_second_correct,
    }


def flips(labels_N: np.ndarray, earlier_N: np.ndarray, now_N: np.ndarray) -> np.ndarray:
    """Return for each photo RIGHT_TO_WRONG, WRONG_TO_RIGHT or None. `earlier_N` is None for photos that are not compared."""
    is_compared = earlier_N.astype(bool)
    was_right, is_right = earlier_N == labels_N, now_N == labels_N
    flip_N = np.full(len(labels_N), None, object)
    flip_N[is_compared & was_right & ~is_right] = RIGHT_TO_WRONG
    flip_N[is_compared & ~was_right & is_right] = WRONG_TO_RIGHT
    return flip_N
