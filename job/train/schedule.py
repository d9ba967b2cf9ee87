"""The schedule: the examples, their views and the learning rate of each step.

All of it is a pure function of (seed, step). So a run resumes by jumping to a step, and any number of devices sees the same
batches.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from job.train.recipe import Recipe


@dataclass(frozen=True)
class Schedule:
    """The plan of a training run, in steps. The views of its epochs are those from `first_epoch` on."""

    num_examples: int
    global_batch_size: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    peak_learning_rate: float
    seed: int
    first_epoch: int = 0

    @classmethod
    def resolve(cls, recipe: Recipe, *, num_examples: int, warmup_fraction: float, seed: int, repetition: int = 0) -> Self:
        """Return the schedule of a repetition of the training, counted from 0. Each has its own order and views."""
        steps_per_epoch = -(-num_examples // recipe.global_batch_size)
        total_steps = steps_per_epoch * recipe.epochs
        return cls(
            num_examples=num_examples,
            global_batch_size=recipe.global_batch_size,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            warmup_steps=min(total_steps - 1, round(warmup_fraction * total_steps)) if total_steps else 0,
            peak_learning_rate=recipe.learning_rate,
            seed=seed + repetition,
            first_epoch=repetition * recipe.epochs,
        )

    @property
    def total_examples(self) -> int:
        """Number of examples in all epochs together."""
        return self.num_examples * (self.total_steps // self.steps_per_epoch)

    @property
    def ema_decay(self) -> float:
        """Decay of the moving average of the weights, which covers the last tenth of the training."""
        return max(0.0, 1 - 10 / max(self.total_steps, 10))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then half a cosine to zero (Loshchilov and Hutter, "SGDR", 2017)."""
        if step < self.warmup_steps:
            return self.peak_learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.peak_learning_rate * 0.5 * (1 + float(np.cos(np.pi * progress)))

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Return the positions of a step's examples among the examples sorted by key. The last batch may be shorter."""
        epoch = self.epoch(step)
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.num_examples)
        start = (step - epoch * self.steps_per_epoch) * self.global_batch_size
        return order[start : start + self.global_batch_size]

    def views(self, step: int, keys_B: np.ndarray, num_views: int | None) -> np.ndarray:
        """Return each example's view number. Each epoch takes the next of `num_views`, or a new view if that is None."""
        epoch = self.first_epoch + self.epoch(step)
        if num_views is None:
            return np.full(len(keys_B), epoch + 1)
        return ((keys_B % np.uint64(num_views)).astype(np.int64) + epoch) % num_views
