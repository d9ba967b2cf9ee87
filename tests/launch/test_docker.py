"""The image in a real engine: what is in it, under the strictest rules, stopped, short of memory, short of cores."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container
from docker.models.images import Image
from docker.models.volumes import Volume

from job.runtime.cgroups import usable_cores
from job.version import __version__
from tests.clouds.fixtures import GoogleBed
from tests.conftest import ROOT, WAIT_S, quick_settings, run_job, wait_until
from tests.launch.docker_bed import HARDENED, build, ended, said, started

# Training long enough to be stopped in its middle.
SETTINGS = quick_settings("fine_tune.epochs=60", "fine_tune.global_batch_size=8", "checkpoint.every_s=0.3")
WEIGHTS = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
CANARY = "CANARY-THAT-THE-TESTS-HAVE-PLANTED"


@pytest.fixture
def volume(docker_engine: docker.DockerClient) -> Iterator[Volume]:
    """A new one belongs to root, and takes over owner and mode of the folder of the image that it is mounted on."""
    volume = docker_engine.volumes.create()
    yield volume
    volume.remove(force=True)


def read_only(*folders: tuple[Path, str]) -> dict[str, dict[str, str]]:
    return {str(path.resolve()): {"bind": target, "mode": "ro"} for path, target in folders}


def wait_until_it_says(container: Container, text: str) -> None:
    def is_running() -> bool:
        container.reload()
        return container.status == "running"

    wait_until(lambda: text in said(container), lambda: said(container), is_alive=is_running)


def test_image_is_small_and_says_what_it_is(image: Image) -> None:
    about = image.attrs["Config"]
    assert image.attrs["Size"] < 1.5e9
    assert about["Entrypoint"] == ["python", "-P", "-m", "job"]
    assert about["User"] == "10001"
    assert about["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not about.get("Healthcheck")


def test_every_package_in_the_image_is_listed_with_its_licence(image: Image) -> None:
    script = """from importlib.metadata import distributions
