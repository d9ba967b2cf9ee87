"""A Docker engine for tests, which leaves nothing behind, and the image.

The engine is started in a temporary folder. A registry is not needed: Debian's packages make a stand-in for the official
Python image. Where DOCKER_HOST is set, that engine is taken, and pulls the base that the Dockerfile names.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import BuildError, DockerException
from docker.models.containers import Container
from docker.models.images import Image

from tests.beds import missing
from tests.conftest import ROOT, WAIT_S

BASE = "python:3.11-slim-bookworm"
# As little as a container can have: what a cluster with the strictest rules leaves to it.
HARDENED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "network_mode": "none",
}
_PACKAGES = "ca-certificates,python3.11,python3.11-venv,python3-pip"
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
_LEFT_OUT = (_CERTIFICATES, "dev/*", "var/cache/apt/*", "var/lib/apt/lists/*", "usr/share/doc/*", "usr/share/locale/*")
_START_TIMEOUT_S = 60


@contextmanager
def engine() -> Iterator[docker.DockerClient]:
    if "DOCKER_HOST" in os.environ:
        yield docker.from_env()
        return
    for program in ("dockerd", "debootstrap"):
        if not shutil.which(program):
            missing(f"{program} is not installed (.ci/docker does that)")
    if os.geteuid() != 0:
        missing("only root can start a Docker engine; DOCKER_HOST names one that runs")
    # Not pytest's folder, which is kept for three sessions: an engine with an image takes 4 GB.
    with tempfile.TemporaryDirectory(prefix="docker-") as folder, _daemon(Path(folder)) as client:
        _import_base(client, Path(folder) / "base.tar")
        yield client


@contextmanager
def _daemon(folder: Path) -> Iterator[docker.DockerClient]:
    address, log = f"unix://{folder}/docker.sock", folder / "dockerd.log"
    command = ["unshare", "--mount"]  # Its mounts end with it.
    command += ["dockerd", "--host", address, "--pidfile", str(folder / "dockerd.pid")]
    command += ["--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    command += ["--iptables=false", "--bridge=none"]  # The network of the machine stays as it is.
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as daemon:
        try:
            yield _connected(daemon, address, log)
        finally:
            daemon.terminate()


def _connected(daemon: subprocess.Popen[bytes], address: str, log: Path) -> docker.DockerClient:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            return docker.DockerClient(address, timeout=WAIT_S)
        except DockerException:  # Until it listens.
            if daemon.poll() is not None or time.monotonic() > deadline:
                missing(f"dockerd does not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)


def _import_base(client: docker.DockerClient, scratch: Path) -> None:
    """What is the machine's own goes into a copy: the certificates and the package index that pip needs here."""
    shutil.copyfile(_base(), scratch)
    with tarfile.open(scratch, "a") as archive:
        archive.add(f"/{_CERTIFICATES}")
        settings = scratch.with_name("pip.conf")
        settings.write_text(_pip_settings())
        archive.add(settings, "etc/pip.conf")
    name, tag = BASE.split(":")
    path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    client.api.import_image(str(scratch), repository=name, tag=tag, changes=[f"ENV {path}", "ENV LANG=C.UTF-8"])
    scratch.unlink()


def _base() -> Path:
    """A root file system with Python where the official image has it, kept from session to session."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transfer-job" / "docker-base.tar"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        root, archive = Path(folder) / "root", Path(folder) / kept.name
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            missing(f"debootstrap fails:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
        for name in ("python", "python3"):
            (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
        excluded = [f"--exclude=./{pattern}" for pattern in _LEFT_OUT]
        subprocess.run(["tar", "--directory", str(root), *excluded, "--create", "--file", str(archive), "."], check=True)
        archive.replace(kept)
    return kept


def _pip_settings() -> str:
    """Where this machine's pip gets its packages; files of this machine are not in the image, and left out."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    lines = ["[global]"]
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in ("index-url", "extra-index-url", "proxy", "trusted-host") and "file:" not in value:
            lines.append(f"{key} = {value.strip(chr(39))}")
    return "\n".join(lines) + "\n"


def build(client: docker.DockerClient, tag: str, context: Path = ROOT) -> Image:
    """The image as `make image` builds it, from the base that is here."""
    arguments = {} if "DOCKER_HOST" in os.environ else {"BASE": BASE}
    try:
        # An engine without a bridge has no other network than the machine's.
        image, _ = client.images.build(
            path=str(context), tag=tag, buildargs=arguments, network_mode="host", rm=True, forcerm=True
        )
    except BuildError as error:
        pytest.fail("".join(line.get("stream", "") for line in error.build_log)[-4000:], pytrace=False)
    return image


@contextmanager
def started(image: Image, *arguments: str, **options: Any) -> Iterator[Container]:
    """A container at work, removed in the end."""
    container = image.client.containers.run(image, list(arguments), detach=True, **options)
    try:
        yield container
    finally:
        container.remove(force=True)


def said(container: Container) -> str:
    return container.logs().decode()


def ended(image: Image, *arguments: str, **options: Any) -> tuple[int, str]:
    """The exit code of a container that ran to its end, and what it said."""
    with started(image, *arguments, **options) as container:
        code = container.wait(timeout=WAIT_S)["StatusCode"]
        return code, said(container)
