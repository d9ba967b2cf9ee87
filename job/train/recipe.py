"""The recipe of training: values for the settings that are `auto`, by the number of training photos.

The form of the rules is that of BiT-HyperRule (Kolesnikov et al., "Big Transfer (BiT): General Visual Representation
Learning", 2020, section 3.3): one schedule for each size of data set, and nothing to tune. The numbers come from
cross-validation on 120 to 2,000 training photos of `flowers`; docs/defaults.md has the measurements.
"""

from dataclasses import dataclass
from typing import Self

from job.config import Config

# Columns: largest number of training photos; epochs, examples per step, peak learning rate, stored views.
_RULES = (
    (200, 10, 32, 3e-4, 4),
    (400, 10, 32, 6e-4, 4),
    (1_500, 10, 32, 1e-3, 4),
    (20_000, 6, 64, 1e-3, 2),
    (100_000, 4, 128, 1e-3, 2),
    (float("inf"), 3, 256, 1e-3, 1),
)

# A training step passes forward through the trained layers, and back in about twice the time. Measured on CPUs, in forward
# passes of the whole backbone for each unit of `share_above`: 1.0 to 1.6 (MobileNetV2), 3.1 (DenseNet121), 4.1 (ResNet50).
_PASSES_OF_A_STEP = 3


@dataclass(frozen=True)
class Recipe:
    """Number of epochs, examples per step on all devices together, peak learning rate, stored views per training photo."""

    epochs: int
    global_batch_size: int
    learning_rate: float
    views: int

    @classmethod
    def resolve(cls, config: Config, *, num_examples: int) -> Self:
        """Return the recipe for `num_examples` training photos. A setting that is not `auto` keeps its value."""
        _, epochs, batch_size, learning_rate, views = next(rule for rule in _RULES if num_examples <= rule[0])
        tuning = config.fine_tune
        return cls(
            epochs if tuning.epochs == "auto" else tuning.epochs,
            batch_size if tuning.global_batch_size == "auto" else tuning.global_batch_size,
            learning_rate if tuning.learning_rate == "auto" else tuning.learning_rate,
            views if config.augment.views == "auto" else config.augment.views,
        )

    def forward_passes(self, num_examples: int, share_above: float, *, stored: bool) -> float:
        """Return as how many forward passes of the whole backbone, with one view each, fine-tuning takes about as long.

        `share_above` is the share of the backbone that is trained. Without `stored` inputs, the frozen share is computed in
        every epoch, too.
        """
        return self.epochs * num_examples * (_PASSES_OF_A_STEP * share_above + (0 if stored else 1 - share_above))
