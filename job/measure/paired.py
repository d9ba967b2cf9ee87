"""Comparison of two kinds of classifiers on the same N examples. The S classifiers of a kind differ by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import scipy.sparse

from job.measure import metrics
from job.measure.calibration import bin_of, expected_calibration_error

SIGNIFICANT = 0.05  # Of p-values that are corrected for their number.
SCORES = ("accuracy", "log_loss", "ece")


@dataclass(frozen=True)
class Answers:
    """The answers of S classifiers to N examples. All arrays have the shape (S, N).

    `correct_SN` is boolean, `loss_SN` the log loss, `confidence_SN` the probability of the predicted class.
    """

    correct_SN: np.ndarray
    loss_SN: np.ndarray
    confidence_SN: np.ndarray

    def scores(self, bins: int) -> list[dict[str, float]]:
        """Return the accuracy, the log loss and the expected calibration error of each classifier."""
        return [
            {
                "accuracy": float(correct_N.mean()),
                "log_loss": float(loss_N.mean()),
                "ece": expected_calibration_error(confidence_N, correct_N, bins),
            }
            for correct_N, loss_N, confidence_N in zip(self.correct_SN, self.loss_SN, self.confidence_SN, strict=True)
        ]

    @property
    def share_right(self) -> np.ndarray:
        """The share of the classifiers that are right about each example, (N,)."""
        return np.asarray(self.correct_SN.mean(axis=0))


class Difference(TypedDict):
    """A score of the second kind minus that of the first, with its 95% interval, which is about other examples.

    `seeds_ci95` is the 95% interval about other seeds (Welch, 1947), None unless there are several of each kind.
    """

    difference: float
    ci95: list[float]
    seeds_ci95: list[float] | None


class ClassDifference(TypedDict):
    """The recall of a class by the first kind and by the second. `p_adjusted` is corrected for the number of classes."""

    name: str
    num_examples: int
    first_recall: float
    recall: float
    difference: float
    p_value: float
    p_adjusted: float


def differences(
    first: Answers, second: Answers, groups_N: np.ndarray, bins: int, resamples: int, seed: int
) -> tuple[dict[str, Difference], metrics.Comparison]:
    """Return the differences of the scores, by name, and the exact test of the difference of the accuracy.

    The intervals are those of the paired bootstrap, which draws whole groups of examples for both kinds at once (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 8). That of the calibration error is the basic one, which
    takes off the bias of this error (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2).
    """
    compared = metrics.compare_gains(second.share_right - first.share_right, groups_N, resamples, seed)
    of_seeds = [{name: [run[name] for run in kind.scores(bins)] for name in SCORES} for kind in (first, second)]
    intervals = {
        "accuracy": compared.difference_ci95,
        "log_loss": _interval_of_mean(second.loss_SN.mean(0) - first.loss_SN.mean(0), groups_N, resamples, seed),
        "ece": _interval_of_ece(first, second, groups_N, bins, resamples, seed),
    }
    found = {name: float(np.mean(of_seeds[1][name]) - np.mean(of_seeds[0][name])) for name in SCORES}
    low, high = intervals["ece"]
    intervals["ece"] = [max(-1.0, 2 * found["ece"] - high), min(1.0, 2 * found["ece"] - low)]
    return {
        name: {
            "difference": found[name],
            "ci95": intervals[name],
            "seeds_ci95": _between_seeds(of_seeds[0][name], of_seeds[1][name]),
        }
        for name in SCORES
    }, compared


def class_differences(first: Answers, second: Answers, labels_N: np.ndarray) -> list[ClassDifference]:
    """Compare the recall of each class, by the exact sign test of its examples, and Holm's correction for all classes.

    With one classifier of each kind, the sign test is McNemar's. Source: Holm, "A simple sequentially rejective multiple
    test procedure" (1979).
    """
    found: list[ClassDifference] = []
    for name in np.unique(labels_N):
        shares = [kind.share_right[labels_N == name] for kind in (first, second)]
        compared = metrics.compare_gains(shares[1] - shares[0], np.zeros(len(shares[0])), 1, 0)
        found.append(
            {
                "name": str(name),
                "num_examples": len(shares[0]),
                "first_recall": float(shares[0].mean()),
                "recall": float(shares[1].mean()),
                "difference": compared.difference,
                "p_value": compared.p_value,
                "p_adjusted": 1.0,
            }
        )
    for row, adjusted in zip(found, holm([row["p_value"] for row in found]), strict=True):
        row["p_adjusted"] = adjusted
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for their number, so that the chance of a single false finding stays what they say.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    p_values_M = np.asarray(p_values, np.float64)
    order_M = np.argsort(p_values_M, kind="stable")
    adjusted_M = np.empty(len(p_values_M))
    steps_M = p_values_M[order_M] * np.arange(len(p_values_M), 0, -1)
    adjusted_M[order_M] = np.minimum(np.maximum.accumulate(steps_M), 1.0)
    return [float(p) for p in adjusted_M]


def _interval_of_mean(values_N: np.ndarray, groups_N: np.ndarray, resamples: int, seed: int) -> list[float]:
    counts_NK, most = np.stack([values_N, np.ones(len(values_N))], axis=1), metrics.LARGEST_LOG_LOSS
    ends = metrics.bootstrap(counts_NK, groups_N, lambda s: s[:, :1] / s[:, 1:], resamples, seed, limits=(-most, most))
    return [float(end) for end in ends[:, 0]]


def _interval_of_ece(
    first: Answers, second: Answers, groups_N: np.ndarray, bins: int, resamples: int, seed: int
) -> list[float]:
    """Return the percentile interval of the difference of the expected calibration errors, means over the classifiers."""
    counts_NK = scipy.sparse.hstack([_gaps(first, bins), _gaps(second, bins), np.ones((len(groups_N), 1))])
    num_first, num_second = len(first.correct_SN), len(second.correct_SN)

    def difference(sums_RK: np.ndarray) -> np.ndarray:
        of_first_RK, of_second_RK, num_examples_R1 = np.split(sums_RK, [num_first * bins, -1], axis=1)
        error_R1, other_R1 = (np.abs(of_RK).sum(axis=1, keepdims=True) for of_RK in (of_first_RK, of_second_RK))
        return np.asarray((other_R1 / num_second - error_R1 / num_first) / num_examples_R1)

    ends = metrics.bootstrap(counts_NK, groups_N, difference, resamples, seed, limits=(-3.0, 3.0))  # Basic: -1 to 1.
    return [float(end) for end in ends[:, 0]]


def _gaps(kind: Answers, bins: int) -> scipy.sparse.sparray:
    """Return the confidence in each example, minus 1 if it is right, in the column of its bin: sparse (N, S x bins)."""
    num_classifiers, num_examples = kind.correct_SN.shape
    columns_SN = bin_of(kind.confidence_SN, bins) + bins * np.arange(num_classifiers)[:, None]
    rows_SN = np.broadcast_to(np.arange(num_examples), columns_SN.shape)
    values_SN = kind.confidence_SN - kind.correct_SN
    places = (rows_SN.ravel(), columns_SN.ravel())
    return scipy.sparse.csr_array((values_SN.ravel(), places), (num_examples, num_classifiers * bins))


def _between_seeds(first_S: Sequence[float], second_S: Sequence[float]) -> list[float] | None:
    """Return Welch's 95% interval of the difference of two means; None if a kind has one value, or no value varies.

    Source: Welch, "The generalization of Student's problem when several different population variances are involved" (1947).
    """
    from scipy.stats import t  # Its ttest_ind warns if all values of a kind are equal, as on few examples.

    kinds = [np.asarray(values_S, np.float64) for values_S in (first_S, second_S)]
    if min(map(len, kinds)) < 2 or all(np.ptp(values_S) == 0 for values_S in kinds):
        return None
    variances = [values_S.var(ddof=1) / len(values_S) for values_S in kinds]
    freedom = sum(variances) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, kinds, strict=True))
    difference, half = kinds[1].mean() - kinds[0].mean(), t.ppf(0.975, freedom) * np.sqrt(sum(variances))
    return [float(difference - half), float(difference + half)]
