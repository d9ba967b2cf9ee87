"""Settings of training that follow from the number of training photos where they are left to `auto`.

The shape of the rules is that of BiT-HyperRule (Kolesnikov et al., "Big Transfer (BiT): General Visual Representation
Learning", 2020, section 3.3): one schedule for each size of data set, and nothing to tune. Their numbers were found by
cross-validation on training photos of flowers, in parts of 120 to 2,000; docs/defaults.md has the measurements.
"""

from dataclasses import dataclass
from typing import Self

from job.config import Config

# Up to so many training photos: epochs, examples in a step, peak learning rate, stored views.
_RULES = (
    (200, 10, 32, 3e-4, 4),
    (400, 10, 32, 6e-4, 4),
    (1_500, 10, 32, 1e-3, 4),
    (20_000, 6, 64, 1e-3, 2),
    (100_000, 4, 128, 1e-3, 2),
    (float("inf"), 3, 256, 1e-3, 1),
)


@dataclass(frozen=True)
class Recipe:
    """`views` of each training photo are stored; `global_batch_size` examples make a step, on however many devices."""

    epochs: int
    global_batch_size: int
    learning_rate: float
    views: int

    @classmethod
    def resolve(cls, config: Config, *, num_examples: int) -> Self:
        """Return the recipe for `num_examples` training photos. Settings of the configuration stay as they are."""
        _, epochs, batch_size, learning_rate, views = next(rule for rule in _RULES if num_examples <= rule[0])
        tuning = config.fine_tune
        return cls(
            epochs if tuning.epochs == "auto" else tuning.epochs,
            batch_size if tuning.global_batch_size == "auto" else tuning.global_batch_size,
            learning_rate if tuning.learning_rate == "auto" else tuning.learning_rate,
            views if config.augment.views == "auto" else config.augment.views,
        )
