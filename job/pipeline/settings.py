"""The settings that each stage depends on, found by their names in the table of stages."""

from collections.abc import Callable, Mapping
from operator import attrgetter

from job.config import Config
from job.pipeline.table import STAGES
from job.sections import Section
from job.storage.files import digest_of


def settings_digest(stage: str, config: Config) -> str:
    """Return a digest of everything in the configuration that a stage's outcome depends on."""
    values = [_value(config, name) for name in STAGES[stage].settings]
    return digest_of(values[0] if len(values) == 1 else values)


def fine_tunes(config: Config) -> bool:
    """Return whether there is anything to fine-tune."""
    return config.fine_tune.epochs != 0 and config.backbone.unfreeze != "none"


def backbone_weights(config: Config) -> list[object]:
    """Return what the weights of the backbone depend on: a fingerprint of the file, or a seed."""
    from job.model import backbones

    return [backbones.fingerprint(config.backbone), config.seed if config.backbone.weights == "random" else None]


def _decoding(config: Config) -> object:
    """Return the settings of the pixels and the table of intake. Two limits in its section are applied by split."""
    of_split = {"max_quarantined_fraction", "drop_small_classes"}
    return {name: value for name, value in config.intake.what().items() if name not in of_split}


def _backbone(config: Config) -> object:
    return [*backbone_weights(config), config.backbone.unfreeze, config.intake.image_size]


_DERIVED: Mapping[str, Callable[[Config], object]] = {
    "decoding": _decoding,
    "backbone": _backbone,
    "fine_tunes": fine_tunes,
}


def _value(config: Config, name: str) -> object:
    """Return a derived value, the settings of a section that change the outcome, or a single setting."""
    if name in _DERIVED:
        return _DERIVED[name](config)
    found = attrgetter(name)(config)
    return found.what() if isinstance(found, Section) else found
