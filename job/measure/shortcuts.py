"""Whether the label can be told without looking at what a photo shows: from its size, its format, its light.

A model takes the easiest way. Where one class was collected as PNG, or with another camera, it learns that, is right on
held-out photos from the same collection, and wrong everywhere else (Geirhos et al., "Shortcut Learning in Deep Neural
Networks", 2020).
"""

from typing import TypedDict

import numpy as np

from job.data.duplicates import folds_of_groups
from job.data.examples import Examples
from job.measure.metrics import confusion, wilson
from job.runtime.telemetry import spent_once

# What a small tree is given to tell the class by. Facts of the file have nothing to do with what the photo shows; its light
# often has, and is reported without a warning of its own.
FILE_FACTS = ("size", "shape", "format", "EXIF data")
LIGHT_FACTS = ("brightness", "contrast")
# The warning: at 95% that much better than always naming the largest class.
_CLEARLY = 0.05
_NUM_FOLDS = 5
_MAX_PHOTOS = 20_000


class Telling(TypedDict):
    """How well something tells the class, and which class is told best by it, with its recall."""

    accuracy: float
    accuracy_ci95: list[float]
    warning: bool
    best_class: str
    best_recall: float


class Fact(Telling):
    """How well one fact tells the class. `kind` is file or light."""

    fact: str
    kind: str


class Shortcuts(TypedDict):
    """How well each fact, and all facts of the file together, tell the class. `largest_class` is the share of it."""

    num_examples: int
    largest_class: float
    facts: list[Fact]
    file: Telling


def shortcuts(examples: Examples, seed: int) -> Shortcuts:
    """Return how well facts beside what a photo shows tell its class; cross-validated, copies never torn apart."""
    indices = examples.of()
    indices = indices[np.argsort(examples.keys[indices], kind="stable")][:_MAX_PHOTOS]
    labels = examples.labels[indices]
    largest = float(np.bincount(labels).max() / len(labels))
    columns = _columns(examples, indices)
    kinds = {**dict.fromkeys(FILE_FACTS, "file"), **dict.fromkeys(LIGHT_FACTS, "light")}
    folds = folds_of_groups(examples["group"][indices], labels, _NUM_FOLDS, seed)

    def told_by(*facts: str) -> Telling:
        predicted = _predicted(np.concatenate([columns[f] for f in facts], axis=1), labels, folds)
        matrix = confusion(labels, predicted, len(examples.class_names))
        hits, given, said = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
        best = int(np.argmax(2 * hits / np.maximum(given + said, 1)))  # By its F1.
        interval = wilson(int(hits.sum()), len(labels))
        return {
            "accuracy": float(hits.sum() / len(labels)),
            "accuracy_ci95": interval,
            "warning": interval[0] > largest + _CLEARLY,
            "best_class": examples.class_names[best],
            "best_recall": float(hits[best] / max(given[best], 1)),
        }

    found: list[Fact] = [{"fact": fact, "kind": kind, **told_by(fact)} for fact, kind in kinds.items()]
    for fact in found:
        fact["warning"] = fact["warning"] and fact["kind"] == "file"
    return {"num_examples": len(labels), "largest_class": largest, "facts": found, "file": told_by(*FILE_FACTS)}


def _columns(examples: Examples, indices: np.ndarray) -> dict[str, np.ndarray]:
    width, height = (np.log(examples[name][indices].astype(np.float64)) for name in ("width", "height"))
    kinds = np.char.add(examples["format"][indices].astype(str), examples["mode"][indices].astype(str))
    one_hot = kinds[:, None] == np.unique(kinds)[None, :]
    return {
        "size": np.stack([width, height], axis=1),
        "shape": (width - height)[:, None],
        "format": one_hot.astype(np.float64),
        "EXIF data": examples["has_exif"][indices].astype(np.float64)[:, None],
        **{name: examples[name][indices].astype(np.float64)[:, None] for name in LIGHT_FACTS},
    }


def _predicted(columns_NF: np.ndarray, labels_N: np.ndarray, fold_N: np.ndarray) -> np.ndarray:
    """Out-of-fold predictions of a small decision tree."""
    with spent_once("imports"):
        from sklearn.tree import DecisionTreeClassifier

    predicted = np.zeros_like(labels_N)
    for fold in np.unique(fold_N):
        seen, unseen = fold_N != fold, fold_N == fold
        if not seen.any():  # All photos are copies of one.
            continue
        tree = DecisionTreeClassifier(max_depth=5, min_samples_leaf=max(3, int(seen.sum()) // 200), random_state=0)
        predicted[unseen] = tree.fit(columns_NF[seen], labels_N[seen]).predict(columns_NF[unseen])
    return predicted
