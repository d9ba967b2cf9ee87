"""Thresholds on the probability of an answer: how precise the accepted answers are, and which threshold keeps a promise.

An answer is accepted if its calibrated probability is at least the threshold. N photos, G groups, T thresholds, C classes.
The choices are measured in docs/decisions/0047-thresholds.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self, TypedDict

import numpy as np

from job.data.examples import Examples
from job.data.neighbours import principal_components
from job.measure.calibration import Calibration, temperature
from job.measure.metrics import wilson
from job.measure.predicted import Predicted
from job.measure.probes import out_of_fold
from job.runtime.context import Context
from job.stores.arrays import ArrayStore

TARGETS = (0.9, 0.95, 0.98, 0.99)  # The precisions that the report tells about without being asked.
_SHOWN = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_LEVEL = 0.05  # The chance that a promise is made and not kept.
_MOST_CANDIDATES = 1000
_STEPS = 1e6  # A threshold has six digits and is below 1, so that it means the same for probabilities in float32.
_LIKELY, _ALMOST_CERTAIN = 0.8, 0.95
_MOST_PHOTOS, _MOST_TIMES_AS_MANY = 20_000, 20.0  # To ask for more photos than both is no advice.
_NUM_COMPONENTS, _NUM_FOLDS, _MOST_FOLDED = 256, 5, 20_000


class Measured(TypedDict):
    """Answers to held-out photos: the share that is accepted, and the share of those that is right, with its interval."""

    coverage: float
    precision: float | None
    precision_ci95: list[float]


class Promise(TypedDict):
    """A precision, and the threshold `min_probability` that keeps it, None if none is proven.

    Of `num_accepted` answers at the threshold `num_wrong` are wrong, where a group of photos counts as one answer. So
    `lower_bound` holds for the precision (Clopper and Pearson, 1934). `with_training_photos`: out-of-fold answers to
    training photos are among them. `more_photos` estimates how many more validation photos would prove a threshold; None if
    there is one, or if no number would.
    """

    target_precision: float
    min_probability: float | None
    num_accepted: int
    num_wrong: int
    lower_bound: float | None
    with_training_photos: bool
    more_photos: int | None
    held_out: Measured | None


class Curves(TypedDict):
    """Shares of held-out photos at each threshold. Thresholds that accept nothing are left out.

    `precision`: of the accepted answers, those that are right. `recall`: of all photos, those that are accepted and right.
    `coverage`: of all photos, those that are accepted. In `per_class` each is a list with a row for each class; there,
    `precision` is of the answers that name the class, the others are of the photos of the class. None: of no photo.
    """

    thresholds: list[float]
    precision: list[float | None]
    recall: list[float | None]
    coverage: list[float | None]
    per_class: dict[str, list[list[float | None]]]


class Thresholds(TypedDict):
    """Thresholds for the shipped model. `chosen` keeps the precision that was asked for, None if none was.

    `offered` has a promise for each of `TARGETS`.
    """

    chosen: Promise | None
    offered: list[Promise]
    curves: Curves


@dataclass(frozen=True)
class Answers:
    """Answers to N photos: their probabilities, whether they are right, and the group of each photo.

    Photos of a group (copies, or a patient) are not independent. So a group counts once: it is accepted if one of its photos
    is, and then right if all its accepted photos are.
    """

    confidence_N: np.ndarray
    correct_N: np.ndarray
    groups_N: np.ndarray

    @classmethod
    def of(cls, predicted: Predicted, labels_N: np.ndarray, groups_N: np.ndarray) -> Self:
        return cls(predicted.confidence_N, predicted.class_N == labels_N, groups_N)

    def with_others(self, others: Answers) -> Answers:
        """Return these answers and others, about photos of other groups."""
        mine, theirs = vars(self).values(), vars(others).values()
        return Answers(*(np.concatenate(both) for both in zip(mine, theirs, strict=True)))


class _Candidates:
    """Candidates for the threshold, the strictest first, at most 1,000, evenly spread over the groups.

    For each, shape (T,): how many groups it accepts, how many of those are wrong, and the share of wrong answers to expect.
    """

    def __init__(self, answers: Answers) -> None:
        _, group_N = np.unique(answers.groups_N, return_inverse=True)
        confidence_N = answers.confidence_N
        highest_G, highest_wrong_G = np.zeros((2, group_N.max() + 1))
        np.maximum.at(highest_G, group_N, confidence_N)
        np.maximum.at(highest_wrong_G, group_N, np.where(answers.correct_N, 0, confidence_N))
        some_G = np.sort(highest_G)[:: -(-len(highest_G) // _MOST_CANDIDATES)]
        steps_T = np.unique(np.floor(_STEPS * some_G[some_G > 0]))[::-1]
        self.thresholds_T = np.minimum(steps_T, _STEPS - 1) / _STEPS
        self.accepted_T, self.wrong_T = self._above(highest_G), self._above(highest_wrong_G)
        falling_N = np.sort(confidence_N)[::-1]
        count_T = np.maximum(self._above(confidence_N), 1)
        self.error_T = np.cumsum(1 - falling_N)[count_T - 1] / count_T

    def _above(self, values: np.ndarray) -> np.ndarray:
        """Return how many values are at least each threshold, shape (T,)."""
        return len(values) - np.searchsorted(np.sort(values), self.thresholds_T)


class Proof(NamedTuple):
    """A proven threshold, and how many of the answers it accepts and how many of those are wrong. A group counts once."""

    threshold: float
    num_accepted: int
    num_wrong: int


def proof(answers: Answers, target: float) -> Proof | None:
    """Return the lowest threshold that is proven to keep a precision of at least `target`, or None.

    Fixed-sequence testing: candidates are tested one after the other, each by the exact binomial test at 5%, until one
    fails. The one before it is proven. However many are tested, a promise is false in at most 5% of cases, because the order
    does not depend on which answers are right. It follows from the probabilities: from strict to lenient, leaving out each
    candidate that is less likely to pass than a more lenient one. A start at the strictest one would often end at once.

    Sources: Bauer, "Multiple testing in clinical trials" (1991); Angelopoulos et al., "Learn then Test" (2021).
    """
    candidates = _Candidates(answers)
    allowed_T, chance_T = _chances(candidates.accepted_T, candidates.error_T, target)
    of_later_T = np.append(np.maximum.accumulate(chance_T[::-1])[::-1][1:], 0.0)
    sequence = np.flatnonzero(chance_T > of_later_T)
    passed = np.logical_and.accumulate(candidates.wrong_T[sequence] <= allowed_T[sequence])
    if not passed.any():
        return None
    last = sequence[passed][-1]
    return Proof(float(candidates.thresholds_T[last]), int(candidates.accepted_T[last]), int(candidates.wrong_T[last]))


def _chances(accepted_T: np.ndarray, error_T: np.ndarray, target: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how many wrong answers each threshold may accept, -1 if even 0 prove nothing, and how likely so few are.

    `error_T` is the share of wrong answers to expect.
    """
    from scipy.stats import binom

    allowed_T = binom.ppf(_LEVEL, accepted_T, 1 - target) - 1
    return allowed_T, binom.cdf(allowed_T, accepted_T, error_T)


