"""Effects of corrected labels: the accuracy before and after, by the labels of the source and by the corrected ones."""

from typing import Literal, TypedDict

import numpy as np

from job.data.corrections import DROPPED
from job.data.examples import Examples
from job.measure.flips import Versus, versus

Verdict = Literal["better", "worse", "may be chance", "only the test set changed", "nothing to compare with"]


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
