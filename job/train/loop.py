"""The training loop: a compiled training step of a Keras model with a Keras optimizer, and the loop over epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from job.cluster.replicas import Replicas, Tensors
from job.errors import Diverged, UsageError
from job.runtime.telemetry import Telemetry
from job.train.adamw import adamw
from job.train.checkpoint import TrainState, numbered
from job.train.feed import LARGEST_BATCH, Arrays, ahead, all_rows, even_batch_size, run_batches
from job.train.schedule import Schedule

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# The examples of a step: a function that loads the arrays for some positions in the batch (each worker loads only its own
# part); targets (B, C), whose rows sum to 1; and weights (B,).
Batch = tuple[Callable[[np.ndarray], Arrays], np.ndarray, np.ndarray]


class Inputs(Protocol):
    """Inputs of the trained layers: arrays from the host, and the model's input (B, ...) that the device makes of them."""

    def plain(self, rows_B: np.ndarray) -> Arrays:
        """Return the arrays for photos without augmentation. `rows_B` are rows of the image store."""

    def on_device(self, arrays: Tensors, *, training: bool) -> tf.Tensor:
        """Return the model's input (B, ...) from the arrays of a training batch or of `plain`."""


@dataclass(frozen=True)
class EpochResult:
    """Weighted mean training loss and accuracy of an epoch. `last_step` is the number of steps done so far."""

    epoch: int
    last_step: int
    train_loss: float
    train_accuracy: float
    learning_rate: float


