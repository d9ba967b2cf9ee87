"""Probes of the data with heads on stored features: out-of-fold probabilities and the learning curve.

N examples, K components of their features, C classes. Nothing here influences the choice of the shipped model.
"""

from collections.abc import Callable, Iterator
from typing import TypedDict

import numpy as np
from scipy.special import xlogy

from job.data.duplicates import folds_of_groups
from job.data.moments import Moments
from job.measure.calibration import calibrated, temperature
from job.model.discriminant import Discriminant
from job.model.heads import Head
from job.model.regression import LogisticRegression

# Inverse regularisation strengths for components of unit variance, strongest first.
_STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3)
_MAX_ITERATIONS = 300
# With more classes, discriminants take their place. They cost little even then. With few classes they are less accurate.
_MANY_CLASSES = 50
_SHRINKAGES = (0.9, 0.7, 0.5, 0.3, 0.1)
_TEMPERATURE_PHOTOS = 2_000
_TOLERANCE = 5e-4  # Limit of the scaled gradient. It is small enough to rank photos and strengths.


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

    Strengths are tried in order until the log loss over all folds rises. `between` is called between fits and may raise.
    """
    fold_N = folds_of_groups(groups_N, labels_N, num_folds, seed)
    folds = [(fold_N != fold, fold_N == fold) for fold in np.unique(fold_N)]
    if num_classes > _MANY_CLASSES:
        return _out_of_fold_by_discriminants(components_NK, labels_N, [unseen for _, unseen in folds], num_classes, between)
    probes = [_Probe(components_NK[seen], labels_N[seen], num_classes) for seen, _ in folds]
    best_loss, best = np.inf, np.full((len(labels_N), num_classes), 1 / num_classes)
    for strength in _STRENGTHS:
        probabilities = np.full_like(best, 1 / num_classes)
        for (_, unseen), probe in zip(folds, probes, strict=True):
            between()
            probabilities[unseen] = probe.at(strength).probabilities(components_NK[unseen])
        loss = _log_loss(labels_N, probabilities)
        if loss >= best_loss:
            break
        best_loss, best = loss, probabilities
    return best


def _out_of_fold_by_discriminants(
    components_NK: np.ndarray,
    labels_N: np.ndarray,
    folds: list[np.ndarray],
    num_classes: int,
    between: Callable[[], None],
) -> np.ndarray:
    """Return what `out_of_fold` returns. What a fold has seen are the sums of all photos without its own."""

    def moments(chosen: np.ndarray | slice) -> Moments:
        return Moments.of(components_NK[chosen], labels_N[chosen], np.ones(len(labels_N[chosen])), num_classes)

    whole = moments(slice(None))
    discriminants = [Discriminant(whole - moments(unseen)) for unseen in folds]
    logits_NC, best_loss, best = np.empty((len(labels_N), num_classes), np.float32), np.inf, np.empty(0)
    for shrinkage in _SHRINKAGES:
        for unseen, discriminant in zip(folds, discriminants, strict=True):
            between()
            logits_NC[unseen] = discriminant.head(shrinkage).logits(components_NK[unseen])
        probabilities = _calibrated(labels_N, logits_NC)
        loss = _log_loss(labels_N, probabilities)
        if loss >= best_loss:
            break
        best_loss, best = loss, probabilities
    return best


def _calibrated(labels_N: np.ndarray, logits_NC: np.ndarray) -> np.ndarray:
    some = slice(None, None, max(1, len(labels_N) // _TEMPERATURE_PHOTOS))
    return calibrated(logits_NC, temperature(labels_N[some], logits_NC[some]))


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
    training photos and how often to draw it. Draw k of a smaller share is a part of draw k of a larger share.
    """
    components_NK, labels_N, groups_N = train
    points = []
    for fraction, num_draws in fractions:
        accuracies, sizes = [], []
        for draw in range(num_draws):
            between()
            chosen = _drawn(labels_N, groups_N, fraction, np.random.default_rng([seed, draw]))
            best_loss, accuracy = np.inf, 0.0
            for head in _heads(components_NK[chosen], labels_N[chosen], num_classes):
                logits = head.logits(val[0])
                probabilities = _calibrated(val[1], logits) if num_classes > _MANY_CLASSES else calibrated(logits, 1)
                loss = _log_loss(val[1], probabilities)
                if loss >= best_loss:
                    break
                best_loss, accuracy = loss, float((probabilities.argmax(1) == val[1]).mean())
            accuracies.append(accuracy)
            sizes.append(len(chosen))
        points.append(CurvePoint(fraction=fraction, num_examples=round(float(np.mean(sizes))), accuracies=accuracies))
    return points


def _heads(components_NK: np.ndarray, labels_N: np.ndarray, num_classes: int) -> Iterator[Head]:
    """Yield heads on these examples, the most regularised one first."""
    if num_classes > _MANY_CLASSES:
        discriminant = Discriminant(Moments.of(components_NK, labels_N, np.ones(len(labels_N)), num_classes))
        yield from (discriminant.head(shrinkage) for shrinkage in _SHRINKAGES)
    else:
        probe = _Probe(components_NK, labels_N, num_classes)
        yield from (probe.at(strength) for strength in _STRENGTHS)


class _Probe:
    """Heads on one set of examples, for growing strengths. Each fit starts from the one before it."""

    def __init__(self, components_NK: np.ndarray, labels_N: np.ndarray, num_classes: int) -> None:
        ones = np.ones(len(labels_N), np.float32)
        moments = Moments.of(components_NK, labels_N, ones, num_classes)
        self._regression = LogisticRegression(components_NK, labels_N, ones, moments)
        self._head = Head.zeros(components_NK.shape[1], num_classes)

    def at(self, strength: float) -> Head:
        self._head = self._regression.solve(strength, self._head, _MAX_ITERATIONS, tolerance=_TOLERANCE).head
        return self._head


def _drawn(labels_N: np.ndarray, groups_N: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    groups, group_of = np.unique(groups_N, return_inverse=True)
    place_of_group = generator.permutation(len(groups))
    chosen = []
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        members = members[np.argsort(place_of_group[group_of[members]], kind="stable")]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))


def _log_loss(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> float:
    own = np.maximum(probabilities_NC[np.arange(len(labels_N)), labels_N], 1e-12)
    return -float(xlogy(1.0, own).mean())
