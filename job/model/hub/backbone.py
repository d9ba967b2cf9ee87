"""Backbones with the weights of a KerasHub preset: their settings, their scaling of pixels, and the model.

The architecture comes from the preset's `config.json`, or from the table of short names if there is only a weights file.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BaseModel, Field

from job.errors import UsageError
from job.model.hub.architecture import FAMILIES, RESCALINGS, Architecture, Channels, Features, from_config
from job.model.hub.names import preset
from job.model.presets import CONFIG_FILE, CONVERTER_FILE, WEIGHTS_FILE
from job.model.weight_files import digest_of_weights, local_weights
from job.sections import BackboneConfig
from job.storage.files import digest_of

if TYPE_CHECKING:
    import keras


def build(config: BackboneConfig, image_size: int) -> keras.Model:
    """Build the model and load its weights, unless they are random. It turns scaled pixels (N, S, S, 3) into features.

    Raises:
        UsageError: if the image size or the weights do not fit.
        StorageFailed: if weights can be neither found nor downloaded.
    """
    from job.model.hub import transformer, weights

    architecture, place = _found(config)
    if mistake := architecture.size_mistake(image_size):
        raise UsageError(f"backbone {config.name} at intake.image_size = {image_size}: it {mistake}")
    model = transformer.build(architecture, image_size, _features(config, architecture))
    if place is not None:
        weights.load(model, place / WEIGHTS_FILE if place.is_dir() else place, architecture)
    return model


def scaling(config: BackboneConfig) -> tuple[Channels, Channels]:
    """Return the factors and summands of the channels of RGB pixels from 0 to 255, as in the preset's image converter."""
    return _scaling(*_found(config))


def fingerprint(config: BackboneConfig) -> str:
    """Return a digest of everything that decides the features: architecture, weights, pooling, and scaling of pixels."""
    architecture, place = _found(config)
    weights = digest_of_weights(place) if place is not None else config.weights
    return digest_of([asdict(architecture), _features(config, architecture), _scaling(architecture, place), weights])


def _found(config: BackboneConfig) -> tuple[Architecture, Path | None]:
    """Return the architecture, and the file or folder of weights on this machine, which is None for random ones."""
    known = preset(config.name)
    assert known is not None
    place = None if config.weights == "random" else local_weights(config)
    if place is None or not place.is_dir():
        if known.architecture is None:
            raise UsageError(
                f"backbone.name: {config.name} is not in docs/backbones.md, and a file does not say how to build it; "
                f"give --weights a folder that has {CONFIG_FILE}, too"
            )
        return known.architecture, place
    file = place / CONFIG_FILE
    try:
        architecture = from_config(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: this preset cannot be built: {' '.join(str(error).split())}") from error
    if known.architecture is not None and str(architecture) != str(known.architecture):
        raise UsageError(
            f"{file}: this is a {architecture}, and {config.name} is a {known.architecture}. Set backbone.name to the model "
            "of the folder."
        )
    return architecture, place


def _features(config: BackboneConfig, architecture: Architecture) -> Features:
    return FAMILIES[architecture.family].features if config.features == "auto" else config.features


_RGB = float | Annotated[list[float], Field(min_length=3, max_length=3)]


class _Converter(BaseModel):
    """The numbers of an image converter of KerasHub. Older ones have the mean and variance of scaled pixels."""

    scale: _RGB | None = None
    offset: _RGB | None = None
    mean: _RGB = 0.0
    variance: _RGB = 1.0


class _SavedConverter(BaseModel):
    config: _Converter


def _scaling(architecture: Architecture, place: Path | None) -> tuple[Channels, Channels]:
    """Return factors and summands of the channels: those of the preset's image converter, or those of its family."""
    file = place / CONVERTER_FILE if place is not None else None
    if file is None or not file.is_file():
        return RESCALINGS[FAMILIES[architecture.family].scaling]
    try:
        found = _SavedConverter.model_validate_json(file.read_bytes()).config
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: this is no image converter of KerasHub: {' '.join(str(error).split())}") from error
    deviation = np.sqrt(np.broadcast_to(found.variance, 3))
    scale = (1.0 if found.scale is None else np.asarray(found.scale)) / deviation
    offset = (0.0 if found.offset is None else np.asarray(found.offset)) - np.asarray(found.mean) / deviation
    return scale.tolist(), offset.tolist()
