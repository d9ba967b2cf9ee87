"""The earlier model: the one that is published while a run evaluates its own, and its answers for today's test photos.

What it answered to photos of its own test set is read from its predictions. Only for other photos does its exported graph
run. If the published predictions are those of this run, which is evaluated once more, it keeps its comparison.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from job.data.changes import changes
from job.data.examples import Examples
from job.decoding.rules import DecodeRules
from job.errors import StorageFailed, UsageError
from job.measure.flips import RIGHT_TO_WRONG, WRONG_TO_RIGHT, Versus, corrected, flips, versus
from job.measure.predicted import Predicted
from job.reporting.gallery import pictured, surest
from job.reporting.summaries import AgainstEarlier, ComparedWithEarlier, EarlierModel, Pictured
from job.runtime.context import Context
from job.sections import EvaluateConfig
from job.serving.folder import load
from job.storage.files import digest_of_file
from job.storage.published import Published
from job.stores.arrays import ArrayStore
from job.text.numbers import counted

_CARD, _PREDICTIONS, _EXAMPLES = "model/model.json", "predictions.parquet", "examples.parquet"
_COMPARISON = "comparison.parquet"
_STAGE = "stages/evaluate"
_FLIPS = {RIGHT_TO_WRONG: f"{_STAGE}/right_to_wrong", WRONG_TO_RIGHT: f"{_STAGE}/wrong_to_right"}
_BATCH_SIZE = 64


def against_earlier(
    config: EvaluateConfig,
    examples: Examples,
    predicted: Predicted,
    images: ArrayStore,
    rules: DecodeRules,
    context: Context,
) -> AgainstEarlier:
    """Compare the model of this run with the published one, and write comparison.parquet. No other result depends on it.

    `predicted` is of this run's test photos, whose predictions.parquet is written already. `rules` are those by which
    `images` were decoded.
    """
    workdir, test = context.workdir, examples.of("test")
    earlier = find(examples, images, rules, context)
    now = np.asarray(examples.class_names, object)[predicted.class_N]
    then = earlier.predicted_T if earlier else np.full(len(test), None, object)
    only_test, resamples = earlier is not None and earlier.about["only_test_changed"], config.bootstrap_samples
    corrections = corrected(examples, then, now, only_test_changed=only_test, resamples=resamples, seed=context.seed)
    if earlier is None:
        for name in (f"{_STAGE}/{_COMPARISON}", *_FLIPS.values()):
            workdir.remove(name)
        return {"earlier": None, "flips": {}, "corrections": corrections}
    flip = flips(examples["label"][test], then, now)
    with workdir.writing(f"{_STAGE}/{_COMPARISON}") as path:
        pq.write_table(earlier.table(examples, now, flip), path)

    def shown(kind: str) -> list[Pictured]:
        chosen = surest(flip == kind, predicted, (config.mistakes + 1) // 2)
        return pictured(_FLIPS[kind], chosen, examples, predicted, images, workdir)

    answer_of = dict(zip(examples["path"][test], then, strict=True))
    return {
        "earlier": _scores(earlier, examples, now, config.bootstrap_samples, context.seed),
        "flips": {kind: [{**photo, "earlier": answer_of[photo["path"]]} for photo in shown(kind)] for kind in _FLIPS},
        "corrections": corrections,
    }


def _scores(earlier: Earlier, examples: Examples, now_T: np.ndarray, resamples: int, seed: int) -> ComparedWithEarlier:
    """Compare the classes that both models give to the T test photos: on all of them, and on those of known classes."""
    test, then_T = examples.of("test"), earlier.predicted_T
    labels_T = examples["label"][test]

    def on(chosen_T: np.ndarray) -> Versus | None:
        groups = examples.units[test[chosen_T]]
        return versus(labels_T[chosen_T], then_T[chosen_T], now_T[chosen_T], groups, resamples, seed)

    is_compared_T = then_T.astype(bool)
    is_known_T = is_compared_T & np.isin(labels_T.astype(str), earlier.about["class_names"])
    return {
        **earlier.about,
        "num_new": int((earlier.split_T != "test").sum()),
        "all": on(is_compared_T),
        "known_classes": on(is_known_T) if is_known_T.sum() < is_compared_T.sum() else None,
    }


@dataclass(frozen=True)
class Earlier:
    """The earlier model and today's T test photos, in the order of the examples.

    `split_T` has the split of each photo in the earlier run, and `predicted_T` the class that the earlier model gives it;
    None for photos that it did not have, or that are not compared.
    """

    about: EarlierModel
    split_T: np.ndarray
    predicted_T: np.ndarray

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `table` has made. Raises: OSError, ValueError, KeyError."""
        found = pq.read_table(file)
        names = ("earlier_split", "earlier_predicted")
        split_T, predicted_T = (np.asarray(found[name].to_pylist(), object) for name in names)
        about = json.loads((found.schema.metadata or {})[b"earlier"])
        about.setdefault("only_test_changed", False)  # Versions before 0.12 did not look at this.
        return cls(about, split_T, predicted_T)

    def table(self, examples: Examples, now_T: np.ndarray, flip_T: np.ndarray) -> pa.Table:
        """Return a row for each test photo. `now_T` are the classes that today's model gives."""
        test = examples.of("test")
        columns = {name: examples[name][test] for name in ("path", "sha256", "label")}
        columns |= {"earlier_split": self.split_T, "earlier_predicted": self.predicted_T, "predicted": now_T, "flip": flip_T}
        strings = {name: pa.array(column, pa.string()) for name, column in columns.items()}
        return pa.table(strings, metadata={"earlier": json.dumps(self.about)})


