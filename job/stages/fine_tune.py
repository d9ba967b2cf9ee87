"""fine_tune: train the layers above the cut together with the head, from stored activations or from photos."""

import time
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from job.config import FineTuneConfig
from job.data.examples import Examples
from job.measure.calibration import Calibration, temperature
from job.measure.metrics import log_loss
from job.measure.predicted import Predicted
from job.model.heads import Head, class_weights, smoothed_one_hot
from job.model.inputs import Inputs
from job.model.network import Network
from job.reporting.summaries import Tuning
from job.runtime.context import Context
from job.stores.views import StoredViews
from job.text.numbers import percent
from job.train.checkpoint import Checkpoints, TrainState, numbered
from job.train.feed import Arrays
from job.train.loop import Batch, Trainer
from job.train.recipe import Recipe
from job.train.schedule import Schedule

WEIGHTS = "stages/fine_tune/weights.npz"
SUMMARY = "stages/fine_tune/fine_tune.json"
_SCALED_ON = 2_000  # So many photos suffice for one number.


@dataclass(frozen=True)
class FineTuned:
    """Weights in the order of `Network.tuned`, or None (`note` says why). `history` has an entry per epoch, from 0 on."""

    weights: list[np.ndarray] | None
    history: list[dict[str, float]]
    note: str
    recipe: dict[str, object]

    @classmethod
    def load(cls, context: Context) -> Self:
        summary: Tuning = context.workdir.read_json(SUMMARY)
        weights = None
        if summary["trained"]:
            with np.load(context.workdir.path(WEIGHTS), allow_pickle=False) as arrays:
                weights = [arrays[f"{k:04d}"] for k in range(len(arrays))]
        return cls(weights, summary["history"], summary["note"], summary["recipe"])


def fine_tune(
    config: FineTuneConfig,
    recipe: Recipe,
    *,
    examples: Examples,
    features: StoredViews,
    inputs: Inputs,
    chosen_head: Head,
    network: Network,
    train_seed: int,
    checkpoints: Checkpoints,
    context: Context,
) -> FineTuned | None:
    """Train the layers above the cut and the head, from the newest checkpoint if there is one.

    The last step leaves a checkpoint, too. All workers train together. The chief keeps the result; the others return None.

    Raises:
        Diverged: if a number is no longer finite.
        Stopped: between steps.
    """
    if recipe.epochs == 0 or network.config.unfreeze == "none":
        why = "fine_tune.epochs is 0" if recipe.epochs == 0 else "backbone.unfreeze is none"
        return _kept(context, FineTuned(None, [], f"Nothing was fine-tuned, because {why}.", {}))
    feed = _Feed(config, recipe, examples, inputs, train_seed)
    saved = checkpoints.newest_of_chief()
    with context.telemetry.spent("start"):
        is_known = saved or not context.peers.is_chief  # The start is then replaced below.
        start = chosen_head if is_known else _start(config, examples, features, chosen_head)
    precision = context.peers.same(network.devices.best_precision if config.precision == "auto" else config.precision)
    replicas = network.devices.all
    model = network.tuned(start, precision, replicas)
    trainer = Trainer(
        model,
        feed.schedule,
        replicas,
        inputs,
        weight_decay=config.weight_decay,
        ema=config.ema,
        telemetry=context.telemetry,
    )
    val = examples.of("val")
    val_rows, val_labels = examples["row"][val].astype(np.int64), examples.labels[val]
    course = _Course(config, num_classes=len(examples.class_names))
    if saved is None and context.peers.count > 1:
        saved = checkpoints.begin_together(course.state(trainer))
    if saved:
        trainer.restore(saved)
        course.restore(saved)
        context.telemetry.found_finished(min(saved.step * recipe.global_batch_size, feed.schedule.total_examples))
    if not course.history:
        course.add({"epoch": 0, **_validate(trainer, val_rows, val_labels)}, trainer)
    started, num_steps = time.monotonic(), feed.schedule.total_steps - trainer.num_steps_done
    with checkpoints, context.telemetry.progress("fine-tune", num_steps, "steps") as progress:

        def before_step(_step: int) -> None:
            checkpoints.offer(lambda: course.state(trainer))
            progress.advance()

        for result in () if course.is_over else trainer.epochs(feed.batch, before_step):
            course.add({**asdict(result), **_validate(trainer, val_rows, val_labels)}, trainer)
            _tell(context, course.history[-1], recipe.epochs)
            if course.is_over:
                break
        checkpoints.save(course.state(trainer))
    context.telemetry.event("fine_tuned", examples_per_s=feed.seen / max(time.monotonic() - started, 1e-9))
    weights, note = course.outcome(trainer)
    return _kept(context, FineTuned(weights, course.history, note, {**asdict(recipe), "precision": precision}))


