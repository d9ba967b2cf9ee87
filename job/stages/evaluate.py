"""evaluate: score both models on validation, choose the one to ship, then score both on the held-out photos once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self, TypeVar

import numpy as np

from job.data.examples import Examples
from job.decoding.rules import DecodeRules
from job.measure import metrics
from job.measure.calibration import (
    Calibration,
    balanced,
    calibration_error_floor,
    expected_calibration_error,
    reliability,
    temperature,
)
from job.measure.confusions import row_shares
from job.measure.familiar import Known, known
from job.measure.models import Models
from job.measure.predicted import Predicted, StoredLogits
from job.measure.predictions import answers_of, write_predictions
from job.measure.seeds import Seeds, compared_seeds
from job.measure.thresholds import Thresholds, out_of_fold_answers, thresholds
from job.model.familiarity import Acceptance, Familiarity, Source
from job.reporting.gallery import pictured, surest
from job.reporting.summaries import Choice, Details, Evaluated, MeasuredFamiliarity, ModelScores, Shipped
from job.runtime.context import Context
from job.sections import EvaluateConfig
from job.serving.earlier import against_earlier
from job.text.numbers import percent

OfModel = TypeVar("OfModel")
SUMMARY = "stages/evaluate/evaluation.json"
THUMBNAILS, LEAST_FAMILIAR = "stages/evaluate/mistakes", "stages/evaluate/least_familiar"
FAMILIARITY = "stages/evaluate/familiarity.npz"
_CALIBRATION_PHOTOS = 10_000  # So many validation photos suffice for two numbers.
_MAX_PICTURE_PX = 1200


@dataclass(frozen=True)
class Evaluation:
    """The content of stages/evaluate/evaluation.json: `head`, `fine_tuned`, `shipped` and details for the report.

    `familiarity` is that of the shipped model; None if it is off.
    """

    numbers: Evaluated
    familiarity: Familiarity | None

    @classmethod
    def load(cls, context: Context) -> Self:
        numbers: Evaluated = context.workdir.read_json(SUMMARY)
        file = context.workdir.path(FAMILIARITY)
        return cls(numbers, Familiarity.load(file) if numbers["familiarity"] else None)

    @property
    def acceptance(self) -> Acceptance:
        """The limits that an answer of the shipped model must reach to be accepted."""
        known, thresholds = self.numbers["familiarity"], self.numbers["thresholds"]
        asked = thresholds["chosen"]["target_precision"] if thresholds["chosen"] else None
        least = known["min_familiarity"] if known else 0.0
        return Acceptance(self.familiarity, least, self.numbers["min_probability"], asked)

    @property
    def ships_fine_tuned(self) -> bool:
        return self.numbers["shipped"] == "fine_tuned"

    @property
    def mirrors(self) -> bool:
        """True if the shipped model answers with the mean over a photo and its mirror image."""
        return self.numbers["mirrors"]

    @property
    def chosen_seed(self) -> str:
        """The name of the fine-tuned model. There is none without fine-tuning."""
        assert self.numbers["seeds"] is not None
        return self.numbers["seeds"]["chosen"]

    @property
    def calibration(self) -> Calibration:
        """The last step of the shipped model."""
        shipped = self.numbers["shipped"]
        return Calibration(self.numbers["temperatures"][shipped], np.asarray(self.numbers["offsets"][shipped]))


def evaluate(
    config: EvaluateConfig, *, examples: Examples, models: Models, rules: DecodeRules, context: Context
) -> Evaluation:
    """Score the head and the fine-tuned model, choose the one to ship, and compare it with the one that is published.

    `compared_seeds` chooses the fine-tuned model that takes part. `rules` are those by which the photos were decoded.
    """
    val, test = examples.of("val"), examples.of("test")
    both = np.concatenate([val, test])
    labels, scratch = examples.labels[both], context.workdir.temporary().parent
    rows, mirrors = examples["row"][both], config.mirror is True
    logits = models.logits(rows, mirrors=mirrors, scratch=scratch, telemetry=context.telemetry)
    calibrations = {name: _calibration(config, examples, x) for name, x in logits.items()}
    predicted = {name: Predicted.of(labels, x, calibrations[name]) for name, x in logits.items()}
    seeds = compared_seeds({name: predicted[name] for name in models.tuned}, labels, len(val)) if models.tuned else None
    logits, calibrations, predicted = (_best(logits, seeds), _best(calibrations, seeds), _best(predicted, seeds))
    on_val = {name: p[: len(val)] for name, p in predicted.items()}
    shipped, choice = _choose(config, examples, val, on_val, context.seed)
    on_test = {name: p[len(val) :] for name, p in predicted.items()}
    plain = {name: Predicted.of(labels, x, Calibration()) for name, x in logits.items()}
    scores = _scores(config, examples, val, test, predicted, plain, context.seed)
    is_met = config.min_accuracy is None or scores[shipped]["test"]["accuracy"] >= config.min_accuracy
    chosen = seeds["chosen"] if seeds and shipped == "fine_tuned" else "head"
    familiarity = _familiarity(config, examples, models, chosen, both, context)
    found = _thresholds(config, examples, both, predicted[shipped], calibrations[shipped], familiarity, models, context)
    min_probability = (found["chosen"] and found["chosen"]["min_probability"]) or 0.0
    of_test = familiarity and familiarity[len(val) :]
    answers = answers_of(examples, test, on_test[shipped], shipped, _leak_free(examples, test), of_test, min_probability)
    write_predictions(answers, logits, calibrations, context.workdir)
    is_right = on_test[shipped].class_N == examples.labels[test]
    mistakes = surest(~is_right, on_test[shipped], config.mistakes)
    numbers: Evaluated = {
        "shipped": shipped,
        "mirrors": mirrors and shipped == "fine_tuned",
        "metric": config.metric,
        "temperatures": {name: calibration.temperature for name, calibration in calibrations.items()},
        "offsets": {name: calibration.offsets_C.tolist() for name, calibration in calibrations.items()},
        "choice": choice,
        "class_names": list(examples.class_names),
        "head": scores["head"],
        "fine_tuned": scores.get("fine_tuned"),
        "seeds": seeds,
        **_details(config, examples, test, on_test, shipped, context.seed),
        "gate": {"min_accuracy": config.min_accuracy, "met": is_met},
        "mistakes": pictured(THUMBNAILS, mistakes, examples, on_test[shipped], models.images, context.workdir),
        "min_probability": min_probability,
        "thresholds": found,
        "familiarity": _described(config, examples, models, chosen, on_test[shipped], of_test, is_right, context),
        **against_earlier(config, examples, on_test[shipped], models.images, rules, context),
    }
    _tell(context, numbers)
    context.workdir.write_json(SUMMARY, numbers)
    return Evaluation(numbers, familiarity.familiarity if familiarity else None)


def _best(of_models: dict[str, OfModel], seeds: Seeds | None) -> dict[str, OfModel]:
    """Return the entries of the head and, as `fine_tuned`, of the chosen seed."""
    return {"head": of_models["head"], **({"fine_tuned": of_models[seeds["chosen"]]} if seeds else {})}


def _familiarity(
    config: EvaluateConfig, examples: Examples, models: Models, name: str, photos: np.ndarray, context: Context
) -> Known | None:
    """Fit the familiarity of the shipped model, which has this name, and write it for the export; None if it is off."""
    if config.familiarity == "off":
        context.workdir.remove(FAMILIARITY)
        return None
    source: Source = "tuned" if config.familiarity == "tuned" and name != "head" else "frozen"
    of = name if source == "tuned" else "head"
    found = known(lambda rows: models.features_of(of, rows, context.telemetry), source, photos, examples, context.seed)
    with context.workdir.writing(FAMILIARITY) as path:
        found.familiarity.save(path)
    return found


def _thresholds(
    config: EvaluateConfig,
    examples: Examples,
    photos: np.ndarray,
    predicted: Predicted,
    calibration: Calibration,
    familiarity: Known | None,
    models: Models,
    context: Context,
) -> Thresholds:
    """Choose thresholds on the validation photos among `photos`, and measure them on the others."""
    return thresholds(
        config.target_precision,
        labels_N=examples.labels[photos],
        predicted=predicted,
        groups_N=examples.units[photos],
        num_val=len(examples.of("val")),
        num_classes=len(examples.class_names),
        of_training=lambda: out_of_fold_answers(examples, models.features, calibration.offsets_C, context),
        familiar_N=familiarity.is_familiar if familiarity else None,
    )


def _described(
    config: EvaluateConfig,
    examples: Examples,
    models: Models,
    name: str,
    predicted: Predicted,
    familiarity: Known | None,
    is_right: np.ndarray,
    context: Context,
) -> MeasuredFamiliarity | None:
    """Return what the report says about the familiarity, with pictures of the least familiar test photos."""
    if familiarity is None:
        context.workdir.remove(LEAST_FAMILIAR)
        return None
    of_T = familiarity.of_N
    least = np.argsort(of_T, kind="stable")[: config.mistakes]
    pictures = pictured(LEAST_FAMILIAR, least, examples, predicted, models.images, context.workdir)
    runs_again = name != "head" and familiarity.familiarity.source == "frozen" and models.network.cut_point
    numbers: MeasuredFamiliarity = {
        **familiarity.rejections(is_right),
        # With a mirror image, the rest of the model runs twice, but not this.
        "share_added": runs_again.share_above / (2 if config.mirror is True else 1) if runs_again else 0.0,
        "least_familiar": [{**picture, "familiarity": float(of_T[k])} for picture, k in zip(pictures, least, strict=True)],
    }
    added = f"; a photo costs {percent(numbers['share_added'], 0)} more multiply-adds" if numbers["share_added"] else ""
    context.telemetry.line(f"  familiarity: {percent(numbers['rejected'])} of the held-out photos are rejected{added}")
    return numbers


def _calibration(config: EvaluateConfig, examples: Examples, logits: StoredLogits) -> Calibration:
    """Return the calibration for the validation photos, the first ones in `logits`. It is fitted on at most 10,000."""
    labels_V, num_classes = examples.labels[examples.of("val")], len(examples.class_names)
    some = range(0, len(labels_V), max(1, -(-len(labels_V) // _CALIBRATION_PHOTOS)))
    labels, logits_VC = labels_V[some], np.concatenate([logits[k : k + 1] for k in some])
    fitted = temperature(labels, logits_VC)
    if config.metric == "balanced_accuracy":
        of_train = np.bincount(examples.labels[examples.of("train")], minlength=num_classes)
        return balanced(labels, logits_VC, fitted, of_train)
    return Calibration(fitted, np.zeros(num_classes))


def _choose(
    config: EvaluateConfig, examples: Examples, val: np.ndarray, predicted: dict[str, Predicted], seed: int
) -> tuple[Shipped, Choice]:
    """Choose the model with the lower log loss on the validation photos.

    Of few photos, log loss says more than the number of right answers: see docs/decisions/0035-which-model-ships.md.
    """
    if "fine_tuned" not in predicted:
        return "head", {"reason": "There is no fine-tuned model."}
    weights = _weights(config, examples, val)
    losses = {name: metrics.log_loss(p.of_label_N, weights) for name, p in predicted.items()}
    comparison = _compared(config, examples, val, {name: p.class_N for name, p in predicted.items()}, seed)
    shipped: Shipped = "fine_tuned" if losses["fine_tuned"] < losses["head"] else "head"
    reason = (
        f"The {'fine-tuned model' if shipped == 'fine_tuned' else 'head'} ships. On the {len(val):,} validation photos, the "
        f"log loss of the head is {losses['head']:.3f} and that of the fine-tuned model {losses['fine_tuned']:.3f}."
    )
    return shipped, {"log_loss": losses, "comparison": asdict(comparison), "reason": reason}


def _compared(
    config: EvaluateConfig, examples: Examples, photos: np.ndarray, predicted: dict[str, np.ndarray], seed: int
) -> metrics.Comparison:
    """Compare the fine-tuned model with the head on these photos, by the metric that is set."""
    labels, groups, weights = examples.labels[photos], examples.units[photos], _weights(config, examples, photos)
    return metrics.compare(
        labels, predicted["head"], predicted["fine_tuned"], groups, config.bootstrap_samples, seed, weights
    )


def _weights(config: EvaluateConfig, examples: Examples, photos: np.ndarray) -> np.ndarray | None:
    """Return how much each photo counts, or None if all count the same, by the metric that is set."""
    labels = examples.labels[photos]
    return 1 / np.bincount(labels)[labels] if config.metric == "balanced_accuracy" else None


def _scores(
    config: EvaluateConfig,
    examples: Examples,
    val: np.ndarray,
    test: np.ndarray,
    predicted: dict[str, Predicted],
    plain: dict[str, Predicted],
    seed: int,
) -> dict[str, ModelScores]:
    """Return the scores of each model. `predicted`, and `plain` from before the temperature, are of val, then test."""
    free = np.flatnonzero(_leak_free(examples, test)) + len(val)
    both = np.concatenate([val, test])

    def score(name: str, rows: np.ndarray) -> metrics.Scores:
        labels, chosen = examples.labels[both[rows]], predicted[name][rows]
        scores = metrics.summary(labels, chosen.class_N, chosen.of_label_N)
        correct, confidence = chosen.class_N == labels, chosen.confidence_N
        scores |= {
            "log_loss_uncalibrated": metrics.log_loss(plain[name].of_label_N[rows]),
            "ece": expected_calibration_error(confidence, correct, config.ece_bins),
            "ece_uncalibrated": expected_calibration_error(plain[name].confidence_N[rows], correct, config.ece_bins),
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
        for name in predicted
    }


def _leak_free(examples: Examples, test: np.ndarray) -> np.ndarray:
    """Return which of the photos `test` have no copy in the training split that the user gave. Boolean, (len(test),)."""
    given_for_training = (examples["given_split"] == "train") & (examples["group"] >= 0)
    return ~np.isin(examples.units[test], examples.units[given_for_training])


def _details(
    config: EvaluateConfig, examples: Examples, test: np.ndarray, on_test: dict[str, Predicted], shipped: Shipped, seed: int
) -> Details:
    labels, groups = examples.labels[test], examples.units[test]
    predicted = {name: p.class_N for name, p in on_test.items()}
    train_labels = examples.labels[examples.of("train")]
    largest = int(np.bincount(train_labels).argmax())
    sure, right = on_test[shipped].confidence_N, predicted[shipped] == labels
    two = "fine_tuned" in predicted
    return {
        "reliability": reliability(sure, right, config.ece_bins),
        "confusion": metrics.confusion(labels, predicted[shipped], len(examples.class_names)).tolist(),
        "per_class": metrics.per_class(
            labels, predicted[shipped], groups, examples.class_names, config.bootstrap_samples, seed
        ),
        "largest_class": {"class": examples.class_names[largest], "accuracy": float((labels == largest).mean())},
        "head_against_fine_tuned": asdict(_compared(config, examples, test, predicted, seed)) if two else None,
    }


def _tell(context: Context, numbers: Evaluated) -> None:
    shares = row_shares(np.asarray(numbers["confusion"]))
    side = min(24, max(1, _MAX_PICTURE_PX // len(shares)))
    picture = (255 * (1 - shares)).astype(np.uint8).repeat(side, axis=0).repeat(side, axis=1)
    context.telemetry.image("evaluate/confusion_matrix", np.repeat(picture[:, :, None], 3, axis=2))
    for name, scores in (("head", numbers["head"]), ("fine_tuned", numbers["fine_tuned"])):
        if scores:
            context.telemetry.scalar(f"evaluate/{name}_test_accuracy", scores["test"]["accuracy"], 0)