def find(examples: Examples, images: ArrayStore, rules: DecodeRules, context: Context) -> Earlier | None:
    """Return the published model with its answers; None if nothing is published that could be compared."""
    published = Published.load(context.workdir)
    if _PREDICTIONS not in published.files:
        return None
    at = {name: published.path(context.workdir, name) for name in (_PREDICTIONS, _EXAMPLES, _COMPARISON)}
    try:
        if digest_of_file(context.workdir.path(f"{_STAGE}/{_PREDICTIONS}")) == published.files[_PREDICTIONS]:
            return Earlier.read(at[_COMPARISON]) if _COMPARISON in published.files else None
        then = Examples.load(at[_EXAMPLES])
        answers = pq.read_table(at[_PREDICTIONS], columns=["sha256", "predicted"]).to_pydict()
    except (OSError, ValueError, KeyError):
        context.telemetry.line("  No comparison with the earlier model: the published tables cannot be read.")
        return None
    test = examples.of("test")
    digests = examples["sha256"][test]
    split_of = dict(zip(then["sha256"][then.of()], then["split"][then.of()], strict=True))
    was_seen_T = examples.are_copies_of(test, {digest for digest, split in split_of.items() if split != "test"})
    answer_of = dict(zip(answers["sha256"], answers["predicted"], strict=True))
    predicted_T = np.asarray([answer_of.get(digest) for digest in digests], object)
    predicted_T[was_seen_T] = None
    unknown = np.flatnonzero(~was_seen_T & ~predicted_T.astype(bool))
    note = ""
    if len(unknown):
        predicted_T[unknown], note = _asked(published, examples["row"][test[unknown]], images, rules, context)
    about: EarlierModel = {
        "model_sha256": published.files.get(_CARD),
        "class_names": list(then.class_names),
        "changes": changes(then, examples),
        "only_test_changed": _labels_of(then, "train", "val") == _labels_of(examples, "train", "val")
        and _labels_of(then, "test") != _labels_of(examples, "test"),
        "num_seen": int(was_seen_T.sum()),
        "note": note,
    }
    return Earlier(about, np.asarray([split_of.get(digest) for digest in digests], object), predicted_T)


def _labels_of(examples: Examples, *splits: str) -> Counter[tuple[str, str]]:
    """Return the photos in these splits, by SHA-256 and label, with the number of copies of each."""
    indices = examples.of(*splits)
    return Counter(zip(examples["sha256"][indices], examples["label"][indices], strict=True))


def _asked(
    published: Published, rows: np.ndarray, images: ArrayStore, rules: DecodeRules, context: Context
) -> tuple[list[str | None], str]:
    """Return the classes that the published model gives the photos in these rows, or None for each and the reason."""
    unknown: list[str | None] = [None] * len(rows)
    photos = counted(len(rows), "test photo that is", "test photos that are")
    if not published.has_model:
        return unknown, f"The earlier run exported no model, so {photos} new to it cannot be compared."
    try:
        with context.telemetry.spent("building"):
            model = load(str(published.path(context.workdir, "model")), published.files[_CARD], context.telemetry.line)
    except (UsageError, StorageFailed):
        return unknown, f"The earlier model cannot be loaded, so {photos} new to it cannot be compared."
    theirs, ours = ((r.image_size, r.resize, r.bit_depth) for r in (model.card.rules, rules))
    if theirs != ours:
        return unknown, f"The earlier model takes photos in another size or shape, so {photos} new to it cannot be compared."
    with context.telemetry.spent("forward"):
        batches = [rows[k : k + _BATCH_SIZE] for k in range(0, len(rows), _BATCH_SIZE)]
        best = [model.answers(images.rows(batch))["probabilities"].argmax(1) for batch in batches]
    return [model.card.class_names[k] for k in np.concatenate(best)], ""
