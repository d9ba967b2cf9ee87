"""audit: check the data with stored features, before anything is trained on it.

It finds copies that no hash finds (cropped, mirrored, framed, the same scene photographed again), labels that are probably
wrong, photos unlike all others, and the gain to expect from more photos. Photos that it excludes are used by neither head
nor fine_tune. Labels are only listed, never changed.
"""

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np

from job.config import AuditConfig
from job.data.duplicates import group_ids, without_conflicts, without_leaks
from job.data.examples import Examples
from job.data.neighbours import Neighbours, nearest, principal_components
from job.data.registration import same_scene
from job.errors import DataUnusable
from job.measure.probes import learning_curve, out_of_fold
from job.reporting.gallery import Gallery, crossings
from job.reporting.summaries import Audited, LabelIssues, LateCopies, LearningCurve
from job.runtime.context import Context
from job.runtime.telemetry import spent_once
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore
from job.text.untrusted import csv_of

PICTURES = "stages/audit/pictures"
TABLE = "stages/audit/examples.parquet"
SUMMARY = "stages/audit/audit.json"
LABEL_ISSUES = "stages/audit/label_issues.csv"

_NUM_COMPONENTS = 256
_NUM_NEIGHBOURS = 10
# Points of the learning curve: shares of the training photos, and how often each share is drawn.
_CURVE = ((0.1, 3), (0.25, 3), (0.5, 2), (1.0, 1))


@dataclass(frozen=True)
class Audit:
    """The table with late copies excluded, and the content of stages/audit/audit.json."""

    examples: Examples
    numbers: Audited

    @classmethod
    def load(cls, context: Context) -> Self:
        return cls(Examples.load(context.workdir.path(TABLE)), context.workdir.read_json(SUMMARY))


def audit(config: AuditConfig, *, examples: Examples, images: ArrayStore, features: ArrayStore, context: Context) -> Audit:
    """Exclude copies that only features find, list suspicious labels and photos, and measure the learning curve.

    Raises:
        DataUnusable: if a class has no training photo left after copies are excluded.
        Stopped: between steps.
    """
    looked_at = examples.in_store_order()
    components = principal_components(features, examples["row"][looked_at], _NUM_COMPONENTS)
    neighbours = nearest(components, _NUM_NEIGHBOURS)
    context.stop.check()
    result = _without_late_copies(config, examples, looked_at, neighbours, images)
    _check_classes(result)
    kept = np.isin(looked_at, result.of())
    indices, components_kept = looked_at[kept], components[kept]
    labels, groups = result.labels[indices], result.units[indices]
    num_classes = len(result.class_names)
    probabilities = out_of_fold(components_kept, labels, groups, num_classes, config.folds, context.seed, context.stop.check)
    with Gallery.drawing(context.workdir, PICTURES, images) as gallery:
        numbers: Audited = {
            "statuses": result.statuses(),
            "splits": result.splits(),
            "classes": result.by_class(),
            "late_copies": _late_copies(config, examples, result, gallery),
            "label_issues": _label_issues(config, result, indices, probabilities, gallery, context.workdir),
            "outliers": _outliers(config, result, looked_at, neighbours, gallery),
            "learning_curve": _curve(result, indices, components_kept, context),
        }
    context.workdir.write_bytes(TABLE, result.to_parquet())
    context.workdir.write_json(SUMMARY, numbers)
    return Audit(result, numbers)


def _without_late_copies(
    config: AuditConfig, examples: Examples, looked_at: np.ndarray, neighbours: Neighbours, images: ArrayStore
) -> Examples:
    """Join the groups of neighbours that show the same scene, unless both are training photos of one class."""
    pairs = looked_at[neighbours.pairs(config.min_similarity)].reshape(-1, 2)
    group, split, label = (examples[name][pairs] for name in ("group", "split", "label"))
    harmless = (split == "train").all(axis=1) & (label[:, 0] == label[:, 1])
    pairs = pairs[(group[:, 0] != group[:, 1]) & ~harmless]
    pairs = pairs[same_scene(examples["row"][pairs], images)]
    known = np.flatnonzero(examples["group"] >= 0)
    edges = np.concatenate([pairs, np.stack([known, examples["group"][known]], axis=1)])
    joined = examples["group"].copy()
    joined[known] = group_ids(len(examples), edges)[known]
    return without_leaks(without_conflicts(examples.with_columns(group=joined)))


def _check_classes(examples: Examples) -> None:
    trained = set(examples["label"][examples.of("train")])
    lost = [name for name in examples.class_names if name not in trained]
    if lost:
        raise DataUnusable(
            f"No training photo is left of {', '.join(lost)}, after copies of held-out photos and pictures under two "
            "classes were excluded. Add photos, or remove these classes."
        )