class Trainer:
    """Training of a model, from inputs to logits, on replicas that share each batch.

    If other workers have some of the replicas, every worker must make the same calls.

    The gradient of a step is that of the weighted mean loss over the whole global batch. It does not depend on the number of
    replicas, nor on the parts into which a replica divides its share because of too little memory. A short batch is padded
    with examples of weight zero.

    `rate_factors` are those of the learning rate of each trainable variable; without them, all learn at the same rate.
    """

    def __init__(
        self,
        model: keras.Model,
        schedule: Schedule,
        replicas: Replicas,
        inputs: Inputs,
        *,
        weight_decay: float,
        ema: bool,
        telemetry: Telemetry,
        rate_factors: Sequence[float] = (),
    ) -> None:
        self.model, self.schedule, self.replicas, self.inputs = model, schedule, replicas, inputs
        self._ema, self._telemetry = ema, telemetry
        self.num_parts = 1
        self._sums = np.zeros(3)  # Sums over the current epoch: losses, correct predictions, weights.
        self._dtype = "float64" if model.variables[0].dtype == "float64" else "float32"
        with replicas.strategy.scope():
            self.optimizer = adamw(schedule, rate_factors, weight_decay=weight_decay, ema=ema)
            self.optimizer.build(model.trainable_variables)
        self._train_step, self._forward = self._compiled_step(), self._compiled_forward()

    def _compiled_step(self) -> Callable[..., Tensors]:
        import tensorflow as tf

        model, dtype, num_parts = self.model, self._dtype, self.num_parts

        def loss_and_gradients(
            arrays: Tensors, targets: tf.Tensor, shares: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
            inputs = tf.cast(self.inputs.on_device(arrays, training=True), dtype)
            with tf.GradientTape() as tape:
                logits = tf.cast(model(inputs, training=False), dtype)
                losses = tf.nn.softmax_cross_entropy_with_logits(tf.cast(targets, dtype), logits)
                loss = tf.reduce_sum(losses * tf.cast(shares, dtype))
            correct = tf.cast(tf.argmax(logits, 1) == tf.argmax(targets, 1), dtype)
            return losses, correct, tape.gradient(loss, model.trainable_variables)

        def replica_step(targets: tf.Tensor, shares: tf.Tensor, *arrays: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            losses, correct, gradients = [], [], None
            for part in zip(*(tf.split(a, num_parts) for a in (targets, shares, *arrays)), strict=True):
                with tf.control_dependencies(gradients or []):  # One part at a time, or all would be in memory at once.
                    more_losses, more_correct, more = loss_and_gradients(part[2:], *part[:2])
                gradients = [a + b for a, b in zip(gradients, more, strict=True)] if gradients else more
                losses.append(more_losses)
                correct.append(more_correct)
            with tf.control_dependencies(gradients):  # If memory runs out before this, no weight has changed yet.
                self.optimizer.apply(gradients, model.trainable_variables)  # Sums the gradients over the replicas.
            return tf.concat(losses, 0), tf.concat(correct, 0)

        # No XLA on CPUs, where it makes depthwise convolutions slower, nor with several replicas, which it cannot sum over.
        jit = self.replicas.num == 1 and bool(tf.config.list_physical_devices("GPU"))
        return self.replicas.compiled(replica_step, jit=jit)

    def _compiled_forward(self) -> Callable[..., Tensors]:
        import tensorflow as tf

        model, dtype = self.model, self._dtype

        def replica_forward(*arrays: tf.Tensor) -> tuple[tf.Tensor]:
            inputs = tf.cast(self.inputs.on_device(arrays, training=False), dtype)
            return (tf.cast(model(inputs, training=False), dtype),)

        return self.replicas.compiled(replica_forward)

    def step(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Do one optimizer step. Return losses, correctness (1 or 0) and weights of the examples, each of shape (B,).

        Raises:
            UsageError: if not even one example per replica fits into its memory.
        """
        return self._compute(batch, self._own_part(batch))

    def _own_part(self, batch: Batch) -> Arrays:
        """Return this worker's part of a batch: targets, weights that sum to 1 over the whole batch, and input arrays."""
        load, targets, weights = batch
        unit = self.replicas.num * self.num_parts
        size = -(-self.schedule.global_batch_size // unit) * unit
        numbers, own = np.arange(len(weights)), self.replicas.own(size)
        padded = np.pad(numbers, (0, size - len(numbers)))[own]  # The padding repeats an example, with weight zero.
        shares = np.pad(weights / weights.sum(dtype=np.float64), (0, size - len(numbers)))[own].astype(self._dtype)
        return (targets[padded], shares, *load(padded))

    def _compute(self, batch: Batch, own_part: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import tensorflow as tf

        count = len(batch[2])
        while True:
            if len(own_part[0]) % (self.replicas.num_local * self.num_parts):  # Made for a smaller number of parts.
                own_part = self._own_part(batch)
            try:
                with self._telemetry.spent_tracing(self._train_step, "training", count):
                    losses, correct = self._train_step(*self.replicas.scatter(own_part))
                    return self.replicas.gather(losses)[:count], self.replicas.gather(correct)[:count], batch[2]
            except tf.errors.ResourceExhaustedError as error:
                self._halve(error)

    def _halve(self, error: Exception) -> None:
        """Compute each replica's share in twice as many parts from now on. This takes less memory for the same step."""
        size = self.replicas.padded_size(self.schedule.global_batch_size)
        if self.replicas.num > self.replicas.num_local:
            raise UsageError(
                f"A replica's share of a batch, {size // self.replicas.num} examples, does not fit into its memory. Lower "
                "fine_tune.global_batch_size or backbone.unfreeze, or start more workers."
            ) from error
        if self.num_parts * self.replicas.num * 2 > size:
            raise UsageError(
                "Not even the smallest part of a batch fits into the memory of the device. Lower backbone.unfreeze or "
                "intake.image_size, or choose a smaller backbone."
            ) from error
        self.num_parts *= 2
        per_part = -(-self.schedule.global_batch_size // (self.num_parts * self.replicas.num))
        said = f"out of memory; the batch is now computed in {self.num_parts} parts, {per_part} examples at a time"
        self._telemetry.line(f"  fine-tune: {said}", level="warning")
        self._telemetry.event("batch_halved", num_parts=self.num_parts, examples_at_a_time=per_part)
        self._train_step = self._compiled_step()

    def epochs(self, batch_of_step: Callable[[int], Batch], before_step: Callable[[int], None]) -> Iterator[EpochResult]:
        """Train from the optimizer's current step to the end of the schedule. Yield a result after each epoch.

        Raises:
            Diverged: if the loss or a variable is infinite or NaN.
        """
        steps = range(self.num_steps_done, self.schedule.total_steps)
        batches = ((batch, self._own_part(batch)) for batch in map(batch_of_step, steps))
        for step, (batch, own_part) in zip(steps, ahead(batches, self._telemetry), strict=True):
            before_step(step)
            losses, correct, weights = self._compute(batch, own_part)
            self._sums += [(losses * weights).sum(), (correct * weights).sum(), weights.sum()]
            if (step + 1) % self.schedule.steps_per_epoch == 0:
                self._check_finite(map(_numpy, self._variables))
                loss, accuracy = self._sums[:2] / self._sums[2]
                self._sums[:] = 0
                rate = self.schedule.learning_rate(step)
                yield EpochResult(self.schedule.epoch(step) + 1, step + 1, loss, accuracy, rate)

    @property
    def num_steps_done(self) -> int:
        return int(_numpy(self.optimizer.iterations))

    def state(self) -> TrainState:
        """Return the state of the model, the optimizer and the current epoch. Training resumes from it with the same bits.

        Raises:
            Diverged: if a number in it is infinite or NaN.
        """
        values = [np.array(_numpy(v)) for v in self._variables]
        self._check_finite(values)
        arrays = {**numbered("variable", values), "sums": self._sums.copy()}
        return TrainState(self.num_steps_done, arrays, {"num_parts": self.num_parts})

    def restore(self, state: TrainState) -> None:
        """Resume from the result of `state`, which may come from another process."""
        for variable, value in zip(self._variables, state.listed("variable"), strict=True):
            variable.assign(value)
        self._sums = state.arrays["sums"].copy()
        if state.notes["num_parts"] != self.num_parts:
            self.num_parts = state.notes["num_parts"]
            self._train_step = self._compiled_step()

    @property
    def _variables(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.optimizer.variables]

    def logits(self, rows_N: np.ndarray, largest_batch: int = LARGEST_BATCH) -> np.ndarray:
        """Return logits (N, C) of photos without augmentation. `rows_N` are rows of the image store.

        With `ema`, the averaged weights are used.

        Raises:
            Diverged: if a logit is infinite or NaN. Large but finite weights can cause this.
        """
        count, telemetry = len(rows_N), self._telemetry
        with self._with_final_weights():
            batches = run_batches(
                self.replicas,
                self._forward,
                lambda k: self.inputs.plain(rows_N[k]),
                count,
                even_batch_size(count, largest_batch),
                telemetry,
                "validation",
            )
            (result,) = all_rows(batches)
        if not np.isfinite(result).all():
            raise self._diverged("predictions")
        return result

    def final_weights(self) -> list[np.ndarray]:
        """Return all weights of the model. With `ema`, they are the averaged ones."""
        with self._with_final_weights():
            final: list[np.ndarray] = self.model.get_weights()
            return final

    @contextmanager
    def _with_final_weights(self) -> Iterator[None]:
        """Let the model have the averaged weights, with `ema`, while the block lasts."""
        if not self._ema:
            yield
            return
        kept = self.model.get_weights()
        self.optimizer.finalize_variable_values(self.model.trainable_variables)
        yield
        self.model.set_weights(kept)

    def _check_finite(self, values: Iterable[np.ndarray]) -> None:
        """Check every variable: a fused kernel can turn NaN into 0, so that the loss stays finite. Raises: Diverged."""
        bad = [v.path for v, value in zip(self._variables, values, strict=True) if not np.isfinite(value).all()]
        if bad or not np.isfinite(self._sums).all():
            raise self._diverged(f"{len(bad)} variables, {bad[0]} the first," if bad else "the loss")

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"Training diverged: {what} became infinite or NaN. No model was published. "
            f"Lower fine_tune.learning_rate (it was {self.schedule.peak_learning_rate:g})."
        )


def _numpy(variable: keras.Variable) -> np.ndarray:
    """Return the value of a Keras variable, also of one that is mirrored on several replicas."""
    import keras

    return keras.ops.convert_to_numpy(variable)