class _Course:
    """The state of training: an entry for each epoch, a first one from before training, and the best weights."""

    def __init__(self, config: FineTuneConfig, num_classes: int) -> None:
        self._config, self._collapse = config, 2 * np.log(num_classes)
        self.history: list[dict[str, float]] = []
        self._best_weights: list[np.ndarray] = []

    def add(self, epoch: dict[str, float], trainer: Trainer) -> None:
        self.history.append(epoch)
        if self._best_epoch == epoch["epoch"]:
            self._best_weights = trainer.final_weights()

    @property
    def _best_epoch(self) -> int:
        """Number of the epoch with the lowest validation log loss; if there are several, the first one."""
        best = min(self.history, key=lambda epoch: epoch["val_log_loss"])
        return int(best["epoch"])

    @property
    def _has_collapsed(self) -> bool:
        return len(self.history) > 1 and self.history[-1]["val_log_loss"] > self._collapse

    @property
    def is_over(self) -> bool:
        """True if training must end before the end of its schedule."""
        without_gain = self.history[-1]["epoch"] - self._best_epoch
        return self._has_collapsed or (self._config.keep == "best" and without_gain >= self._config.patience)

    def outcome(self, trainer: Trainer) -> tuple[list[np.ndarray], str]:
        """Return the weights to keep, and a sentence that says which and why."""
        last, best = self.history[-1]["epoch"], self._best_epoch
        weights = self._best_weights
        if self._config.keep == "best":
            note = f"The weights of epoch {best} of {last} are kept: they have the lowest validation log loss."
        elif self._has_collapsed:
            note = f"Training collapsed in epoch {last}: the validation log loss became too high. Epoch {best} is kept."
        else:
            note, weights = f"The weights of the last epoch ({last}) are kept.", trainer.final_weights()
        return [np.asarray(w, np.float32) for w in weights], note

    def state(self, trainer: Trainer) -> TrainState:
        trained = trainer.state()
        arrays = {**trained.arrays, **numbered("best", self._best_weights)}
        return TrainState(trained.step, arrays, {**trained.notes, "history": list(self.history)})

    def restore(self, state: TrainState) -> None:
        self.history, self._best_weights = list(state.notes["history"]), state.listed("best")


class _Feed:
    """Training batches as a pure function of the step."""

    def __init__(self, config: FineTuneConfig, recipe: Recipe, examples: Examples, inputs: Inputs, seed: int) -> None:
        indices = examples.in_store_order("train")
        by_key = np.argsort(examples.keys[indices], kind="stable")  # Paths must not change the order.
        self._rows_N = examples["row"][indices[by_key]].astype(np.int64)
        self._keys_N = examples.keys[indices][by_key]
        self._inputs = inputs
        num_classes = len(examples.class_names)
        labels_N = examples.labels[indices][by_key]
        self._labels_N, self._num_classes, self._smoothing = labels_N, num_classes, config.label_smoothing
        self._weights_N = class_weights(labels_N, num_classes, config.class_weight)
        self.schedule = Schedule.resolve(
            recipe, num_examples=len(indices), warmup_fraction=config.warmup_fraction, seed=seed
        )
        self.seen = 0

    def batch(self, step: int) -> Batch:
        chosen = self.schedule.batch(step)
        views = self.schedule.views(step, self._keys_N[chosen], self._inputs.num_views)
        self.seen += len(chosen)
        rows, keys = self._rows_N[chosen], self._keys_N[chosen]

        def load(numbers: np.ndarray) -> Arrays:
            return self._inputs.training(rows[numbers], keys[numbers], views[numbers])

        targets = smoothed_one_hot(self._labels_N[chosen], self._num_classes, self._smoothing)
        return load, targets, self._weights_N[chosen]


def _start(config: FineTuneConfig, examples: Examples, features: StoredViews, chosen: Head) -> Head:
    """Return the chosen head at the temperature that suits smoothed labels, because training would first move it there."""
    if config.label_smoothing == 0:
        return chosen
    train, num_classes = examples.in_store_order("train"), len(examples.class_names)
    some = train[:: max(1, len(train) // _SCALED_ON)]
    missing = config.label_smoothing * (num_classes - 1) / num_classes
    logits = chosen.logits(features.plain.rows(examples["row"][some]))
    return chosen.at_temperature(temperature(examples.labels[some], logits, missing))


def _validate(trainer: Trainer, rows: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    predicted = Predicted.of(labels, trainer.logits(rows), Calibration())
    return {"val_log_loss": log_loss(predicted.of_label_N), "val_accuracy": float((predicted.class_N == labels).mean())}


def _tell(context: Context, epoch: dict[str, float], num_epochs: int) -> None:
    context.telemetry.line(
        f"  epoch {epoch['epoch']} of {num_epochs}: training loss {epoch['train_loss']:.3f}, "
        f"validation accuracy {percent(epoch['val_accuracy'])}"
    )
    for name in ("train_loss", "train_accuracy", "val_log_loss", "val_accuracy", "learning_rate"):
        context.telemetry.scalar(f"fine_tune/{name}", epoch[name], int(epoch["epoch"]))
    context.telemetry.event("epoch", **epoch)


def _kept(context: Context, result: FineTuned) -> FineTuned | None:
    if not context.peers.is_chief:
        return None
    workdir = context.workdir
    if result.weights is not None:
        with workdir.writing(WEIGHTS) as file, file.open("wb") as stream:
            arrays: dict[str, Any] = {f"{k:04d}": w for k, w in enumerate(result.weights)}
            np.savez(stream, **arrays)
    trained = result.weights is not None
    workdir.write_json(SUMMARY, Tuning(trained=trained, note=result.note, history=result.history, recipe=result.recipe))
    return result
