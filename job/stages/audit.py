"""audit: check the data with stored features, before anything is trained on it.

It finds copies that no hash finds (cropped, mirrored, framed, the same scene photographed again), labels that are probably
wrong, photos unlike all others, and the gain to expect from more photos. Photos that it excludes are used by neither head
nor fine_tune. Labels are only listed, never changed.
"""

import codecs
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from job.data.corrections import Corrections
from job.data.duplicates import group_ids, without_conflicts, without_leaks
from job.data.examples import Examples
from job.data.neighbours import Neighbours, nearest, principal_components
from job.data.registration import same_scene
from job.errors import DataUnusable
from job.measure.probes import learning_curve, out_of_fold
from job.reporting.data_summaries import (
    Agreement,
    Audited,
    LabelIssues,
    LateCopies,
    LearningCurve,
    Outliers,
    Torn,
    Trust,
)
from job.reporting.gallery import Gallery, crossings
from job.runtime.context import Context
from job.runtime.telemetry import spent_once
from job.sections import AuditConfig
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore
from job.text.untrusted import csv_of

PICTURES = "stages/audit/pictures"
TABLE = "stages/audit/examples.parquet"
SUMMARY = "stages/audit/audit.json"
LABEL_ISSUES = "stages/audit/label_issues.csv"

_NUM_COMPONENTS = 256
_NUM_NEIGHBOURS = 10
_LOOK_FIRST = 25  # So many labels a person checks in some minutes.
# Agreement of the predictions with the labels, as Cohen's kappa: 0 is chance. Below the first value, most label issues are
# errors of the prediction; below the second, nearly all (docs/decisions/0025-wrong-labels.md).
_TRUSTED, _OF_SOME_USE = 0.75, 0.4
# An outlier is at least so many deviations, and so much, less similar to its neighbours than the median photo.
_OUTLIER_DEVIATIONS, _LEAST_OUTLIER_GAP = 3.0, 0.1
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


def audit(
    config: AuditConfig,
    *,
    examples: Examples,
    images: ArrayStore,
    features: ArrayStore,
    context: Context,
    corrections: Corrections = Corrections(),
) -> Audit:
    """Exclude copies that only features find, list suspicious labels and photos, and measure the learning curve.

    Raises:
        DataUnusable: if a class has no training photo left after copies are excluded.
        Stopped: between steps.
    """
    looked_at = examples.in_store_order()
    components = principal_components(features, examples["row"][looked_at], _NUM_COMPONENTS)
    neighbours = nearest(components, _NUM_NEIGHBOURS)
    context.stop.check()
    result = _without_late_copies(config, examples, looked_at, neighbours, images, context)
    _check_classes(result)
    kept = np.isin(looked_at, result.of())
    indices, components = looked_at[kept], components[kept]  # The same name, so that there is only one of them in memory.
    probabilities = _probabilities(config, result, looked_at, kept, components, neighbours, context)
    with Gallery.drawing(context.workdir, PICTURES, images) as gallery:
        numbers: Audited = {
            "statuses": result.statuses(),
            "conflicts": result.conflicts(),
            "left_out": {result["path"][k]: result["reason"][k] for k in looked_at[~kept]},
            "splits": result.splits(),
            "classes": result.by_class(),
            "late_copies": _late_copies(config, examples, result, gallery),
            "label_issues": _label_issues(config, result, indices, probabilities, corrections, gallery, context.workdir),
            "outliers": _outliers(config, result, looked_at, neighbours, gallery),
            "learning_curve": _curve(result, indices, components, context),
        }
    if numbers["left_out"]:
        context.telemetry.line(f"  {result.in_words()}")
    context.workdir.write_bytes(TABLE, result.to_parquet())
    context.workdir.write_json(SUMMARY, numbers)
    return Audit(result, numbers)


