"""Probes of the data with heads on stored features: out-of-fold probabilities and the learning curve.

N examples, K components of their features, C classes. Nothing here influences the choice of the shipped model.
"""

from collections.abc import Callable
from typing import TypedDict

import numpy as np

from job.data.duplicates import folds_of_groups
from job.data.moments import Moments
from job.measure.calibration import Calibration, temperature
from job.measure.metrics import log_loss
from job.model.heads import Discriminant, Head
from job.model.regression import LogisticRegression

# With more classes, discriminants take the place of regressions. They cost little even then. With few classes they are
# less accurate.
_MANY_CLASSES = 50
# Most regularised first: shrinkages of discriminants, and inverse strengths of regressions on components of unit variance.
_SHRINKAGES, _STRENGTHS = (0.9, 0.7, 0.5, 0.3, 0.1), (0.003, 0.01, 0.03, 0.1, 0.3)
_MAX_ITERATIONS = 300
_ENOUGH_PHOTOS = 10_000  # They find the strength that all photos find: docs/decisions/0027-large-sets.md.
_TEMPERATURE_PHOTOS = 2_000


def out_of_fold(
    components_NK: np.ndarray,
    labels_N: np.ndarray,
    groups_N: np.ndarray,
    num_classes: int,
    num_folds: int,
    seed: int,
    between: Callable[[], None],
) -> np.ndarray:
    """Return the class probabilities (N, C) of each example from a head that was trained without it and its copies.

    Strengths are tried in order until the log loss over all folds rises; over the first fold, if regressions have more than
    10,000 examples. `between` is called between fits and may raise.
    """
    fold_N = folds_of_groups(groups_N, labels_N, num_folds, seed)
    folds = [fold_N == fold for fold in np.unique(fold_N)]
    whole = Moments.of(components_NK, labels_N, np.ones(len(labels_N)), num_classes)
    probabilities_NC = np.empty((len(labels_N), num_classes))

    def probe(unseen_N: np.ndarray) -> _Probe:
        between()
        own = Moments.of(components_NK[unseen_N], labels_N[unseen_N], np.ones(unseen_N.sum()), num_classes)
        return _Probe(components_NK, labels_N, ~unseen_N, whole - own)

    few = len(labels_N) <= _ENOUGH_PHOTOS or num_classes > _MANY_CLASSES
    judging = folds if few else folds[:1]
    probes = [probe(unseen_N) for unseen_N in judging]
    judged_N = np.logical_or.reduce(judging)

    def logits(strength: float) -> np.ndarray:
        logits_NC = np.empty((len(labels_N), num_classes), np.float32)
        for unseen_N, one in zip(judging, probes, strict=True):
            between()
            logits_NC[unseen_N] = one.at(strength).logits(components_NK[unseen_N])
        return logits_NC[judged_N]

    strength, probabilities_NC[judged_N] = _best(logits, labels_N[judged_N], num_classes)
    for unseen_N in folds[len(judging) :]:
        probabilities_NC[unseen_N] = probe(unseen_N).at(strength).probabilities(components_NK[unseen_N])
    return probabilities_NC


class CurvePoint(TypedDict):
    """Validation accuracies of heads trained on `num_examples` training photos, one for each draw of these photos."""

    fraction: float
    num_examples: int
    accuracies: list[float]


def learning_curve(
    train: tuple[np.ndarray, np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    fractions: tuple[tuple[float, int], ...],
    seed: int,
    between: Callable[[], None],
) -> list[CurvePoint]:
    """Measure the validation accuracy of heads that are trained on parts of the training photos.

    `train` is (components, labels, groups), `val` is (components, labels), and `fractions` has pairs: a share of the
    training photos and how often to draw it. Draw k of a smaller share is a part of draw k of a larger share. The strength
    is chosen once, on all training photos or 10,000 of them.
    """
    components_NK, labels_N, groups_N = train

    def probe(fraction: float, draw: int) -> tuple[_Probe, int]:
        between()
        chosen = _drawn(labels_N, groups_N, fraction, np.random.default_rng([seed, draw]))
        moments = Moments.of(components_NK[chosen], labels_N[chosen], np.ones(len(chosen)), num_classes)
        return _Probe(components_NK, labels_N, chosen, moments), len(chosen)

    largest, _ = probe(min(1.0, _ENOUGH_PHOTOS / len(labels_N)), 0)
    strength, _ = _best(lambda strength: largest.at(strength).logits(val[0]), val[1], num_classes)
    points = []
    for fraction, num_draws in fractions:
        probes = [probe(fraction, draw) for draw in range(num_draws)]
        accuracies = [float((one.at(strength).logits(val[0]).argmax(1) == val[1]).mean()) for one, _ in probes]
        num_examples = round(float(np.mean([size for _, size in probes])))
        points.append(CurvePoint(fraction=fraction, num_examples=num_examples, accuracies=accuracies))
    return points


class _Probe:
    """Heads on some of the examples, for growing strengths. Each regression starts from the one before it."""

    def __init__(self, components_NK: np.ndarray, labels_N: np.ndarray, chosen: np.ndarray, moments: Moments) -> None:
        num_classes = len(moments.weight_C)
        self._discriminant = Discriminant(moments) if num_classes > _MANY_CLASSES else None
        if self._discriminant is None:
            labels = labels_N[chosen]
            self._regression = LogisticRegression(components_NK[chosen], labels, np.ones(len(labels), np.float32), moments)
            self._head = Head.zeros(components_NK.shape[1], num_classes)

    def at(self, strength: float) -> Head:
        if self._discriminant is not None:
            return self._discriminant.head(strength)
        self._head = self._regression.solve(strength, self._head, _MAX_ITERATIONS).head
        return self._head


def _best(logits: Callable[[float], np.ndarray], labels_M: np.ndarray, num_classes: int) -> tuple[float, np.ndarray]:
    """Try strengths until the log loss rises. Return the best one, and the probabilities (M, C) from its logits.

    Regressions are calibrated by their regularisation, and discriminants on some of the examples.
    """
    some = slice(None, None, max(1, len(labels_M) // _TEMPERATURE_PHOTOS))
    is_many, best_loss, best = num_classes > _MANY_CLASSES, np.inf, (0.0, np.empty(0))
    for strength in _SHRINKAGES if is_many else _STRENGTHS:
        logits_MC = logits(strength)
        calibration = Calibration(temperature(labels_M[some], logits_MC[some])) if is_many else Calibration()
        probabilities_MC = calibration.probabilities(logits_MC)
        loss = log_loss(probabilities_MC[np.arange(len(labels_M)), labels_M])
        if loss >= best_loss:
            break
        best_loss, best = loss, (strength, probabilities_MC)
    return best


def _drawn(labels_N: np.ndarray, groups_N: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    groups, group_of = np.unique(groups_N, return_inverse=True)
    place_of_group = generator.permutation(len(groups))
    chosen = []
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        members = members[np.argsort(place_of_group[group_of[members]], kind="stable")]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))
