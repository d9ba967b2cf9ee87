"""Metrics of a classifier, with confidence intervals. N examples, C classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from job.runtime.telemetry import spent_once

if TYPE_CHECKING:
    import scipy.sparse

# scikit-learn and SciPy take half a second to import, so functions import them only when they compute something.

LARGEST_LOG_LOSS = float(-np.log(np.finfo(np.float64).eps))  # Of a label with probability 0.
_RESAMPLES_AT_ONCE = 100
_MIN_STANDARD_ERRORS = 2  # A smaller difference is luck: it chose heads that were worse on other photos.


class GroupScores(TypedDict):
    """Accuracy in which each group (a patient, a camera) counts once, with intervals from a bootstrap over groups."""

    num_groups: int
    accuracy: float
    accuracy_ci95: list[float]
    photo_accuracy_ci95: list[float]


class Scores(TypedDict):
    """Scores of a classifier on some examples: the `M` of metrics.json."""

    num_examples: int
    accuracy: float
    accuracy_ci95: list[float]
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    log_loss_uncalibrated: NotRequired[float]
    ece: NotRequired[float]
    ece_uncalibrated: NotRequired[float]
    ece_floor: NotRequired[float]
    ece_bins: NotRequired[int]
    mean_confidence: NotRequired[float]
    used_for_choices: NotRequired[bool]
    by_group: NotRequired[GroupScores]


def summary(labels_N: np.ndarray, predicted_N: np.ndarray, probability_of_label_N: np.ndarray) -> Scores:
    """Return the scores of a classifier. Means over classes leave out classes without examples."""
    with spent_once("imports"):
        from sklearn.metrics import f1_score, recall_score

    present = np.unique(labels_N)
    correct = int((predicted_N == labels_N).sum())
    return {
        "num_examples": len(labels_N),
        "accuracy": correct / len(labels_N),
        "accuracy_ci95": wilson(correct, len(labels_N)),
        "balanced_accuracy": float(recall_score(labels_N, predicted_N, labels=present, average="macro")),
        "macro_f1": float(f1_score(labels_N, predicted_N, labels=present, average="macro", zero_division=0)),
        "log_loss": log_loss(probability_of_label_N),
    }


def log_loss(probability_of_label_N: np.ndarray, weights_N: np.ndarray | None = None) -> float:
    """Return the mean negative logarithm, perhaps weighted, of the probability that each example's own label got."""
    return float(np.average(log_losses(probability_of_label_N), weights=weights_N))


def log_losses(probability_of_label_N: np.ndarray) -> np.ndarray:
    """Return the negative logarithm of the probability that each example's own label got, at most 36.04."""
    return -np.log(np.maximum(probability_of_label_N, np.finfo(np.float64).eps))


def preferred(losses_N: Mapping[str, np.ndarray]) -> str:
    """Return the first model, or a later one whose log loss is clearly lower: by two standard errors of the difference.

    `losses_N` has the log losses of the same N photos for each model.
    """
    best = next(iter(losses_N))
    for name, of_model_N in losses_N.items():
        gains_N = losses_N[best] - of_model_N
        if gains_N.mean() > _MIN_STANDARD_ERRORS * gains_N.std() / np.sqrt(len(gains_N)):
            best = name
    return best


def by_group(correct_N: np.ndarray, groups_N: np.ndarray, resamples: int, seed: int) -> GroupScores:
    """Return the accuracy by group: the mean over groups of the share of their photos that are right.

    There is an interval of this accuracy and one of the accuracy by photo. Both are from the bootstrap over groups.
    """
    _, group_N, sizes_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    share_N = 1 / sizes_G[group_N]
    counts = np.stack([correct_N * share_N, share_N, correct_N, np.ones(len(correct_N))], axis=1)
    ends = bootstrap(counts, groups_N, lambda s: s[:, ::2] / s[:, 1::2], resamples, seed)
    return {
        "num_groups": len(sizes_G),
        "accuracy": float((correct_N * share_N).sum() / len(sizes_G)),
        "accuracy_ci95": ends[:, 0].tolist(),
        "photo_accuracy_ci95": ends[:, 1].tolist(),
    }


def wilson(successes: int, trials: int) -> list[float]:
    """Return the lower and upper end of Wilson's 95% interval of a proportion.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    with spent_once("imports"):
        from scipy.stats import binomtest

    if trials == 0:
        return [0.0, 1.0]
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def confusion(labels_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix: counts (C, C), rows are given labels, columns are predicted labels."""
    from sklearn.metrics import confusion_matrix

    return np.asarray(confusion_matrix(labels_N, predicted_N, labels=range(num_classes)))