def _without_late_copies(
    config: AuditConfig,
    examples: Examples,
    looked_at: np.ndarray,
    neighbours: Neighbours,
    images: ArrayStore,
    context: Context,
) -> Examples:
    """Join the groups of neighbours that show the same scene, unless both are training photos of one class."""
    pairs = looked_at[neighbours.pairs(config.min_similarity)].reshape(-1, 2)
    group, split, label = (examples[name][pairs] for name in ("group", "split", "label"))
    harmless = (split == "train").all(axis=1) & (label[:, 0] == label[:, 1])
    pairs = pairs[(group[:, 0] != group[:, 1]) & ~harmless]
    pairs = pairs[same_scene(examples["row"][pairs], images, context.stop.check)]
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
    flags = [crossings(after, g) for g in groups]

    def torn(*, by_user: bool) -> Torn:
        counts = [
            int(excluded[g].sum())
            for g, flag in zip(groups, flags, strict=True)
            if flag["crosses_splits"] and not flag["crosses_labels"] and flag["crosses_given"] == by_user
        ]
        return {"num_groups": sum(count > 0 for count in counts), "num_left_out": sum(counts)}

    return {
        "num_groups": len(groups),
        "torn_by_user": torn(by_user=True),
        "torn_by_job": torn(by_user=False),
        "num_conflicts": sum(after.conflicts().values()) - sum(before.conflicts().values()),
        "groups": [gallery.copies(after, g, f"late-{k:03d}") for k, g in enumerate(groups[: config.shown])],
    }


def _probabilities(
    config: AuditConfig,
    examples: Examples,
    looked_at: np.ndarray,
    kept: np.ndarray,
    components: np.ndarray,
    neighbours: Neighbours,
    context: Context,
) -> np.ndarray:
    """Return the class probabilities of the photos `looked_at[kept]`, each computed without its own label. Shape (N, C).

    They are those of a head, multiplied by the shares of the classes among the nearest neighbours. Together they rank wrong
    labels better than the head alone (docs/decisions/0025-wrong-labels.md).
    """
    labels, groups, num_classes = examples.labels[looked_at], examples.units[looked_at], len(examples.class_names)
    probabilities_NC = out_of_fold(
        components, labels[kept], groups[kept], num_classes, config.folds, context.seed, context.stop.check
    )
    probabilities_NC *= neighbours.class_shares(np.where(kept, labels, -1), groups, num_classes)[kept]
    probabilities_NC /= probabilities_NC.sum(axis=1, keepdims=True)
    return probabilities_NC


def _label_issues(
    config: AuditConfig,
    examples: Examples,
    indices: np.ndarray,
    probabilities_NC: np.ndarray,
    corrections: Corrections,
    gallery: Gallery,
    workdir: Workdir,
) -> LabelIssues:
    """Write a table of the examples for which another class is predicted than their label, and describe it.

    The issues that are likely come first, and among them the least likely label. Then come the decisions of the corrections,
    so that the table has all that was ever decided. Nobody needs to look at these photos again.
    """
    labels, suggested = examples.labels[indices], probabilities_NC.argmax(1)
    is_open = ~examples.is_decided[indices]
    likely = _likely_issues(labels, probabilities_NC) & is_open
    score = probabilities_NC[np.arange(len(labels)), labels]
    listed = np.flatnonzero((suggested != labels) & is_open)
    listed = listed[np.lexsort((score[listed], ~likely[listed]))]
    rows: list[dict[str, object]] = [
        {
            "path": examples["path"][indices[k]],
            "given_label": examples.class_names[labels[k]],
            "suggested_label": examples.class_names[suggested[k]],
            "decision": "",
            "score": round(float(score[k]), 6),
            "likely": bool(likely[k]),
            "split": examples["split"][indices[k]],
            "sha256": examples["sha256"][indices[k]],
        }
        for k in listed
    ]
    workdir.write_bytes(LABEL_ISSUES, _as_csv([*rows, *_decided(examples, corrections)]))
    shown = [
        {**row, "thumbnail": gallery.photo(examples["row"][indices[k]], f"label-{number:03d}")}
        for number, (row, k) in enumerate(zip(rows[: config.shown], listed, strict=False))
    ]
    of_class = np.bincount(labels[likely], minlength=len(examples.class_names))
    return {
        "num_examples": len(labels),
        "num_listed": len(rows),
        "num_likely": int(likely.sum()),
        "num_first": min(_LOOK_FIRST, int(likely.sum())),
        **_agreement(labels, suggested, len(examples.class_names)),
        "by_class": [{"class": n, "likely": int(c)} for n, c in zip(examples.class_names, of_class, strict=True)],
        "shown": shown,
    }


