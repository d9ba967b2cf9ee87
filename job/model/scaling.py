"""Scaling of RGB pixels from 0 to 255, as in the pre-training of backbones: factors and summands of the channels."""

from collections.abc import Mapping
from typing import Literal

Rescaling = Literal["tf", "torch"]
Channels = float | list[float]

_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # Of ImageNet.
RESCALINGS: Mapping[Rescaling, tuple[Channels, Channels]] = {
    "tf": (1 / 127.5, -1.0),
    "torch": ([1 / (255 * d) for d in _DEVIATIONS], [-m / d for m, d in zip(_MEANS, _DEVIATIONS, strict=True)]),
}
