"""Predictions of each candidate of `rank` for photos that it has not learnt from, and a comparison of their accuracies."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import softmax

from job.config import Config
from job.data.neighbours import principal_components
from job.measure import metrics
from job.measure.probes import out_of_fold
from job.pipeline.job import Job
from job.pipeline.run import bring_up_to_date
from job.ranking.photos import Photos
from job.ranking.table import Accuracy, Cost
from job.storage.files import digest_of

_NUM_COMPONENTS = 256  # As in audit.
_PROBE_SCHEMA = 1
_TUNED = "tuned.json"


@dataclass(frozen=True)
class Predictions:
    """Predicted numbers of classes in `Photos`, -1 for a class that is not there, and the mean log loss."""

    predicted: list[int]
    log_loss: float


def probe(job: Job, photos: Photos) -> Predictions:
    """Return out-of-fold class numbers `predicted`, and `log_loss`. No head has seen its photos or copies of them before."""
    features, config = job["extract"].features.plain, job.config
    content = [photos.paths, photos.labels_N.tolist(), photos.groups_N.tolist()]
    key = digest_of([_PROBE_SCHEMA, features.digest, content, config.audit.folds, config.seed])
    known = job.workdir.read_sealed("probe.json")
    if known is not None and known["key"] == key:
        return Predictions(known["predicted"], known["log_loss"])
    examples = job["split"].examples
    place = dict(zip(examples["path"].tolist(), examples["row"].tolist(), strict=True))
    rows_N = np.asarray([place[path] for path in photos.paths], np.int64)
    components_NK = principal_components(features, rows_N, _NUM_COMPONENTS)
    labels_N, groups_N, num_classes, folds = photos.labels_N, photos.groups_N, len(photos.class_names), config.audit.folds
    stop = job.context.stop.check
    probabilities_NC = out_of_fold(components_NK, labels_N, groups_N, num_classes, folds, config.seed, stop)
    found = Predictions(
        probabilities_NC.argmax(1).tolist(), metrics.log_loss(probabilities_NC[np.arange(len(labels_N)), labels_N])
    )
    job.workdir.write_sealed("probe.json", {"key": key, **asdict(found)})
    return found


def fine_tune(job: Job) -> None:
    """Fine-tune the candidate, and store what it predicts for its validation photos in its folder."""
    bring_up_to_date(job, "audit", "head", "fine_tune")
    key = job.records.outcome("fine_tune")
    if (known := job.workdir.read_sealed(_TUNED)) is not None and known["key"] == key:
        return
    from job.measure.models import tuned_logits

    (weights,) = job["fine_tune"].weights.values()  # `candidates` refuses settings that train nothing, and sets one seed.
    examples = job["audit"].examples
    val = examples.of("val")
    rows, telemetry = examples["row"][val], job.context.telemetry
    logits_NC = np.concatenate(list(tuned_logits(job.network, weights, job.inputs, rows, telemetry)))
    of_label_N = softmax(logits_NC, axis=1)[np.arange(len(val)), examples.labels[val]]
    found = {
        "key": key,
        "paths": examples["path"][val].tolist(),
        "predicted": [examples.class_names[k] for k in logits_NC.argmax(1)],
        "log_losses": metrics.log_losses(of_label_N).round(6).tolist(),
    }
    job.workdir.write_sealed(_TUNED, found)


def fine_tuned(job: Job, photos: Photos) -> Predictions:
    """Return what the candidate, once `fine_tune` was called, predicts for these validation photos."""
    known = job.workdir.read_sealed(_TUNED)
    assert known is not None
    of_path = dict(zip(known["paths"], zip(known["predicted"], known["log_losses"], strict=True), strict=True))
    predicted, log_losses = zip(*(of_path[path] for path in photos.paths), strict=True)
    number = {name: k for k, name in enumerate(photos.class_names)}
    return Predictions([number.get(name, -1) for name in predicted], float(np.mean(log_losses)))


def compared(found: dict[str, Predictions], costs: dict[str, Cost], photos: Photos, config: Config) -> dict[str, Accuracy]:
    """Return the accuracy of each candidate with Wilson's interval, and its paired difference to the most accurate one."""
    predicted = {folder: np.asarray(one.predicted, np.int64) for folder, one in found.items()}
    correct = {folder: int((p == photos.labels_N).sum()) for folder, p in predicted.items()}
    best = min(found, key=lambda folder: (-correct[folder], costs[folder].multiply_adds))
    accuracies = {}
    for folder, predictions in found.items():
        pair, resamples = (predicted[best], predicted[folder]), config.evaluate.bootstrap_samples
        against = metrics.compare(photos.labels_N, *pair, photos.groups_N, resamples, config.seed)
        accuracies[folder] = Accuracy(
            num_examples=len(photos.paths),
            accuracy=correct[folder] / len(photos.paths),
            accuracy_ci95=metrics.wilson(correct[folder], len(photos.paths)),
            difference=against.difference,
            difference_ci95=against.difference_ci95,
            log_loss=predictions.log_loss,
        )
    return accuracies
