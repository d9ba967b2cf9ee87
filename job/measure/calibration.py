"""Calibration: whether a classifier that says 80% is right in 80% of the cases. N examples, C classes."""

from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import scipy.optimize
from scipy.special import softmax

from job.measure.metrics import wilson

_COLDEST, _HOTTEST = 0.05, 20.0
_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_DRAWS, _VALUES_AT_ONCE = 1000, 1_000_000


class Bin(TypedDict):
    """Photos of about the same confidence: their mean confidence, and the share of them that is right, with its interval."""

    num_examples: int
    confidence: float
    accuracy: float
    accuracy_ci95: list[float]


def temperature(labels_N: np.ndarray, logits_NC: np.ndarray, missing: float | None = None) -> float:
    """Return the temperature T that makes softmax(logits / T) fit best, by log loss. It changes no predicted label.

    The target is 1 - `missing` for the label, and the rest for the other classes in equal parts. With all labels predicted
    correctly and nothing missing, the best T would be 0. So the default is what Platt proposes: as if two more examples had
    been seen, one of them wrong.

    Sources: Guo et al., "On Calibration of Modern Neural Networks" (2017); Platt, "Probabilistic Outputs for Support Vector
    Machines" (1999).
    """
    num_examples, num_classes = logits_NC.shape
    missing = 1 / (num_examples + 2) if missing is None else missing
    of_others = missing / max(1, num_classes - 1)
    centred_NC = logits_NC - logits_NC.max(axis=1, keepdims=True).astype(np.float64)
    own_N, all_N = centred_NC[np.arange(num_examples), labels_N], centred_NC.sum(axis=1)
    mean_target_logit = float(((1 - missing - of_others) * own_N + of_others * all_N).mean())

    def loss(log_temperature: float) -> float:
        coldness = np.exp(-log_temperature)
        return float(np.log(np.exp(coldness * centred_NC).sum(axis=1)).mean()) - coldness * mean_target_logit

    found = scipy.optimize.minimize_scalar(loss, bounds=(np.log(_COLDEST), np.log(_HOTTEST)), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True)
class Calibration:
    """The last step of a model: softmax(logits / temperature + offsets). `offsets_C` has a number for each class.

    The default changes nothing: it is softmax(logits).
    """

    temperature: float = 1.0
    offsets_C: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def probabilities(self, logits_NC: np.ndarray) -> np.ndarray:
        """Return probabilities, float64 (N, C)."""
        return softmax(logits_NC.astype(np.float64) / self.temperature + self.offsets_C, axis=1)


def balanced(labels_N: np.ndarray, logits_NC: np.ndarray, temperature: float, counts_C: np.ndarray) -> Calibration:
    """Return the calibration with the highest balanced accuracy on these examples.

    A class that is frequent in training gets an advantage, which its offset takes back: minus the logarithm of its share of
    the training examples `counts_C`, times a strength between 0 and 1. The weakest of the best strengths is taken.

    Source: Menon et al., "Long-tail learning via logit adjustment" (2021), section 4.1.
    """
    log_shares_C = np.log(np.maximum(counts_C, 1) / counts_C.sum())
    tried = [Calibration(temperature, -strength * log_shares_C) for strength in _STRENGTHS]
    weights_N = 1 / np.bincount(labels_N)[labels_N]

    def score(calibration: Calibration) -> float:
        return float(weights_N @ (calibration.probabilities(logits_NC).argmax(axis=1) == labels_N))

    return max(tried, key=score)


def expected_calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int) -> float:
    """Return the mean distance of confidence and accuracy over equally wide bins of confidence (Guo et al., 2017)."""
    gaps = np.bincount(bin_of(confidence_N, bins), confidence_N - correct_N, bins)
    return float(np.abs(gaps).sum() / len(confidence_N))


def calibration_error_floor(confidence_N: np.ndarray, bins: int, seed: int) -> float:
    """Return the 95% quantile of the calibration error that a perfectly calibrated classifier with these confidences shows.

    Even such a classifier has an error above 0 on few examples. The quantile is that of 1,000 draws of which are correct.
    """
    generator, sorted_N = np.random.default_rng(seed), np.sort(confidence_N)
    starts_B = np.flatnonzero(np.diff(bin_of(sorted_N, bins), prepend=-1))
    sums_B = np.add.reduceat(sorted_N, starts_B)
    num_at_once = max(1, _VALUES_AT_ONCE // len(sorted_N))
    errors = []
    for start in range(0, _DRAWS, num_at_once):
        shape = min(num_at_once, _DRAWS - start), len(sorted_N)
        correct = generator.random(shape, np.float32) < sorted_N.astype(np.float32)
        hits_DB = np.add.reduceat(correct, starts_B, axis=1, dtype=np.int64)
        errors.append(np.abs(hits_DB - sums_B).sum(axis=1) / len(sorted_N))
    return float(np.quantile(np.concatenate(errors), 0.95))


def reliability(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int) -> list[Bin]:
    """Return the bins of the reliability diagram that hold examples, from low to high confidence."""
    number_N = bin_of(confidence_N, bins)
    return [
        {
            "num_examples": int(inside.sum()),
            "confidence": float(confidence_N[inside].mean()),
            "accuracy": float(correct_N[inside].mean()),
            "accuracy_ci95": wilson(int(correct_N[inside].sum()), int(inside.sum())),
        }
        for inside in (number_N == number for number in np.unique(number_N))
    ]


def bin_of(confidence_N: np.ndarray, bins: int) -> np.ndarray:
    """Return the number of the bin of each confidence. The bins are equally wide, and the last one includes 1."""
    return np.minimum((confidence_N * bins).astype(int), bins - 1)
