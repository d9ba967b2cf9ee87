"""The recipe of training: values for the settings that are `auto`, by the number of training photos and `train.quality`.

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


@dataclass(frozen=True)
class Quality:
    """A value of `train.quality`: what it decides where settings are auto.

    `unfreeze` is the share of the backbone that is fine-tuned, `seeds` the number of times. `epochs` and `views` multiply
    those of `_RULES`. With `mirrors`, the fine-tuned model answers with the mean over a photo and its mirror image, unless
    it was trained without mirrored views.
    """

    unfreeze: float
    epochs: float
    views: int
    seeds: int
    mirrors: bool


QUALITIES = {
    "fast": Quality(unfreeze=0.4, epochs=1, views=1, seeds=1, mirrors=False),
    "balanced": Quality(unfreeze=0.68, epochs=7 / 6, views=2, seeds=1, mirrors=True),
    "best": Quality(unfreeze=0.68, epochs=8 / 3, views=4, seeds=2, mirrors=True),
}

# A training step passes forward through the trained layers, and back in about twice the time. Measured on CPUs, in forward
# passes of the whole backbone for each unit of `share_above`: 1.0 to 1.6 (MobileNetV2), 3.1 (DenseNet121), 4.1 (ResNet50).
_PASSES_OF_A_STEP = 3


@dataclass(frozen=True)
class Recipe:
    """Number of epochs, examples per step on all devices together, peak learning rate, stored views per training photo.

    Training is done `seeds` times.
    """

    epochs: int
    global_batch_size: int
    learning_rate: float
    views: int
    seeds: int = 1

    @classmethod
    def resolve(cls, config: Config, *, num_examples: int) -> Self:
        """Return the recipe for `num_examples` training photos. A setting that is not `auto` keeps its value."""
        _, epochs, batch_size, learning_rate, views = next(rule for rule in _RULES if num_examples <= rule[0])
        tuning, quality = config.fine_tune, QUALITIES[config.train.quality]
        return cls(
            round(epochs * quality.epochs) if tuning.epochs == "auto" else tuning.epochs,
            batch_size if tuning.global_batch_size == "auto" else tuning.global_batch_size,
            learning_rate if tuning.learning_rate == "auto" else tuning.learning_rate,
            views * quality.views if config.augment.views == "auto" else config.augment.views,
            quality.seeds if config.train.seeds == "auto" else config.train.seeds,
        )

    def forward_passes(self, num_examples: int, share_above: float, *, stored: bool) -> float:
        """Return as how many forward passes of the whole backbone, with one view each, fine-tuning takes about as long.

        `share_above` is the share of the backbone that is trained. Without `stored` inputs, the frozen share is computed in
        every epoch, too.
        """
        passes_of_a_step = _PASSES_OF_A_STEP * share_above + (0 if stored else 1 - share_above)
        return self.seeds * self.epochs * num_examples * passes_of_a_step


def with_quality(config: Config) -> Config:
    """Return the configuration without auto in `backbone.unfreeze` and `evaluate.mirror`: its quality decides there."""
    quality, backbone, evaluate = QUALITIES[config.train.quality], config.backbone, config.evaluate
    if backbone.unfreeze == "auto":
        backbone = backbone.model_copy(update={"unfreeze": quality.unfreeze})
    if evaluate.mirror == "auto":
        evaluate = evaluate.model_copy(update={"mirror": quality.mirrors and config.augment.horizontal_flip})
    return config.model_copy(update={"backbone": backbone, "evaluate": evaluate})
