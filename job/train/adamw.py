"""AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019) with the learning rate of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from job.train.schedule import Schedule

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Weight decay is not applied to biases and to the parameters of normalization layers.
_NOT_DECAYED = ["bias", "gamma", "beta"]


def adamw(schedule: Schedule, rate_factors_V: Sequence[float], *, weight_decay: float, ema: bool) -> keras.optimizers.AdamW:
    """Return an optimizer whose learning rate follows a schedule.

    `rate_factors_V` multiply the learning rate, and so the weight decay, of each of V variables. Without any, all are 1.

    Its steps are those of Keras' AdamW. Keras uses 25 operations for each variable, which take half of the time of tracing a
    training step (docs/decisions/0034-the-last-seconds.md). This optimizer uses a single operation of TensorFlow.
    """
    import keras
    import tensorflow as tf

    class AdamW(keras.optimizers.AdamW):  # type: ignore[misc]
        """Keras' optimizer with a step of one operation."""

        def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
            """Do nothing: each variable decays in `update_step`, where its rate is known."""

        def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
            index, dtype = self._get_variable_index(variable), variable.dtype
            rate = tf.cast(learning_rate, dtype) * (rate_factors_V[index] if rate_factors_V else 1)
            if self._use_weight_decay(variable):
                variable.assign_sub(variable * (self.weight_decay * rate))
            beta_1, beta_2 = tf.constant(self.beta_1, dtype), tf.constant(self.beta_2, dtype)
            step = tf.cast(self.iterations + 1, dtype)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[index].value.handle,
                v=self._velocities[index].value.handle,
                beta1_power=beta_1**step,
                beta2_power=beta_2**step,
                lr=rate,
                beta1=beta_1,
                beta2=beta_2,
                epsilon=tf.constant(self.epsilon, dtype),
                grad=gradient,
            )

    rate = _learning_rate(schedule)
    optimizer = AdamW(rate, weight_decay=weight_decay, use_ema=ema, ema_momentum=schedule.ema_decay)
    optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    return optimizer


def _learning_rate(schedule: Schedule) -> keras.optimizers.schedules.LearningRateSchedule:
    import keras

    class LearningRate(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        """The learning rate of a `Schedule`, as TensorFlow operations."""

        def __call__(self, step: tf.Tensor) -> tf.Tensor:
            ops = keras.ops
            now = ops.cast(step, "float32")
            warmup = float(max(schedule.warmup_steps, 1))
            rest = float(max(1, schedule.total_steps - schedule.warmup_steps))
            progress = (now - schedule.warmup_steps) / rest
            falling = 0.5 * (1 + ops.cos(np.pi * progress))
            rising = (now + 1) / warmup
            return schedule.peak_learning_rate * ops.where(now < schedule.warmup_steps, rising, falling)

        def get_config(self) -> dict[str, object]:
            return {}

    return LearningRate()