def _late_copies(config: AuditConfig, before: Examples, after: Examples, gallery: Gallery) -> LateCopies:
    """Return the groups that grew, first those from which a photo was excluded."""
    grown = np.unique(after["group"][before["group"] != after["group"]])
    groups = [np.flatnonzero((after["group"] == group) & (after["row"] >= 0)).tolist() for group in grown]
    excluded = before["status"] != after["status"]
    groups.sort(key=lambda g: (-sum(excluded[g]), -len(g)))
    return {
        "num_groups": len(groups),
        "num_excluded": int(excluded.sum()),
        "num_crossing_splits": sum(crossings(after, g)["crosses_splits"] for g in groups),
        "num_crossing_labels": sum(crossings(after, g)["crosses_labels"] for g in groups),
        "groups": [gallery.copies(after, g, f"late-{k:03d}") for k, g in enumerate(groups[: config.shown])],
    }


def _label_issues(
    config: AuditConfig,
    examples: Examples,
    indices: np.ndarray,
    probabilities_NC: np.ndarray,
    gallery: Gallery,
    workdir: Workdir,
) -> LabelIssues:
    """Write a table of the examples for which a head that was not trained on them predicts another class. Describe it.

    The least likely label comes first. `likely` marks the label issues that confident learning finds (Northcutt et al.,
    "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021), as cleanlab computes it.
    """
    with spent_once("imports"):
        from cleanlab.filter import find_label_issues

    labels, suggested = examples.labels[indices], probabilities_NC.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        likely = find_label_issues(labels, probabilities_NC, n_jobs=1)
    score = probabilities_NC[np.arange(len(labels)), labels]
    listed = np.flatnonzero((suggested != labels) | likely)
    listed = listed[np.argsort(score[listed], kind="stable")]
    rows: list[dict[str, object]] = [
        {
            "path": examples["path"][indices[k]],
            "given_label": examples.class_names[labels[k]],
            "suggested_label": examples.class_names[suggested[k]],
            "score": round(float(score[k]), 6),
            "likely": bool(likely[k]),
            "split": examples["split"][indices[k]],
        }
        for k in listed
    ]
    workdir.write_bytes(LABEL_ISSUES, _as_csv(rows))
    shown = [
        {**row, "thumbnail": gallery.photo(examples["row"][indices[k]], f"label-{number:03d}")}
        for number, (row, k) in enumerate(zip(rows[: config.shown], listed, strict=False))
    ]
    of_class = np.bincount(labels[likely], minlength=len(examples.class_names))
    return {
        "num_examples": len(labels),
        "num_listed": len(rows),
        "num_likely": int(likely.sum()),
        "agreement": float((suggested == labels).mean()),
        "by_class": [{"class": n, "likely": int(c)} for n, c in zip(examples.class_names, of_class, strict=True)],
        "shown": shown,
    }


def _as_csv(rows: list[dict[str, object]]) -> bytes:
    columns = ("path", "given_label", "suggested_label", "score", "likely", "split")
    return csv_of([columns, *([row[column] for column in columns] for row in rows)])


def _outliers(
    config: AuditConfig, examples: Examples, looked_at: np.ndarray, neighbours: Neighbours, gallery: Gallery
) -> list[dict[str, object]]:
    """Return the photos that are least similar to their nearest neighbours, by mean cosine similarity."""
    similarity = neighbours.similarity_NM.mean(axis=1) if neighbours.similarity_NM.size else np.zeros(len(looked_at))
    order = [k for k in np.argsort(similarity, kind="stable") if examples["status"][looked_at[k]] != "excluded"]
    return [
        {
            "path": examples["path"][looked_at[k]],
            "label": examples["label"][looked_at[k]],
            "similarity": round(float(similarity[k]), 4),
            "thumbnail": gallery.photo(examples["row"][looked_at[k]], f"unusual-{number:03d}"),
        }
        for number, k in enumerate(order[: config.shown])
    ]


def _curve(examples: Examples, indices: np.ndarray, components: np.ndarray, context: Context) -> LearningCurve:
    labels, groups, split = examples.labels[indices], examples.units[indices], examples["split"][indices]
    train, val = split == "train", split == "val"
    points = learning_curve(
        (components[train], labels[train], groups[train]),
        (components[val], labels[val]),
        len(examples.class_names),
        _CURVE,
        context.seed,
        context.stop.check,
    )
    return {"num_val": int(val.sum()), "points": points}
