"""evaluate: score both models on validation, choose the one to ship, then score both on the held-out photos once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
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
from job.measure.models import Models, ShippedModel
from job.measure.predicted import Predicted, StoredLogits
from job.measure.predictions import answers_of, write_predictions
from job.measure.seeds import Seeds, compared_seeds
from job.measure.thresholds import Thresholds, out_of_fold_answers, thresholds
from job.model.familiarity import Acceptance, Familiarity, Source
from job.model.heads import Head
from job.model.network import Network
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

    def shipped(self, network: Network, head: Head, tuned: Mapping[str, list[np.ndarray]]) -> ShippedModel:
        """Return the model that was chosen: this head, or one of the fine-tuned models, whose weights are in `tuned`."""
        numbers, name = self.numbers, self.numbers["shipped"]
        weights = tuned[numbers["seeds"]["chosen"]] if numbers["seeds"] and name == "fine_tuned" else None
        calibration = Calibration(numbers["temperatures"][name], np.asarray(numbers["offsets"][name]))
        return ShippedModel(network, head, weights, calibration, numbers["mirrors"], self.acceptance)


def evaluate(
    config: EvaluateConfig, *, examples: Examples, models: Models, rules: DecodeRules, context: Context
) -> Evaluation:
    """Score the head and the fine-tuned model, choose the one to ship, and compare it with the one that is published.

    `compared_seeds` chooses the fine-tuned model that takes part. `rules` are those by which the photos were decoded.
    """
    judge = _Judge(config, examples, context.seed)
    num_val, labels, rows = len(judge.val), examples.labels[judge.both], examples["row"][judge.both]
    mirrors, scratch = config.mirror is True, context.workdir.temporary().parent
    logits = models.logits(rows, mirrors=mirrors, scratch=scratch, telemetry=context.telemetry)
    calibrations = {name: judge.calibration(x) for name, x in logits.items()}
    predicted = {name: Predicted.of(labels, x, calibrations[name]) for name, x in logits.items()}
    seeds = compared_seeds({name: predicted[name] for name in models.tuned}, labels, num_val) if models.tuned else None
    logits, calibrations, predicted = (_best(logits, seeds), _best(calibrations, seeds), _best(predicted, seeds))
    shipped, choice = judge.choice({name: p[:num_val] for name, p in predicted.items()})
    on_test = {name: p[num_val:] for name, p in predicted.items()}
    answers, is_right = on_test[shipped], on_test[shipped].class_N == labels[num_val:]
    scores = judge.scores(predicted, {name: Predicted.of(labels, x, Calibration()) for name, x in logits.items()})
    is_met = config.min_accuracy is None or scores[shipped]["test"]["accuracy"] >= config.min_accuracy
    chosen = seeds["chosen"] if seeds and shipped == "fine_tuned" else "head"
    familiarity = _familiarity(judge, models, chosen, context)
    found = _thresholds(judge, predicted[shipped], calibrations[shipped], familiarity, models, context)
    min_probability = (found["chosen"] and found["chosen"]["min_probability"]) or 0.0
    of_test = familiarity and familiarity[num_val:]
    table = answers_of(examples, judge.test, answers, shipped, judge.is_leak_free, of_test, min_probability)
    write_predictions(table, logits, calibrations, context.workdir)
    mistakes = surest(~is_right, answers, config.mistakes)
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
        **judge.details(on_test, shipped),
        "gate": {"min_accuracy": config.min_accuracy, "met": is_met},
        "mistakes": pictured(THUMBNAILS, mistakes, examples, answers, models.images, context.workdir),
        "min_probability": min_probability,
        "thresholds": found,
        "familiarity": _described(judge, models, chosen, answers, of_test, is_right, context),
        **against_earlier(config, examples, answers, models.images, rules, context),
    }
    _tell(context, numbers)
    context.workdir.write_json(SUMMARY, numbers)
    return Evaluation(numbers, familiarity.familiarity if familiarity else None)


def _best(of_models: dict[str, OfModel], seeds: Seeds | None) -> dict[str, OfModel]:
    """Return the entries of the head and, as `fine_tuned`, of the chosen seed."""
    return {"head": of_models["head"], **({"fine_tuned": of_models[seeds["chosen"]]} if seeds else {})}


@dataclass(frozen=True)
class _Judge:
    """The settings by which models are judged, and the photos: V for validation and T held out (the test set)."""

    config: EvaluateConfig
    examples: Examples
    seed: int

    @cached_property
    def val(self) -> np.ndarray:
        return self.examples.of("val")

    @cached_property
    def test(self) -> np.ndarray:
        return self.examples.of("test")

    @cached_property
    def both(self) -> np.ndarray:
        return np.concatenate([self.val, self.test])

    @cached_property
    def is_leak_free(self) -> np.ndarray:
        """True for each test photo without a copy in the training split that the user gave."""
        given_for_training = (self.examples["given_split"] == "train") & (self.examples["group"] >= 0)
        return ~np.isin(self.examples.units[self.test], self.examples.units[given_for_training])

    def calibration(self, logits: StoredLogits) -> Calibration:
        """Return the calibration for the validation photos, the first ones in `logits`. It is fitted on at most 10,000."""
        labels_V, num_classes = self.examples.labels[self.val], len(self.examples.class_names)
        some = range(0, len(labels_V), max(1, -(-len(labels_V) // _CALIBRATION_PHOTOS)))
        labels, logits_VC = labels_V[some], np.concatenate([logits[k : k + 1] for k in some])
        fitted = temperature(labels, logits_VC)
        if self.config.metric == "balanced_accuracy":
            of_train = np.bincount(self.examples.labels[self.examples.of("train")], minlength=num_classes)
            return balanced(labels, logits_VC, fitted, of_train)
        return Calibration(fitted, np.zeros(num_classes))

    def choice(self, on_val: dict[str, Predicted]) -> tuple[Shipped, Choice]:
        """Choose the model with the lower log loss on the validation photos.

        Of few photos, log loss says more than the number of right answers: see docs/decisions/0035-which-model-ships.md.
        """
        if "fine_tuned" not in on_val:
            return "head", {"reason": "There is no fine-tuned model."}
        losses = {name: metrics.log_loss(p.of_label_N, self._weights(self.val)) for name, p in on_val.items()}
        shipped: Shipped = "fine_tuned" if losses["fine_tuned"] < losses["head"] else "head"
        reason = (
            f"The {'fine-tuned model' if shipped == 'fine_tuned' else 'head'} ships. On the {len(self.val):,} validation "
            f"photos, the log loss of the head is {losses['head']:.3f} and that of the fine-tuned model "
            f"{losses['fine_tuned']:.3f}."
        )
        return shipped, {"log_loss": losses, "comparison": self._compared(self.val, on_val), "reason": reason}

    def scores(self, predicted: dict[str, Predicted], plain: dict[str, Predicted]) -> dict[str, ModelScores]:
        """Return the scores of each model. `predicted`, and `plain` from before the temperature, are of val, then test."""
        num_val, config = len(self.val), self.config
        free = np.flatnonzero(self.is_leak_free) + num_val

        def score(name: str, rows: np.ndarray) -> metrics.Scores:
            labels, chosen = self.examples.labels[self.both[rows]], predicted[name][rows]
            scores = metrics.summary(labels, chosen.class_N, chosen.of_label_N)
            correct, confidence = chosen.class_N == labels, chosen.confidence_N
            scores |= {
                "log_loss_uncalibrated": metrics.log_loss(plain[name].of_label_N[rows]),
                "ece": expected_calibration_error(confidence, correct, config.ece_bins),
                "ece_uncalibrated": expected_calibration_error(plain[name].confidence_N[rows], correct, config.ece_bins),
                "ece_floor": calibration_error_floor(confidence, config.ece_bins, self.seed),
                "ece_bins": config.ece_bins,
                "mean_confidence": float(confidence.mean()),
            }
            if self.examples.has_given_groups:
                groups = self.examples.units[self.both[rows]]
                scores["by_group"] = metrics.by_group(correct, groups, config.bootstrap_samples, self.seed)
            return scores

        return {
            name: {
                "val": {**score(name, np.arange(num_val)), "used_for_choices": True},
                "test": score(name, np.arange(num_val, len(self.both))),
                "test_leak_free": score(name, free) if len(free) else None,
            }
            for name in predicted
        }

    def details(self, on_test: dict[str, Predicted], shipped: Shipped) -> Details:
        """Return details about the answers to the test photos."""
        examples, answers, resamples = self.examples, on_test[shipped], self.config.bootstrap_samples
        labels, groups, names = examples.labels[self.test], examples.units[self.test], examples.class_names
        largest = int(np.bincount(examples.labels[examples.of("train")]).argmax())
        return {
            "reliability": reliability(answers.confidence_N, answers.class_N == labels, self.config.ece_bins),
            "confusion": metrics.confusion(labels, answers.class_N, len(names)).tolist(),
            "per_class": metrics.per_class(labels, answers.class_N, groups, names, resamples, self.seed),
            "largest_class": {"class": names[largest], "accuracy": float((labels == largest).mean())},
            "head_against_fine_tuned": self._compared(self.test, on_test) if "fine_tuned" in on_test else None,
        }

    def _compared(self, photos: np.ndarray, predicted: dict[str, Predicted]) -> dict[str, object]:
        """Compare the fine-tuned model with the head on these photos, by the metric that is set."""
        labels, groups, weights = self.examples.labels[photos], self.examples.units[photos], self._weights(photos)
        pair, resamples = (predicted["head"].class_N, predicted["fine_tuned"].class_N), self.config.bootstrap_samples
        return asdict(metrics.compare(labels, *pair, groups, resamples, self.seed, weights))

    def _weights(self, photos: np.ndarray) -> np.ndarray | None:
        """Return how much each photo counts, or None if all count the same, by the metric that is set."""
        labels = self.examples.labels[photos]
        return 1 / np.bincount(labels)[labels] if self.config.metric == "balanced_accuracy" else None


def _familiarity(judge: _Judge, models: Models, name: str, context: Context) -> Known | None:
    """Fit the familiarity of the shipped model, which has this name, and write it for the export; None if it is off."""
    wanted = judge.config.familiarity
    if wanted == "off":
        context.workdir.remove(FAMILIARITY)
        return None
    source: Source = "tuned" if wanted == "tuned" and name != "head" else "frozen"
    of = name if source == "tuned" else "head"
    features = partial(models.features_of, of, telemetry=context.telemetry)
    found = known(features, source, judge.both, judge.examples, judge.seed)
    with context.workdir.writing(FAMILIARITY) as path:
        found.familiarity.save(path)
    return found


def _thresholds(
    judge: _Judge, predicted: Predicted, fitted: Calibration, familiarity: Known | None, models: Models, context: Context
) -> Thresholds:
    """Choose thresholds on the validation photos, and measure them on the test photos."""
    examples = judge.examples
    return thresholds(
        judge.config.target_precision,
        labels_N=examples.labels[judge.both],
        predicted=predicted,
        groups_N=examples.units[judge.both],
        num_val=len(judge.val),
        num_classes=len(examples.class_names),
        of_training=lambda: out_of_fold_answers(examples, models.features, fitted.offsets_C, context),
        familiar_N=familiarity.is_familiar if familiarity else None,
    )


def _described(
    judge: _Judge,
    models: Models,
    name: str,
    answers: Predicted,
    familiarity: Known | None,
    is_right: np.ndarray,
    context: Context,
) -> MeasuredFamiliarity | None:
    """Return what the report says about the familiarity, with pictures of the least familiar test photos."""
    if familiarity is None:
        context.workdir.remove(LEAST_FAMILIAR)
        return None
    of_T, config = familiarity.of_N, judge.config
    least = np.argsort(of_T, kind="stable")[: config.mistakes]
    pictures = pictured(LEAST_FAMILIAR, least, judge.examples, answers, models.images, context.workdir)
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


def _tell(context: Context, numbers: Evaluated) -> None:
    shares = row_shares(np.asarray(numbers["confusion"]))
    side = min(24, max(1, _MAX_PICTURE_PX // len(shares)))
    picture = (255 * (1 - shares)).astype(np.uint8).repeat(side, axis=0).repeat(side, axis=1)
    context.telemetry.image("evaluate/confusion_matrix", np.repeat(picture[:, :, None], 3, axis=2))
    for name, scores in (("head", numbers["head"]), ("fine_tuned", numbers["fine_tuned"])):
        if scores:
            context.telemetry.scalar(f"evaluate/{name}_test_accuracy", scores["test"]["accuracy"], 0)
