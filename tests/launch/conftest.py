"""What the launchers' tests share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.models.images import Image

from tests.beds import missing
from tests.conftest import ROOT
from tests.launch import docker_bed


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[docker.DockerClient]:
    with docker_bed.engine() as client:
        yield client


@pytest.fixture(scope="session")
def image(docker_engine: docker.DockerClient) -> Image:
    """The image for CPUs, from this checkout."""
    return docker_bed.build(docker_engine, "transfer-job:test")


@pytest.fixture(scope="session")
def kubectl() -> str:
    return shutil.which("kubectl") or missing("kubectl is not installed")


@pytest.fixture
def k8s(tmp_path: Path) -> Path:
    """A copy of the folder, for a user to edit."""
    return Path(shutil.copytree(ROOT / "k8s", tmp_path / "k8s"))