def per_class(
    labels_N: np.ndarray,
    predicted_N: np.ndarray,
    groups_N: np.ndarray,
    class_names: tuple[str, ...],
    resamples: int,
    seed: int,
) -> list[dict[str, object]]:
    """Return precision and recall of each class with Wilson's intervals, and F1 with a bootstrap interval.

    Precision is None if the class is never predicted. The bootstrap resamples whole duplicate groups.
    """
    from scipy.sparse import hstack

    num_classes = len(class_names)
    matrix = confusion(labels_N, predicted_N, num_classes)
    given, predicted, hits = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    given_NC, predicted_NC = (_one_hot(classes_N, num_classes) for classes_N in (labels_N, predicted_N))
    counts = hstack([given_NC.multiply(predicted_NC), given_NC + predicted_NC])

    def f1(sums_RK: np.ndarray) -> np.ndarray:
        hits_RC, either_RC = np.hsplit(sums_RK, 2)
        return 2 * hits_RC / np.maximum(either_RC, 1e-12)

    f1_intervals = bootstrap(counts, groups_N, f1, resamples, seed)
    return [
        {
            "class": name,
            "num_examples": int(given[k]),
            "precision": _share(hits[k], predicted[k]) if predicted[k] else None,
            "precision_ci95": wilson(int(hits[k]), int(predicted[k])),
            "recall": _share(hits[k], given[k]),
            "recall_ci95": wilson(int(hits[k]), int(given[k])),
            "f1": _share(2 * hits[k], given[k] + predicted[k]),
            "f1_ci95": [float(f1_intervals[0][k]), float(f1_intervals[1][k])],
        }
        for k, name in enumerate(class_names)
    ]


def _one_hot(classes_N: np.ndarray, num_classes: int) -> scipy.sparse.csr_array:
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(classes_N)), (np.arange(len(classes_N)), classes_N)), (len(classes_N), num_classes))


@dataclass(frozen=True)
class Comparison:
    """Comparison of two classifiers on the same examples.

    `difference` is the second one's accuracy minus the first one's. `p_value` is from McNemar's exact test (a two-sided
    binomial test on the disagreements).
    """

    num_examples: int
    only_first_correct: int
    only_second_correct: int
    difference: float
    difference_ci95: list[float]
    p_value: float


def compare(
    labels_N: np.ndarray,
    first_N: np.ndarray,
    second_N: np.ndarray,
    groups_N: np.ndarray,
    resamples: int,
    seed: int,
    weights_N: np.ndarray | None = None,
) -> Comparison:
    """Compare two classifiers by their predictions for the same examples. The bootstrap resamples whole duplicate groups.

    With weights, the differences are those of weighted accuracies.
    """
    gain_N = (second_N == labels_N).astype(np.float64) - (first_N == labels_N)
    return compare_gains(gain_N, groups_N, resamples, seed, weights_N)


def compare_gains(
    gain_N: np.ndarray, groups_N: np.ndarray, resamples: int, seed: int, weights_N: np.ndarray | None = None
) -> Comparison:
    """Compare two classifiers by how much more the second one is right about each example, from -1 to 1.

    A gain between these is a mean over several classifiers of each kind. The exact test is then the sign test.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((gain_N < 0).sum()), int((gain_N > 0).sum())
    weights = np.ones(len(gain_N)) if weights_N is None else weights_N
    counts = np.stack([gain_N * weights, weights], axis=1)
    low, high = bootstrap(counts, groups_N, lambda s: s[:, :1] / s[:, 1:], resamples, seed, limits=(-1.0, 1.0))
    disagreements = only_first + only_second
    p_value = float(binomtest(only_second, disagreements).pvalue) if disagreements else 1.0
    interval = [float(low[0]), float(high[0])]
    difference = float(np.average(gain_N, weights=weights))
    return Comparison(len(gain_N), only_first, only_second, difference, interval, p_value)


def bootstrap(
    counts_NK: np.ndarray | scipy.sparse.sparray,
    groups_N: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: int,
    seed: int,
    limits: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """Return the 95% bootstrap interval of a statistic of K summed counts. Whole groups are resampled. Shape (2, S).

    `statistic` gets the sums of some resamples, (R, K), and returns its S values for each of them, (R, S). A single group
    says nothing about other groups. Then the interval is that between the `limits` of the statistic.
    """
    from scipy.sparse import csr_array

    _, group_N = np.unique(groups_N, return_inverse=True)
    num_groups = int(group_N.max()) + 1
    members_GN = csr_array((np.ones(len(group_N)), (group_N, np.arange(len(group_N)))))
    sums_GK = members_GN @ csr_array(counts_NK)  # Of many classes, a photo counts for two.
    if num_groups == 1:
        return np.repeat(np.asarray(limits)[:, None], statistic(sums_GK.toarray()).shape[1], axis=1)
    drawn = [statistic(times @ sums_GK) for times in _draws(num_groups, resamples, seed)]
    return np.percentile(np.concatenate(drawn), (2.5, 97.5), axis=0)


def _draws(num_groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each group is drawn, for some resamples at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, resamples - start)
        drawn = (generator.integers(0, num_groups, num_groups, np.int32) for _ in range(count))
        yield np.stack([np.bincount(groups, minlength=num_groups) for groups in drawn]).astype(np.float64)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