for package in distributions():
    print(package.name.lower().replace("_", "-"), package.version)"""
    _, installed = ended(image, "-c", script, entrypoint="python", **HARDENED)
    _, listed = ended(image, "/opt/job/THIRD_PARTY.md", entrypoint="cat", **HARDENED)
    unlisted = [line for line in installed.splitlines() if f"| {line.replace(' ', ' | ')} |" not in listed]
    assert unlisted == [f"transfer-job {__version__}"]


def test_pip_adds_packages_to_those_of_the_job(image: Image, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "more"\nversion = "1"\n')
    (tmp_path / "more.py").write_text("import job, tensorflow\n")
    script = """set -e
        cp -r /more /tmp
        pip install --no-index --no-build-isolation /tmp/more
        pip check
        python -c 'import more; print(more.__file__)'"""
    code, text = ended(
        image, "-c", script, entrypoint="sh", user="0", network_mode="none", volumes=read_only((tmp_path, "/more"))
    )
    assert code == 0, text
    assert "/opt/job/lib/python3.11/site-packages/more.py" in text


def test_without_arguments_it_says_how_it_is_used(image: Image) -> None:
    code, text = ended(image, **HARDENED)
    assert code == 0
    assert "docker run --rm -v results:/out IMAGE demo" in text


def test_demo_runs_with_nothing_but_a_volume_and_compiles_nothing(image: Image, volume: Volume) -> None:
    """A container cannot keep the bytecode that it makes, so it would make it again at each start."""
    mounts = {volume.name: {"bind": "/out", "mode": "rw"}}
    # Python says about each import which file it took. What TensorFlow writes into /tmp, and imports, may be source.
    script = """python -v -P -m job demo 2> /tmp/said || { tail -n 50 /tmp/said; exit 1; }
        echo "bytecode: $(grep -c "code object from '.*[.]pyc'" /tmp/said)"
        grep "code object from '/[ou].*[.]py'" /tmp/said || true"""
    code, text = ended(image, "-c", script, entrypoint="sh", user="10001", volumes=mounts, **HARDENED)
    assert code == 0, text
    assert "Report: /out/demo-run/run/report.html" in text
    num_imports, *compiled = text.rpartition("bytecode: ")[2].splitlines()
    assert int(num_imports) > 2000 and compiled == []


def test_stopped_container_ends_with_143_and_goes_on(image: Image, volume: Volume, shared: Path) -> None:
    mounts = read_only((shared / "data" / "tiny-flowers", "/data"), (shared / "weights" / WEIGHTS, "/weights.h5"))
    mounts[volume.name] = {"bind": "/out", "mode": "rw"}
    command = ["run", "--data", "/data", "--out", "/out", *SETTINGS, "--weights", "/weights.h5"]
    with started(image, *command, user="10001", volumes=mounts, **HARDENED) as container:
        wait_until_it_says(container, "fine_tune runs")
        first_process = container.exec_run(["cat", "/proc/1/cmdline"]).output.decode().split("\0")
        container.stop(timeout=60)
        assert container.wait()["StatusCode"] == 143, said(container)
        assert "Stopped by SIGTERM in fine_tune" in said(container)
    assert first_process[:5] == ["python", "-P", "-m", "job", "run"]
    with started(image, *command, user="10001", volumes=mounts, **HARDENED) as container:
        wait_until_it_says(container, "resuming from the checkpoint at step")
        assert "head      skipped: unchanged" in said(container)


def test_run_that_memory_was_too_little_for_goes_on_with_more_as_any_user(
    image: Image, volume: Volume, painted: Path
) -> None:
    painted.chmod(0o755)  # Any user is to read it.
    mounts = read_only((painted, "/data")) | {volume.name: {"bind": "/out", "mode": "rw"}}
    command = ["run", "--data", "/data", "--out", "/out", *quick_settings()]
    options = {"user": "12345:12345", "volumes": mounts, **HARDENED}
    with started(image, *command, mem_limit="300m", memswap_limit="300m", **options) as container:
        assert container.wait(timeout=WAIT_S)["StatusCode"] == 137, said(container)
        container.reload()
        assert container.attrs["State"]["OOMKilled"]
        assert "explore   done" in said(container)
    code, text = ended(image, *command, **options)
    assert code == 0, text
    assert "explore   skipped: unchanged" in text
    assert "Report: /out/report.html" in text


def test_container_works_from_bucket_to_bucket_and_another_one_with_other_scratch_goes_on(
    image: Image, volume: Volume, google: GoogleBed, painted: Path
) -> None:
    data, out = google.put_folder(painted, f"{google.bucket()}/photos"), f"{google.bucket()}/runs/first"
    command = ["run", "--data", data, "--out", out, *quick_settings()]
    options = {**HARDENED, "network_mode": "host", "user": "10001", "environment": google.environment}
    code, text = ended(image, *command, "--stop-after", "head", **options)
    assert code == 0, text
    on_disk = {"tmpfs": {}, "volumes": {volume.name: {"bind": "/tmp", "mode": "rw"}}}
    code, text = ended(image, *command, **options | on_disk)
    assert code == 0, text
    assert "head      skipped: unchanged" in text
    assert f"Report: {out}/report.html" in text and f"{out}/report.html" in google.names(out)


@pytest.mark.parametrize(
    ("variable", "scheme"), [("GOOGLE_APPLICATION_CREDENTIALS", "gs"), ("AWS_PROFILE", "s3")], ids=["google", "amazon"]
)
def test_missing_credentials_are_said_in_a_line_for_each_service(image: Image, variable: str, scheme: str) -> None:
    command = ["run", "--data", f"{scheme}://bucket/photos", "--out", "/tmp/out"]
    code, text = ended(image, *command, environment={variable: "/nowhere"}, **HARDENED)
    assert code == 2, text
    assert f"{scheme}://bucket/photos: no credentials" in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("limits", "cores"),
    [({}, 1024), ({"cpuset_cpus": "0"}, 1), ({"nano_cpus": 500_000_000}, 1), ({"nano_cpus": 1_500_000_000}, 2)],
    ids=["none", "one core", "half of a core's time", "one and a half"],
)
def test_limits_of_the_container_are_known(image: Image, limits: dict[str, object], cores: int) -> None:
    ask = "from job.runtime import cgroups; print(cgroups.usable_cores(), cgroups.memory_bytes())"
    code, text = ended(image, "-c", ask, entrypoint="python", mem_limit="512m", **limits, **HARDENED)
    assert code == 0, text
    assert text.split() == [str(min(cores, usable_cores())), str(512 * 2**20)]


def test_weights_put_in_at_build_time_serve_a_node_without_a_network(
    docker_engine: docker.DockerClient,
    image: Image,
    volume: Volume,
    shared: Path,
    painted: Path,
    tmp_path: Path,
) -> None:
    for name in ("image", "job", "requirements", "weights"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "home/models").mkdir(parents=True)
    shutil.copy(shared / "weights" / WEIGHTS, tmp_path / "home/models")
    name, home = "mobilenet_v2:alpha=0.35:image_size=48", str(tmp_path / "home")
    fetched = run_job("weights", "fetch", name, "--to", tmp_path / "weights", KERAS_HOME=home)
    assert fetched.returncode == 0, fetched.stderr
    for name in ("account.json", ".config/gcloud/application_default_credentials.json", "weights/key.json", "job/key.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(CANARY)
    with_weights = build(docker_engine, "transfer-job:weights", tmp_path)
    painted.chmod(0o755)
    mounts = read_only((painted, "/data")) | {volume.name: {"bind": "/out", "mode": "rw"}}
    command = ["run", "--data", "/data", "--out", "/out", "--weights", "imagenet", "--stop-after", "head"]
    code, text = ended(with_weights, *command, *quick_settings(), volumes=mounts, **HARDENED)
    assert code == 0, text
    assert "head      done" in text
    # The same weights, mounted into the image without them.
    mounts |= read_only((tmp_path / "weights", "/weights"))
    command[command.index("imagenet")] = "/weights"
    code, text = ended(image, *command, *quick_settings(), volumes=mounts, **HARDENED)
    assert code == 0, text
    assert "extract   done" in text
    # What people keep beside a checkout stays there.
    everywhere = ["-rl", "--exclude-dir=proc", "--exclude-dir=sys", "-e", CANARY, "-e", "legacy .h5 without top", "/"]
    _, found = ended(with_weights, *everywhere, entrypoint="grep", user="0", network="none")
    assert "job/sections.py" in found  # The search finds what is there.
    assert not [line for line in found.splitlines() if "key.json" in line or "account" in line or "credentials" in line]
    assert CANARY not in str(with_weights.history())
