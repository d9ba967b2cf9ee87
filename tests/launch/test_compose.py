"""compose.yaml, as Docker Compose reads it. No GPU is here to run it on."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from job import cli
from job.config import Config
from tests.beds import missing
from tests.conftest import ROOT
from tests.launch.docker_bed import HARDENED


def config(**environment: str) -> "subprocess.CompletedProcess[str]":
    if not shutil.which("docker-compose"):
        missing("docker-compose is not installed (.ci/docker does that)")
    command = ["docker-compose", "--file", ROOT / "compose.yaml", "config"]
    environment = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def service(tmp_path: Path) -> dict[str, Any]:
    done = config(DATA=str(tmp_path))
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["services"]["job"]


def test_container_has_few_rights_all_gpus_and_time_to_save(service: dict[str, Any], tmp_path: Path) -> None:
    assert service["read_only"] and service["cap_drop"] == HARDENED["cap_drop"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert f"{tmp_path}:/data:ro" in service["volumes"]
    assert int(service["stop_grace_period"].removesuffix("s")) > Config().checkpoint.grace_s


def test_program_takes_its_command_line_and_writes_into_a_volume(service: dict[str, Any]) -> None:
    name, *rest = service["command"]
    options = cli.main.commands[name].make_context(name, rest).params
    assert (options["data"], options["out"]) == ("/data", "/out/first")
    assert Config.load(None, options["assignments"]).cluster.require_gpu
    assert {volume.split(":")[1] for volume in service["volumes"]} == {"/data", "/out", "/tmp"}


def test_without_photos_it_says_what_to_set() -> None:
    assert "Set DATA to the folder with your photos" in config().stderr