def more_photos(answers: Answers, target: float) -> int | None:
    """Estimate how many photos beside these would prove a threshold in four of five cases, rounded up to two digits.

    None: neither 20,000 photos nor 20 times as many would.
    """
    candidates = _Candidates(answers)
    seen_T = candidates.wrong_T / np.maximum(candidates.accepted_T, 1)
    for factor in np.geomspace(1.1, max(_MOST_TIMES_AS_MANY, _MOST_PHOTOS / len(answers.correct_N)), 25):
        accepted_T = np.floor(factor * candidates.accepted_T)
        _, chance_T = _chances(accepted_T, np.maximum(seen_T, candidates.error_T), target)
        if chance_T.max(initial=0) >= _LIKELY:
            more = (factor - 1) * len(answers.correct_N)
            unit = 10 ** max(0, int(np.log10(more)) - 1)
            return int(-(-more // unit) * unit)
    return None


def is_almost_certain(answers: Answers, target: float) -> bool:
    """Return whether so many answers will almost certainly prove a threshold, by their probabilities alone."""
    candidates = _Candidates(answers)
    _, chance_T = _chances(candidates.accepted_T, candidates.error_T, target)
    return bool(chance_T.max(initial=0) >= _ALMOST_CERTAIN)


def out_of_fold_answers(examples: Examples, features: ArrayStore, offsets_C: np.ndarray, context: Context) -> Answers:
    """Return answers to training photos, at most 20,000, by heads that were trained without them and their copies.

    Their probabilities are calibrated by a temperature of their own, and by the offsets of the shipped model.
    """
    train = examples.in_store_order("train")
    train = train[:: -(-len(train) // _MOST_FOLDED)]
    labels, groups, num_classes = examples.labels[train], examples.units[train], len(examples.class_names)
    components = principal_components(features, examples["row"][train], _NUM_COMPONENTS)
    probabilities_NC = out_of_fold(components, labels, groups, num_classes, _NUM_FOLDS, context.seed, context.stop.check)
    logits_NC = np.log(np.maximum(probabilities_NC, np.finfo(np.float64).tiny))
    calibration = Calibration(temperature(labels, logits_NC), offsets_C)
    return Answers.of(Predicted.of(labels, logits_NC, calibration), labels, groups)


def thresholds(
    target: float | None,
    *,
    labels_N: np.ndarray,
    predicted: Predicted,
    groups_N: np.ndarray,
    num_val: int,
    num_classes: int,
    of_training: Callable[[], Answers],
    familiar_N: np.ndarray | None = None,
) -> Thresholds:
    """Choose thresholds on the validation photos, the first `num_val` of N, and measure them on the others, held out.

    If it is not almost certain that the validation photos prove `target`, `of_training` is called for out-of-fold answers to
    training photos, which then count, too. The probabilities alone decide this, not which answers are right. Photos that are
    not familiar, boolean `familiar_N`, are never accepted.
    """
    if familiar_N is not None:
        accepted_N = np.where(familiar_N, predicted.confidence_N, -1.0)
        predicted = Predicted(predicted.class_N, accepted_N, predicted.of_label_N)
    validation = Answers.of(predicted[:num_val], labels_N[:num_val], groups_N[:num_val])
    on_test, labels_T = predicted[num_val:], labels_N[num_val:]
    chosen = None
    if target is not None:
        suffices = is_almost_certain(validation, target)
        answers = validation if suffices else validation.with_others(of_training())
        chosen = _promise(target, answers, on_test, labels_T, with_training_photos=not suffices)
    offered = [_promise(wanted, validation, on_test, labels_T) for wanted in TARGETS]
    found = [made["min_probability"] for made in (*offered, *([chosen] if chosen else ()))]
    shown = sorted({*_SHOWN, *(threshold for threshold in found if threshold is not None)})
    return {"chosen": chosen, "offered": offered, "curves": curves(labels_T, on_test, shown, num_classes)}


def _promise(
    target: float, answers: Answers, on_test: Predicted, labels_T: np.ndarray, *, with_training_photos: bool = False
) -> Promise:
    """Return the threshold that `answers` prove, measured on held-out photos."""
    from scipy.stats import beta

    found, bound, held_out = proof(answers, target), None, None
    if found:
        bound = float(beta.ppf(_LEVEL, found.num_accepted - found.num_wrong, found.num_wrong + 1))
        accepted_T = on_test.confidence_N >= found.threshold
        num_accepted, num_right = int(accepted_T.sum()), int((on_test.class_N == labels_T)[accepted_T].sum())
        held_out = Measured(
            coverage=num_accepted / len(labels_T),
            precision=num_right / num_accepted if num_accepted else None,
            precision_ci95=wilson(num_right, num_accepted),
        )
    return {
        "target_precision": target,
        "min_probability": found.threshold if found else None,
        "num_accepted": found.num_accepted if found else 0,
        "num_wrong": found.num_wrong if found else 0,
        "lower_bound": bound,
        "with_training_photos": with_training_photos,
        "more_photos": None if found else more_photos(answers, target),
        "held_out": held_out,
    }


def curves(labels_N: np.ndarray, predicted: Predicted, shown: Iterable[float], num_classes: int) -> Curves:
    """Return precision, recall and coverage at the thresholds `shown`, which are in rising order."""
    right_N = predicted.class_N == labels_N
    used = [threshold for threshold in shown if (predicted.confidence_N >= threshold).any()]

    def counts(classes_N: np.ndarray, chosen_N: np.ndarray | bool = True) -> np.ndarray:
        """Return the number of chosen photos of each class at each threshold, shape (C, T)."""
        above = (chosen_N & (predicted.confidence_N >= threshold) for threshold in used)
        rows = [np.bincount(classes_N[one], minlength=num_classes) for one in above]
        return np.reshape(rows, (len(used), num_classes)).T

    given_C1 = np.bincount(labels_N, minlength=num_classes)[:, None]
    accepted_CT, named_CT, right_CT = counts(labels_N), counts(predicted.class_N), counts(labels_N, right_N)
    accepted_T, right_T = accepted_CT.sum(axis=0), right_CT.sum(axis=0)
    return {
        "thresholds": used,
        "precision": _shares(right_T, accepted_T, 4),
        "recall": _shares(right_T, len(labels_N), 4),
        "coverage": _shares(accepted_T, len(labels_N), 4),
        "per_class": {
            "precision": [_shares(*pair, 3) for pair in zip(right_CT, named_CT, strict=True)],
            "recall": [_shares(right_T, given, 3) for right_T, given in zip(right_CT, given_C1, strict=True)],
            "coverage": [_shares(accepted_T, given, 3) for accepted_T, given in zip(accepted_CT, given_C1, strict=True)],
        },
    }


def _shares(parts_T: np.ndarray, wholes_T: np.ndarray | int, digits: int) -> list[float | None]:
    """Return rounded shares, None where the whole is 0."""
    shares_T = parts_T / np.maximum(wholes_T, 1)
    known_T = np.broadcast_to(wholes_T, shares_T.shape) > 0
    return [round(float(share), digits) if known else None for share, known in zip(shares_T, known_T, strict=True)]
