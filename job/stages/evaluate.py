"""evaluate: score both models on validation, choose the one to ship, then score both on the held-out photos once."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from job.config import EvaluateConfig
from job.data.examples import Examples
from job.measure import metrics
from job.measure.calibration import (
    calibrated,
    calibration_error_floor,
    expected_calibration_error,
    reliability,
    temperature,
)
from job.model.heads import Head
from job.model.inputs import Inputs
from job.model.network import Network
from job.reporting.gallery import Gallery
from job.reporting.summaries import Details, Evaluated, ModelScores, Shipped
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore
from job.train.feed import all_rows, run_batches

if TYPE_CHECKING:
    import tensorflow as tf

SUMMARY = "stages/evaluate/evaluation.json"
PREDICTIONS = "stages/evaluate/predictions.parquet"
THUMBNAILS = "stages/evaluate/mistakes"
_BATCH_SIZE = 256


@dataclass(frozen=True)
class Evaluation:
    """The content of stages/evaluate/evaluation.json: `head`, `fine_tuned`, `shipped` and details for the report."""

    numbers: Evaluated

    @classmethod
    def load(cls, context: Context) -> Self:
        return cls(context.workdir.read_json(SUMMARY))

    @property
    def ships_fine_tuned(self) -> bool:
        return self.numbers["shipped"] == "fine_tuned"

    @property
    def temperature(self) -> float:
        """The number by which the logits of the shipped model are divided, so that its probabilities are true."""
        return self.numbers["temperatures"][self.numbers["shipped"]]


def evaluate(
    config: EvaluateConfig,
    *,
    examples: Examples,
    images: ArrayStore,
    features: ArrayStore,
    inputs: Inputs,
    chosen_head: Head,
    tuned_weights: list[np.ndarray] | None,
    network: Network,
    context: Context,
) -> Evaluation:
    """Score both models and choose the one to ship. `tuned_weights` is None if nothing was fine-tuned."""
    val, test = examples.of("val"), examples.of("test")
    both = np.concatenate([val, test])
    rows = examples["row"][both]
    logits = {"head": chosen_head.logits(features.rows(rows))}
    if tuned_weights is not None:
        logits["fine_tuned"] = _tuned_logits(network, chosen_head, tuned_weights, inputs, rows, context.telemetry)
    temperatures = {name: temperature(examples.labels[val], x[: len(val)]) for name, x in logits.items()}
    probabilities = {name: calibrated(x, temperatures[name]) for name, x in logits.items()}
    on_val = {name: p[: len(val)] for name, p in probabilities.items()}
    shipped, choice = _choose(config, examples, val, on_val, context.seed)
    on_test = {name: p[len(val) :] for name, p in probabilities.items()}
    plain = {name: calibrated(x, 1.0) for name, x in logits.items()}
    scores = _scores(config, examples, val, test, probabilities, plain, context.seed)
    is_met = config.min_accuracy is None or scores[shipped]["test"]["accuracy"] >= config.min_accuracy
    numbers: Evaluated = {
        "shipped": shipped,
        "temperatures": temperatures,
        "choice": choice,
        "class_names": list(examples.class_names),
        "head": scores["head"],
        "fine_tuned": scores.get("fine_tuned"),
        **_details(config, examples, test, on_test, shipped, context.seed),
        "gate": {"min_accuracy": config.min_accuracy, "met": is_met},
        "mistakes": _mistakes(config, examples, images, test, on_test[shipped], context.workdir),
    }
    _tell(context, numbers)
    context.workdir.write_bytes(PREDICTIONS, _predictions(examples, test, on_test, shipped))
    context.workdir.write_json(SUMMARY, numbers)
    return Evaluation(numbers)


def _tuned_logits(
    network: Network, start: Head, weights: list[np.ndarray], inputs: Inputs, rows: np.ndarray, telemetry: Telemetry
) -> np.ndarray:
    """Return the fine-tuned model's probabilities. They are computed in float32, like the exported model's."""
    import tensorflow as tf

    model = network.tuned(start)
    model.set_weights(weights)

    def on_replica(*arrays: tf.Tensor) -> tuple[tf.Tensor]:
        return (model(tf.cast(inputs.on_device(arrays, training=False), tf.float32), training=False),)

    forward = network.replicas.compiled(on_replica)
    batches = run_batches(
        network.replicas, forward, lambda numbers: inputs.plain(rows[numbers]), len(rows), _BATCH_SIZE, telemetry
    )
    return all_rows(batches)[0].astype(np.float64)


def _choose(
    config: EvaluateConfig, examples: Examples, val: np.ndarray, probabilities: dict[str, np.ndarray], seed: int
) -> tuple[Shipped, dict[str, object]]:
    if "fine_tuned" not in probabilities:
        return "head", {"reason": "There is no fine-tuned model."}
    predicted = {name: p.argmax(1) for name, p in probabilities.items()}
    comparison = metrics.compare(
        examples.labels[val],
        predicted["head"],
        predicted["fine_tuned"],
        examples.units[val],
        config.bootstrap_samples,
        seed,
    )
    better = comparison.difference > 0
    safe = comparison.lower_bound >= -config.ship_margin
    facts = (
        f"On the {comparison.num_examples:,} validation photos, the fine-tuned model's accuracy minus the head's is "
        f"{100 * comparison.difference:+.1f} points, with a lower 95% bound of {100 * comparison.lower_bound:+.1f} points"
    )
    rule = (
        "the fine-tuned model ships if it is more accurate and this bound is at least "
        f"{-100 * config.ship_margin:+.1f} points"
    )
    verdict = "The fine-tuned model ships." if better and safe else "The head ships."
    choice = {"comparison": asdict(comparison), "margin": config.ship_margin, "reason": f"{verdict} {facts}; {rule}."}
    return ("fine_tuned" if better and safe else "head"), choice


def _scores(
    config: EvaluateConfig,
    examples: Examples,
    val: np.ndarray,
    test: np.ndarray,
    probabilities: dict[str, np.ndarray],
    plain: dict[str, np.ndarray],
    seed: int,
) -> dict[str, ModelScores]:
    """Return the scores of each model. `probabilities`, and `plain` from before the temperature, are of val, then test."""
    free = np.flatnonzero(_leak_free(examples, test)) + len(val)
    both = np.concatenate([val, test])

    def score(name: str, rows: np.ndarray) -> metrics.Scores:
        labels, chosen = examples.labels[both[rows]], probabilities[name][rows]
        scores = metrics.summary(labels, chosen)
        correct, confidence = chosen.argmax(1) == labels, chosen.max(1)
        scores |= {
            "log_loss_uncalibrated": metrics.summary(labels, plain[name][rows])["log_loss"],
            "ece": expected_calibration_error(confidence, correct, config.ece_bins),
            "ece_uncalibrated": expected_calibration_error(plain[name][rows].max(1), correct, config.ece_bins),
            "ece_floor": calibration_error_floor(confidence, config.ece_bins, seed),
            "ece_bins": config.ece_bins,
            "mean_confidence": float(confidence.mean()),
        }
        if examples.has_given_groups:
            scores["by_group"] = metrics.by_group(correct, examples.units[both[rows]], config.bootstrap_samples, seed)
        return scores

    return {
        name: {
            "val": {**score(name, np.arange(len(val))), "used_for_choices": True},
            "test": score(name, np.arange(len(val), len(both))),
            "test_leak_free": score(name, free) if len(free) else None,
        }
        for name in probabilities
    }


def _leak_free(examples: Examples, test: np.ndarray) -> np.ndarray:
    """Return which of the photos `test` have no copy in the training split that the user gave. Boolean, (len(test),)."""
    given_for_training = (examples["given_split"] == "train") & (examples["group"] >= 0)
    return ~np.isin(examples.units[test], examples.units[given_for_training])


def _details(
    config: EvaluateConfig, examples: Examples, test: np.ndarray, on_test: dict[str, np.ndarray], shipped: Shipped, seed: int
) -> Details:
    labels, groups = examples.labels[test], examples.units[test]
    predicted = {name: p.argmax(1) for name, p in on_test.items()}
    train_labels = examples.labels[examples.of("train")]
    largest = int(np.bincount(train_labels).argmax())
    sure, right = on_test[shipped].max(1), predicted[shipped] == labels
    details: Details = {
        "reliability": reliability(sure, right, config.ece_bins),
        "confusion": metrics.confusion(labels, predicted[shipped], len(examples.class_names)).tolist(),
        "per_class": metrics.per_class(
            labels, predicted[shipped], groups, examples.class_names, config.bootstrap_samples, seed
        ),
        "largest_class": {"class": examples.class_names[largest], "accuracy": float((labels == largest).mean())},
        "head_against_fine_tuned": None,
    }
    if "fine_tuned" in predicted:
        comparison = metrics.compare(
            labels, predicted["head"], predicted["fine_tuned"], groups, config.bootstrap_samples, seed
        )
        details["head_against_fine_tuned"] = asdict(comparison)
    return details


def _mistakes(
    config: EvaluateConfig,
    examples: Examples,
    images: ArrayStore,
    test: np.ndarray,
    probabilities: np.ndarray,
    workdir: Workdir,
) -> list[dict[str, object]]:
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != examples.labels[test])
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][: config.mistakes]
    mistakes = []
    with Gallery.drawing(workdir, THUMBNAILS, images) as gallery:
        for number, k in enumerate(worst):
            mistakes.append(
                {
                    "path": examples["path"][test[k]],
                    "label": examples["label"][test[k]],
                    "predicted": examples.class_names[predicted[k]],
                    "probability": float(probabilities[k, predicted[k]]),
                    "probability_of_label": float(probabilities[k, examples.labels[test[k]]]),
                    "thumbnail": gallery.photo(examples["row"][test[k]], f"{number:03d}"),
                }
            )
    return mistakes


def _predictions(examples: Examples, test: np.ndarray, on_test: dict[str, np.ndarray], shipped: str) -> bytes:
    names = np.asarray(examples.class_names, object)
    columns = {
        "path": examples["path"][test],
        "sha256": examples["sha256"][test],
        "label": examples["label"][test],
        "predicted": names[on_test[shipped].argmax(1)],
        "shipped": [shipped] * len(test),
        "leak_free": _leak_free(examples, test),
    }
    for name in ("head", "fine_tuned"):
        values = on_test[name].tolist() if name in on_test else [None] * len(test)
        columns[f"{name}_probabilities"] = pa.array(values, pa.list_(pa.float64()))
    buffer = io.BytesIO()
    table = pa.table(columns).replace_schema_metadata({"class_names": "\n".join(examples.class_names)})
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _tell(context: Context, numbers: Evaluated) -> None:
    matrix = np.asarray(numbers["confusion"], np.float64)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = (255 * (1 - shares)).astype(np.uint8).repeat(24, axis=0).repeat(24, axis=1)
    context.telemetry.image("evaluate/confusion_matrix", np.repeat(picture[:, :, None], 3, axis=2))
    for name, scores in (("head", numbers["head"]), ("fine_tuned", numbers["fine_tuned"])):
        if scores:
            context.telemetry.scalar(f"evaluate/{name}_test_accuracy", scores["test"]["accuracy"], 0)
