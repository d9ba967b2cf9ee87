"""Shortcuts: how well the size, the format or the light of a photo predict its class, whatever the photo shows.

A model learns what is easiest. If one class was collected as PNG files, or with another camera, it may learn that. Then it
is right on held-out photos from the same collection, and wrong everywhere else (Geirhos et al., "Shortcut Learning in Deep
Neural Networks", 2020).
"""

from typing import TypedDict

import numpy as np

from job.data.duplicates import folds_of_groups
from job.data.examples import Examples
from job.measure.metrics import confusion, wilson
from job.runtime.telemetry import spent_once

# Inputs of a small decision tree. Facts about the file have nothing to do with what the photo shows. Its light often has, so
# it is reported without a warning.
FILE_FACTS = ("size", "shape", "format", "EXIF data")
LIGHT_FACTS = ("brightness", "contrast")
# Warn if the lower end of the 95% interval is more than this above the accuracy of always guessing the largest class.
_CLEARLY = 0.05
_NUM_FOLDS = 5
_MAX_PHOTOS = 20_000


class Telling(TypedDict):
    """Predictability of the class from some facts, and the class that is easiest to predict (highest F1) with its recall."""

    accuracy: float
    accuracy_ci95: list[float]
    warning: bool
    best_class: str
    best_recall: float


class Fact(Telling):
    """Predictability of the class from one fact. `kind` is "file" or "light"."""

    fact: str
    kind: str


class Shortcuts(TypedDict):
    """Predictability of the class from each fact, and from all file facts. `largest_class` is the largest class' share."""

    num_examples: int
    largest_class: float
    facts: list[Fact]
    file: Telling


def shortcuts(examples: Examples, seed: int) -> Shortcuts:
    """Measure how well the file and the light of a photo predict its class. Cross-validated; copies stay in one fold."""
    indices = examples.of()
    indices = indices[np.argsort(examples.keys[indices], kind="stable")][:_MAX_PHOTOS]
    labels = examples.labels[indices]
    largest = float(np.bincount(labels).max() / len(labels))
    columns = _columns(examples, indices)
    kinds = {**dict.fromkeys(FILE_FACTS, "file"), **dict.fromkeys(LIGHT_FACTS, "light")}
    folds = folds_of_groups(examples.units[indices], labels, _NUM_FOLDS, seed)

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
    """Return out-of-fold predictions of a small decision tree."""
    with spent_once("imports"):
        from sklearn.tree import DecisionTreeClassifier

    predicted = np.zeros_like(labels_N)
    for fold in np.unique(fold_N):
        seen, unseen = fold_N != fold, fold_N == fold
        if not seen.any():  # All photos are copies of each other.
            continue
        tree = DecisionTreeClassifier(max_depth=5, min_samples_leaf=max(3, int(seen.sum()) // 200), random_state=0)
        predicted[unseen] = tree.fit(columns_NF[seen], labels_N[seen]).predict(columns_NF[unseen])
    return predicted
