"""fine_tune: train the layers above the cut together with the head, from stored activations or from photos."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from job.cluster.replicas import Replicas
from job.data.examples import Examples
from job.measure.calibration import Calibration, temperature
from job.measure.metrics import log_loss
from job.measure.predicted import Predicted
from job.measure.seeds import MEAN_OF_WEIGHTS
from job.model.heads import Head, class_weights, smoothed_one_hot
from job.model.inputs import Inputs
from job.model.layer_decay import learning_rate_factors
from job.model.network import Network
from job.reporting.summaries import Tuning
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import FineTuneConfig
from job.stores.views import StoredViews
from job.text.numbers import percent
from job.train import loop
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
    """The weights of each seed, by its name, in the order of `Network.tuned`. Without any, `note` says why.

    `history` has an entry for each epoch of each seed, from epoch 0 on.
    """

    weights: dict[str, list[np.ndarray]]
    history: list[dict[str, float]]
    note: str
    recipe: dict[str, object]

    @classmethod
    def load(cls, context: Context) -> Self:
        summary: Tuning = context.workdir.read_json(SUMMARY)
        weights: dict[str, list[np.ndarray]] = {}
        if summary["trained"]:
            with np.load(context.workdir.path(WEIGHTS), allow_pickle=False) as arrays:
                for key in arrays:
                    weights.setdefault(key.partition("/")[0], []).append(arrays[key])
        return cls(weights, summary["history"], summary["note"], summary["recipe"])

    @property
    def models(self) -> dict[str, list[np.ndarray]]:
        """The weights of all models to choose from: those of each seed and, if there are several, their mean.

        The mean of weights is from Wortsman et al., "Model soups", 2022.
        """
        if len(self.weights) < 2:
            return self.weights
        means = (np.mean(of_seeds, axis=0, dtype=np.float64) for of_seeds in zip(*self.weights.values(), strict=True))
        return {**self.weights, MEAN_OF_WEIGHTS: [np.asarray(mean, np.float32) for mean in means]}


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
    left_s: Callable[[], float],
    checkpoints: Sequence[Checkpoints],
    context: Context,
) -> FineTuned | None:
    """Train the layers above the cut and the head, once for each of `checkpoints`, with `train_seed` and the seeds after it.

    Each training begins with the same weights, or with its newest checkpoint if there is one. Its last step leaves a
    checkpoint, too. All workers train together. The chief keeps the result; the others return None. `left_s` returns the
    seconds that are left: training ends early if another epoch would take longer.

    Raises:
        Diverged: if a number is no longer finite.
        Stopped: between steps.
    """
    if recipe.epochs == 0 or network.config.unfreeze == "none":
        why = "fine_tune.epochs is 0" if recipe.epochs == 0 else "backbone.unfreeze is none"
        return _kept(context, FineTuned({}, [], f"Nothing was fine-tuned, because {why}.", {}))
    saved = [own.newest_of_chief() for own in checkpoints]
    with context.telemetry.spent("start"):
        is_known = all(saved) or not context.peers.is_chief  # The start is then replaced below.
        start = chosen_head if is_known else _start(config, examples, features, chosen_head)
    precision = context.peers.same(network.devices.best_precision if config.precision == "auto" else config.precision)
    feeds = [_Feed(config, recipe, examples, inputs, train_seed, repetition) for repetition in range(len(checkpoints))]
    trainer = new_trainer(
        config, start, feeds[0].schedule, network, network.devices.all, precision, inputs, context.telemetry
    )
    begin = trainer.state() if len(feeds) > 1 else None
    weights: dict[str, list[np.ndarray]] = {}
    notes, history = [], []
    for feed, state, own in zip(feeds, saved, checkpoints, strict=True):
        if begin:
            trainer.restore(begin)
        name = f"seed {feed.schedule.seed}"
        course = _Course(config, feed.schedule.seed, len(examples.class_names), name if begin else "")
        num_later = (len(feeds) - len(weights) - 1) * feed.schedule.total_steps
        _train(course, trainer, feed, examples, left_s, state, own, num_later, context)
        if course.is_late and weights:
            notes.append(f"{name.capitalize()} is left out: the time ran out before its last epoch.")
            break
        weights[name], note = course.outcome(trainer)
        notes.append(f"{name.capitalize()}: {note}" if begin else note)
        history += course.history
        if course.is_late:
            break
    return _kept(context, FineTuned(weights, history, " ".join(notes), {**asdict(recipe), "precision": precision}))


def new_trainer(
    config: FineTuneConfig,
    head: Head,
    schedule: Schedule,
    network: Network,
    replicas: Replicas,
    precision: str,
    inputs: loop.Inputs,
    telemetry: Telemetry,
) -> Trainer:
    """Return a trainer of the layers above the cut, with this head on top. `precision` is a Keras dtype policy."""
    model = network.tuned(head, precision, replicas)
    factors = learning_rate_factors(model, config.layer_decay)
    decay, ema = config.weight_decay, config.ema
    return Trainer(model, schedule, replicas, inputs, weight_decay=decay, ema=ema, telemetry=telemetry, rate_factors=factors)


def _train(
    course: "_Course",
    trainer: Trainer,
    feed: "_Feed",
    examples: Examples,
    left_s: Callable[[], float],
    saved: TrainState | None,
    checkpoints: Checkpoints,
    num_later: int,
    context: Context,
) -> None:
    """Train from the saved state, or from the beginning without one, to the end of the course.

    Other courses of the stage will take `num_later` steps.
    """
    val = examples.of("val")
    val_rows, val_labels = examples["row"][val].astype(np.int64), examples.labels[val]
    schedule, telemetry = feed.schedule, context.telemetry
    if saved is None and context.peers.count > 1:
        saved = checkpoints.begin_together(course.state(trainer))
    if saved:
        trainer.restore(saved)
        course.restore(saved)
        telemetry.found_finished(min(saved.step * schedule.global_batch_size, schedule.total_examples))
    if not course.history:
        course.add({"epoch": 0, **_validate(trainer, val_rows, val_labels)}, trainer)
    started, num_steps = time.monotonic(), schedule.total_steps - trainer.num_steps_done
    what, later = f"fine-tune {course.name}".strip(), {"fine_tune": num_later}
    with checkpoints, telemetry.progress(what, num_steps, "steps", later) as progress:

        def before_step(_step: int) -> None:
            checkpoints.offer(lambda: course.state(trainer))
            progress.advance()

        began = started
        for result in () if course.is_over else trainer.epochs(feed.batch, before_step):
            course.add({**asdict(result), **_validate(trainer, val_rows, val_labels)}, trainer)
            took_s, began = time.monotonic() - began, time.monotonic()
            course.is_late = result.last_step < schedule.total_steps and left_s() < took_s
            _tell(context, course, schedule.total_steps // schedule.steps_per_epoch)
            if course.is_over:
                break
        checkpoints.save(course.state(trainer))
    telemetry.event("fine_tuned", seed=course.seed, examples_per_s=feed.seen / max(time.monotonic() - started, 1e-9))


class _Course:
    """The state of training with a seed: an entry for each epoch, a first one from before training, and the best weights.

    `name` tells it from other seeds in messages.
    """

    def __init__(self, config: FineTuneConfig, seed: int, num_classes: int, name: str) -> None:
        self._config, self.seed, self._collapse, self.name = config, seed, 2 * np.log(num_classes), name
        self.history: list[dict[str, float]] = []
        self._best_weights: list[np.ndarray] = []
        self.is_late = False  # True if there is no time for another epoch.

    def add(self, epoch: dict[str, float], trainer: Trainer) -> None:
        self.history.append({"seed": self.seed, **epoch})
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
        return self.is_late or self._has_collapsed or (self._config.keep == "best" and without_gain >= self._config.patience)

    def outcome(self, trainer: Trainer) -> tuple[list[np.ndarray], str]:
        """Return the weights to keep, and a sentence that says which and why."""
        last, best = self.history[-1]["epoch"], self._best_epoch
        weights = self._best_weights
        if self.is_late:
            note = f"The time ran out after epoch {last}. Epoch {best} is kept: it has the lowest validation log loss."
        elif self._config.keep == "best":
            note = f"The weights of epoch {best} of {last} are kept: they have the lowest validation log loss."
        elif self._has_collapsed:
            note = f"Training collapsed in epoch {last}: the validation log loss became too high. Epoch {best} is kept."
        else:
            note, weights = f"The weights of the last epoch ({last}) are kept.", trainer.final_weights()
        return [np.asarray(w, np.float32) for w in weights], note

    def state(self, trainer: Trainer) -> TrainState:
        trained = trainer.state()
        arrays = {**trained.arrays, **numbered("best", self._best_weights)}
        return TrainState(trained.step, arrays, {**trained.notes, "history": list(self.history), "is_late": self.is_late})

    def restore(self, state: TrainState) -> None:
        self.history, self._best_weights = list(state.notes["history"]), state.listed("best")
        self.is_late = state.notes["is_late"]


class _Feed:
    """Training batches as a pure function of the step."""

    def __init__(
        self, config: FineTuneConfig, recipe: Recipe, examples: Examples, inputs: Inputs, seed: int, repetition: int = 0
    ) -> None:
        indices = examples.in_store_order("train")
        by_key = np.argsort(examples.keys[indices], kind="stable")  # Paths must not change the order.
        self._rows_N = examples["row"][indices[by_key]].astype(np.int64)
        self._keys_N = examples.keys[indices][by_key]
        self._inputs = inputs
        num_classes = len(examples.class_names)
        labels_N = examples.labels[indices][by_key]
        self._labels_N, self._num_classes, self._smoothing = labels_N, num_classes, config.label_smoothing
        self._weights_N = class_weights(labels_N, num_classes, config.class_weight)
        warmup, of_run = config.warmup_fraction, {"seed": seed, "repetition": repetition}
        self.schedule = Schedule.resolve(recipe, num_examples=len(indices), warmup_fraction=warmup, **of_run)
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


def _tell(context: Context, course: _Course, num_epochs: int) -> None:
    epoch, name = course.history[-1], course.name
    context.telemetry.line(
        f"  {f'{name}, ' if name else ''}epoch {epoch['epoch']} of {num_epochs}: training loss {epoch['train_loss']:.3f}, "
        f"validation accuracy {percent(epoch['val_accuracy'])}",
        epoch,
    )
    folder = f"fine_tune/{name.replace(' ', '_')}".rstrip("/")
    for what in ("train_loss", "train_accuracy", "val_log_loss", "val_accuracy", "learning_rate"):
        context.telemetry.scalar(f"{folder}/{what}", epoch[what], int(epoch["epoch"]))
    context.telemetry.event("epoch", **epoch)


def _kept(context: Context, result: FineTuned) -> FineTuned | None:
    if not context.peers.is_chief:
        return None
    workdir = context.workdir
    if trained := bool(result.weights):
        with workdir.writing(WEIGHTS) as file, file.open("wb") as stream:
            arrays: dict[str, Any] = {
                f"{name}/{k:04d}": w for name, of_seed in result.weights.items() for k, w in enumerate(of_seed)
            }
            np.savez(stream, **arrays)
    workdir.write_json(SUMMARY, Tuning(trained=trained, note=result.note, history=result.history, recipe=result.recipe))
    return result
