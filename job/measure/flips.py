"""Comparison of an earlier model with a new one: their accuracies, the photos that flipped, effects of corrected labels."""

from typing import Literal, TypedDict

import numpy as np

from job.data.corrections import DROPPED
from job.data.examples import Examples
from job.measure import metrics

RIGHT_TO_WRONG, WRONG_TO_RIGHT = "right to wrong", "wrong to right"
Verdict = Literal["better", "worse", "may be chance", "only the test set changed", "nothing to compare with"]


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


class Judged(TypedDict):
    """The accuracy of the new model on test photos, and the comparison with the earlier model on those that it can answer.

    `accuracy` and `versus` are None without photos.
    """

    num_examples: int
    accuracy: float | None
    versus: Versus | None


class Corrected(TypedDict):
    """Labels that corrections changed (`changed`, by split), left as they are, or left out, and what follows from it.

    `by_given_labels` judges both models by the labels of the source, `by_corrected_labels` by the corrected ones, and
    `unchanged_labels` on the photos whose label no correction changed.
    """

    changed: dict[str, int]
    num_kept: int
    num_dropped: int
    by_given_labels: Judged
    by_corrected_labels: Judged
    unchanged_labels: Judged
    verdict: Verdict


def corrected(
    examples: Examples, earlier_T: np.ndarray, now_T: np.ndarray, *, only_test_changed: bool, resamples: int, seed: int
) -> Corrected | None:
    """Judge the answers for the T test photos by both kinds of labels. Return None if no correction applies to a photo.

    `now_T` and `earlier_T` are the classes that the new and the earlier model give, None where there is no answer. With
    `only_test_changed`, both were trained on the same photos and labels, so neither is called better.
    """
    if not examples.is_decided.any():
        return None
    test = examples.of("test")
    units_T = examples.units[test]

    def judged(labels_E: np.ndarray, chosen_T: np.ndarray) -> Judged:
        labels_T, both_T = labels_E[test], chosen_T & earlier_T.astype(bool)
        return {
            "num_examples": int(chosen_T.sum()),
            "accuracy": float((now_T == labels_T)[chosen_T].mean()) if chosen_T.any() else None,
            "versus": versus(labels_T[both_T], earlier_T[both_T], now_T[both_T], units_T[both_T], resamples, seed),
        }

    every_T = np.ones(len(test), bool)
    by_corrected = judged(examples["label"], every_T)
    return {
        "changed": {name: int(examples.is_relabelled[examples.of(name)].sum()) for name in ("train", "val", "test")},
        "num_kept": int((examples.is_decided & ~examples.is_relabelled)[examples.of()].sum()),
        "num_dropped": int((examples["reason"] == DROPPED).sum()),
        "by_given_labels": judged(examples.source_labels, every_T),
        "by_corrected_labels": by_corrected,
        "unchanged_labels": judged(examples["label"], ~examples.is_relabelled[test]),
        "verdict": _verdict(by_corrected["versus"], only_test_changed),
    }


def _verdict(found: Versus | None, only_test_changed: bool) -> Verdict:
    if found is None:
        return "nothing to compare with"
    if only_test_changed:
        return "only the test set changed"
    low, high = found["difference_ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "may be chance"