def _likely_issues(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> np.ndarray:
    """Return which labels are likely wrong, boolean (N,), by confident learning as cleanlab computes it.

    Source: Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels" (2021).
    """
    with spent_once("imports"):
        from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        likely = np.asarray(find_label_issues(labels_N, probabilities_NC, n_jobs=1))
    return likely & (probabilities_NC.argmax(1) != labels_N)


def _agreement(labels_N: np.ndarray, suggested_N: np.ndarray, num_classes: int) -> Agreement:
    given, predicted = (np.bincount(found, minlength=num_classes) for found in (labels_N, suggested_N))
    agreement, chance = float((suggested_N == labels_N).mean()), float((given * predicted).sum() / len(labels_N) ** 2)
    kappa = (agreement - chance) / max(1 - chance, 1e-12)
    trust: Trust = "good" if kappa >= _TRUSTED else "little" if kappa >= _OF_SOME_USE else "none"
    return {"agreement": agreement, "chance": chance, "trust": trust}


def _decided(examples: Examples, corrections: Corrections) -> Iterator[dict[str, object]]:
    """Yield a row for each photo about which a correction decides, then for each decision about a photo that is not here."""
    here = np.flatnonzero(examples.is_decided)
    for k in here:
        digest = examples["sha256"][k]
        about = {"path": examples["path"][k], "given_label": examples["given_label"][k], "split": examples["split"][k]}
        yield {**about, "sha256": digest, "decision": corrections.decisions[digest]}
    for digest in sorted(corrections.decisions.keys() - set(examples["sha256"][here])):
        yield {"sha256": digest, "decision": corrections.decisions[digest]}


def _as_csv(rows: list[dict[str, object]]) -> bytes:
    """Return the table as CSV with a byte order mark, without which Excel does not read it as UTF-8."""
    columns = ("path", "given_label", "suggested_label", "decision", "score", "likely", "split", "sha256")
    return codecs.BOM_UTF8 + csv_of([columns, *([row.get(column, "") for column in columns] for row in rows)])


def _outliers(
    config: AuditConfig, examples: Examples, looked_at: np.ndarray, neighbours: Neighbours, gallery: Gallery
) -> Outliers:
    """Find the photos that are far less similar to their nearest neighbours than most photos are.

    The similarity of a photo is the mean cosine similarity to its neighbours. The threshold is three deviations below the
    median, where a deviation is the median distance of the lower half to the median, scaled to a standard deviation (Leys et
    al., "Detecting outliers", 2013). Similarities are compared as Fisher's z, because they vary less if they are close to 1.
    """
    used = np.flatnonzero(examples["status"][looked_at] != "excluded")
    similarity = neighbours.similarity_NM[used].mean(axis=1) if neighbours.similarity_NM.size else np.zeros(len(used))
    z = np.arctanh(np.clip(similarity, -0.999, 0.999))
    deviation = 1.4826 * float(np.median(np.median(z) - z[z <= np.median(z)]))
    median = float(np.median(similarity))
    threshold = min(float(np.tanh(np.median(z) - _OUTLIER_DEVIATIONS * deviation)), median - _LEAST_OUTLIER_GAP)
    order = np.argsort(similarity, kind="stable")
    found = order[similarity[order] < threshold]
    return {
        "num_found": len(found),
        "threshold": round(threshold, 4),
        "median": round(median, 4),
        "shown": [
            {
                "path": examples["path"][looked_at[used[k]]],
                "label": examples["label"][looked_at[used[k]]],
                "similarity": round(float(similarity[k]), 4),
                "thumbnail": gallery.photo(examples["row"][looked_at[used[k]]], f"unusual-{number:03d}"),
            }
            for number, k in enumerate(found[: config.shown])
        ],
    }


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
    half, whole = (float(np.mean(point["accuracies"])) for point in points[-2:])
    noise = 2 * np.sqrt(whole * (1 - whole) / val.sum())  # Half the width of the 95% interval of the accuracy.
    return {"num_val": int(val.sum()), "points": points, "last_doubling": [half, whole], "noise": float(noise)}
