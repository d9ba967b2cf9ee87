"""TensorFlow is imported once for all of these; the backbone is built once, with random weights."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

from job.cluster.devices import Devices
from job.model.network import Network
from job.sections import BackboneConfig

SIZE = 48


class CompiledOnce(Network):
    """A network that compiles its frozen layers once for each augmentation, which is most of the work of many tests."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._steps = {}

    def compiled(self, augmentation=None):
        config = augmentation and augmentation._config
        if config not in self._steps:
            self._steps[config] = super().compiled(augmentation)
        return self._steps[config]


@pytest.fixture(scope="session")
def network():
    config = BackboneConfig(name="mobilenet_v2", alpha=0.35, weights="random", unfreeze=0.4)
    return CompiledOnce(config, SIZE, Devices(), seed=1)


@pytest.fixture(scope="session")
def pixels():
    return np.random.default_rng(3).integers(0, 256, (24, SIZE, SIZE, 3)).astype(np.uint8)
