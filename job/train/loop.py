"""The training loop: a `strategy.run` step over a Keras model with a Keras optimizer, on batches given by the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from job.errors import Diverged
from job.train.cluster import Cluster, map_batches
from job.train.schedule import Schedule

if TYPE_CHECKING:
    import keras

# A step's examples: activations (B, ...), targets (B, C) that sum to one, and weights (B,).
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]

# Parameters that weight decay would only pull away from where they belong.
_NOT_DECAYED = ["bias", "gamma", "beta"]


@dataclass(frozen=True)
class EpochResult:
    """Means over an epoch: weighted training loss and accuracy; `last_step` is the number of steps done so far."""

    epoch: int
    last_step: int
    train_loss: float
    train_accuracy: float
    learning_rate: float


class Trainer:
    """Trains a model from inputs to logits on all replicas of a cluster.

    The gradient of a step is that of the weighted mean loss over its whole global batch, however many replicas share
    it and however short the batch is: short batches are padded with examples of weight zero.
    """

    def __init__(self, model: keras.Model, schedule: Schedule, cluster: Cluster, *, weight_decay: float, ema: bool) -> None:
        import keras
        import tensorflow as tf

        self.model, self.schedule, self.cluster = model, schedule, cluster
        self._ema = ema
        dtype = "float64" if model.variables[0].dtype == "float64" else "float32"
        self._dtype = dtype
        with cluster.strategy.scope():
            self.optimizer = keras.optimizers.AdamW(
                learning_rate=_Course(schedule),
                weight_decay=weight_decay,
                use_ema=ema,
                ema_momentum=schedule.ema_decay,
            )
            self.optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
            self.optimizer.build(model.trainable_variables)
        jit = bool(tf.config.list_physical_devices("GPU"))  # On this kind of CPU XLA makes depthwise convolutions slower.

        def replica_step(inputs: Any, targets: Any, weights: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                logits = tf.cast(model(tf.cast(inputs, dtype), training=False), dtype)
                losses = tf.nn.softmax_cross_entropy_with_logits(tf.cast(targets, dtype), logits)
                loss = tf.reduce_sum(losses * tf.cast(weights, dtype))
            gradients = tape.gradient(loss, model.trainable_variables)
            self.optimizer.apply(gradients, model.trainable_variables)  # Sums them over the replicas.
            correct = tf.cast(tf.argmax(logits, 1) == tf.argmax(targets, 1), dtype)
            return losses, correct

        def replica_forward(inputs: Any) -> tuple[Any]:
            return (tf.cast(model(tf.cast(inputs, dtype), training=False), dtype),)

        @tf.function(jit_compile=jit)
        def train_step(*batch: Any) -> Any:
            return cluster.strategy.run(replica_step, batch)

        @tf.function
        def forward(*inputs: Any) -> Any:
            return cluster.strategy.run(replica_forward, inputs)

        self._train_step, self._forward = train_step, forward

    def step(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One optimizer step; losses, hits and weights of the batch's examples, each of shape (B,)."""
        inputs, targets, weights = batch
        count = len(weights)
        shares = (weights / weights.sum(dtype=np.float64)).astype(self._dtype)
        size = self.cluster.padded_size(self.schedule.global_batch_size)
        losses, correct = self._train_step(*self.cluster.scatter(tuple(_padded(a, size) for a in (inputs, targets, shares))))
        return self.cluster.gather(losses)[:count], self.cluster.gather(correct)[:count], weights

    def epochs(self, batch_of_step: Callable[[int], Batch], before_step: Callable[[int], None]) -> Iterator[EpochResult]:
        """Train from the optimizer's step on to the end of the schedule, yielding after each epoch.

        Raises:
            Diverged: where the loss or a variable is no longer a finite number.
        """
        total = np.zeros(3)
        for step in range(int(_numpy(self.optimizer.iterations)), self.schedule.total_steps):
            before_step(step)
            losses, correct, weights = self.step(batch_of_step(step))
            total += [(losses * weights).sum(), (correct * weights).sum(), weights.sum()]
            if (step + 1) % self.schedule.steps_per_epoch == 0:
                self.check_finite(total[0])
                rate = self.schedule.learning_rate(step)
                yield EpochResult(self.schedule.epoch(step) + 1, step + 1, total[0] / total[2], total[1] / total[2], rate)
                total[:] = 0

    def logits(self, inputs: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Of all rows, float of shape (N, C), with the weights that count: the averaged ones where there are such.

        Raises:
            Diverged: where one is not finite, as large but finite weights can make them.
        """
        kept = self.model.get_weights() if self._ema else None
        if self._ema:
            self.optimizer.finalize_variable_values(self.model.trainable_variables)
        result = map_batches(self.cluster, self._forward, (inputs,), batch_size)[0]
        if kept is not None:
            self.model.set_weights(kept)
        if not np.isfinite(result).all():
            self.check_finite(np.nan)
        return result

    def final_weights(self) -> list[np.ndarray]:
        """All weights of the model, averaged where the average is what counts."""
        kept = self.model.get_weights()
        if self._ema:
            self.optimizer.finalize_variable_values(self.model.trainable_variables)
        final: list[np.ndarray] = self.model.get_weights()
        self.model.set_weights(kept)
        return final

    def check_finite(self, loss: float) -> None:
        bad = [v.path for v in self.model.variables if not np.isfinite(_numpy(v)).all()]
        if bad or not np.isfinite(loss):
            where = f"{len(bad)} variables, {bad[0]} the first" if bad else "the loss"
            raise Diverged(
                f"Training diverged: {where} left the finite numbers. Nothing of it was published. "
                f"Lower fine_tune.learning_rate (it was {self.schedule.peak_learning_rate:g})."
            )


def _numpy(variable: Any) -> np.ndarray:
    """The value of a Keras variable, mirrored or not."""
    import keras

    return keras.ops.convert_to_numpy(variable)


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """Rows repeated up to `size`; weights are padded with zeros, so repeated rows do not count."""
    missing = size - len(array)
    if missing <= 0:
        return array
    padding = np.zeros(missing, array.dtype) if array.ndim == 1 else np.repeat(array[:1], missing, axis=0)
    return np.concatenate([array, padding])


def _Course(schedule: Schedule) -> Any:  # noqa: N802 - a class made on demand, because its base needs Keras.
    import keras

    class Course(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        """`Schedule.learning_rate` in the graph."""

        def __call__(self, step: Any) -> Any:
            ops = keras.ops
            now = ops.cast(step, "float32")
            warmup = float(max(schedule.warmup_steps, 1))
            rest = float(max(1, schedule.total_steps - schedule.warmup_steps))
            progress = (now - schedule.warmup_steps) / rest
            falling = 0.5 * (1 + ops.cos(np.pi * progress))
            rising = (now + 1) / warmup
            return schedule.peak_learning_rate * ops.where(now < schedule.warmup_steps, rising, falling)

        def get_config(self) -> dict[str, Any]:
            return {}

    return Course()
