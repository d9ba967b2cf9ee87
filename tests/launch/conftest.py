"""What the launchers' tests share."""

from collections.abc import Iterator

import docker
import pytest
from docker.models.images import Image

from tests.launch import docker_bed


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[docker.DockerClient]:
    with docker_bed.engine() as client:
        yield client


@pytest.fixture(scope="session")
def image(docker_engine: docker.DockerClient) -> Image:
    """The image for CPUs, from this checkout."""
    return docker_bed.build(docker_engine, "transfer-job:test")
