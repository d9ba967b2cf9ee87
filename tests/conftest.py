"""What tests share: real photos where they are there, drawn ones everywhere, and one finished run for many tests."""

import fcntl
import io
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from PIL import Image

import job
from job.cluster.tensorflow import ONEDNN
from job.data.examples import Examples
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.storage.workdir import Workdir
from tests.warm import WarmStart

os.environ.setdefault(ONEDNN, "1")  # Some tests import TensorFlow themselves, before the job would.

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
PROGRAM = Path(sys.executable).with_name("transfer-job")

# How long what must come may take on a machine that has much else to do. It ends tests that hang, and measures nothing.
WAIT_S = 900

# Settings for a run of seconds: a small backbone with random weights and little of everything. Two layers are fine-tuned
# instead of 31, which makes a run a sixth cheaper.
QUICK = (
    "intake.image_size=48",
    "backbone.name=mobilenet_v2",
    "backbone.alpha=0.35",
    "backbone.weights=random",
    "backbone.unfreeze=0.2",
    "augment.views=2",
    "fine_tune.epochs=2",
    "fine_tune.learning_rate=1e-3",
    "head.c_grid=[0.01,0.1,1.0]",
    "heatmaps.photos=0",  # A tenth of a run. tests/e2e/test_heatmaps.py turns them on.
    "heatmaps.checked=0",
)

# Files of minutes, the longest first. If one of them came last, other processes of pytest-xdist would have nothing to do
# meanwhile. Each of the six processes of `make test-all` gets two files at the start, so its second one is short.
LONGEST = (
    "test_runs.py",
    "test_whole_job.py",
    "test_docker.py",
    "test_crash_points.py",
    "test_slurm.py",
    "test_lost_workers.py",
    "test_beds.py",
    "test_undecodable.py",
    "test_shared_secret.py",
    "test_foreign_files.py",
    "test_file_systems.py",
    "test_audit.py",
    "test_earlier.py",
    "test_cache.py",
    "test_kills.py",
    "test_growth.py",
    "test_pods.py",
    "test_browser.py",
    "test_api.py",
    "test_reading.py",
    "test_seeds.py",
    "test_budget.py",
    "test_rank.py",
    "test_secrets.py",
    "test_user_environment.py",
    "test_exit_codes.py",
    "test_stale_state.py",
    "test_backbones.py",
    "test_full_disk.py",
    "test_foreign_objects.py",
    "test_replicas.py",
    "test_inputs.py",
    "test_quality.py",
    "test_extract.py",
    "test_pixels_as_they_come.py",
    "test_heic.py",
    "test_balanced.py",
    "test_foreign.py",
    "test_truth.py",
    "test_predict.py",
    "test_cli.py",
)

pytest_plugins = ["tests.clouds.fixtures", "tests.faults.fixtures"]

_RESERVED: list[TextIO] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what takes long, or needs a service, to `make test-all`, and begin with what takes longest."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in ("clouds", "faults", "launch", "page") and not item.get_closest_marker("core"):
            item.add_marker("thorough")
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photos and weights; see CONTRIBUTING.md."""
    if not (SHARED / "data").is_dir():
        if os.environ.get("REQUIRE_SHARED"):
            pytest.fail(f"REQUIRE_SHARED is set and {SHARED} is missing")
        pytest.skip(f"real photos are not here: {SHARED} is missing")
    return SHARED


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Workdir(tmp_path / "out"), Telemetry(None))


def linked_files(page: Path) -> list[Path]:
    """The files that a report links to, from where it lies."""
    return [page.parent / name for name in sorted(set(re.findall(r'<a href="([^"#]+)"', page.read_text())))]


def start_job(*arguments: object, environment: Mapping[str, str] | None = None, **options: Any) -> WarmStart:
    """The program as a process, with these variables beside those of the tests. `options` are those of `Popen`."""
    command = [sys.executable, "-m", "job", *map(str, arguments)]
    return WarmStart(command, cwd=ROOT, env={**os.environ, **(environment or {})}, **options)


def run_job(*arguments: object, timeout_s: float = WAIT_S, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program to its end, with these variables beside those of the tests."""
    pipe = subprocess.PIPE
    with start_job(*arguments, environment=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run_installed(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program to its end, from the script that pip installs, in a new interpreter."""
    return subprocess.run([PROGRAM, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)


def quick_settings(*more: str) -> list[str]:
    return [word for setting in (*QUICK, *more) for word in ("--set", setting)]


def would_run(data: Path, out: Path, *settings: str) -> set[str]:
    """The stages that a run with the quick settings and these would run, asked in this process."""
    steps = job.plan(data, out, config=job.Config.load(None, [*QUICK, *settings]))
    return {step.stage for step in steps if step.runs}


def paint(path: Path, seed: int, kind: str = "stripes", size: tuple[int, int] = (72, 60), **save: object) -> Path:
    """A photo of one of two textures, in random colours, so that every seed is another picture."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 12)
    if kind == "stripes":
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    else:
        wave = np.sin(x * 2 * np.pi / period) * np.sin(y * 2 * np.pi / period + angle)
    colours = rng.integers(0, 255, (2, 3))
    blobs = np.asarray(
        Image.fromarray(rng.integers(0, 90, (5, 6, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    )
    pixels = np.where((wave > 0)[..., None], *colours) * 0.65 + blobs + rng.normal(0, 4, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, **save)
    return path


def paint_classes(folder: Path, per_class: int = 20, kinds: tuple[str, ...] = ("stripes", "checks")) -> Path:
    for number, kind in enumerate(kinds):
        for k in range(per_class):
            paint(folder / kind / f"{kind}-{k:03d}.jpg", seed=1000 * number + k, kind=kind, quality=90)
    return folder


def made_once(name: str, factory: pytest.TempPathFactory, make: Callable[[Path], object]) -> Path:
    """A folder of the whole session: the first process of pytest-xdist that needs it makes it, and others wait for it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    is_whole = folder.with_suffix(".whole")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole.exists():
            folder.mkdir()
            make(folder)
            is_whole.touch()
    return folder


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of forty pictures, with one file that is no picture and one photo that must be turned."""

    def make(folder: Path) -> None:
        paint_classes(folder, per_class=40)
        (folder / "stripes" / "broken.jpg").write_bytes(b"<html><body>404</body></html>")
        exif = Image.Exif()
        exif[0x0112] = 6
        paint(folder / "checks" / "turned.jpg", seed=77, kind="checks", exif=exif)

    return made_once("painted", tmp_path_factory, make)


@pytest.fixture(scope="session")
def finished_run(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a whole quick run over `painted`. Tests must not change it."""

    def make(folder: Path) -> None:
        done = run_installed("run", "--data", painted, "--out", folder / "out", *quick_settings())
        assert done.returncode == 0, done.stderr

    return made_once("finished-run", tmp_path_factory, make) / "out"


def examples_of(records: Sequence[Mapping[str, object]], class_names: Sequence[str]) -> Examples:
    """Return a table of examples with a row for each record. All records have the same names."""
    return Examples.from_columns({name: [record[name] for record in records] for name in records[0]}, class_names)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture, in memory."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def contents(folder: Path, *names: str) -> dict[Path, bytes]:
    """The content of each file below a folder, or below these files and folders in it."""
    places = [folder / name for name in names] or [folder]
    return {p: p.read_bytes() for place in places for p in sorted([place, *place.rglob("*")]) if p.is_file()}


def wait_until(
    holds: Callable[[], object],
    said: Callable[[], str] = str,
    *,
    is_alive: Callable[[], bool] = lambda: True,
    every_s: float = 0.05,
) -> None:
    """Fail with what was `said` if it can no longer come, or takes so long that it will not come."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert is_alive() and time.monotonic() < deadline, said()
        time.sleep(every_s)


def free_ports(count: int) -> list[int]:
    """Return ports where nobody listens now, nor at the port below, where a chief listens. No other test gets them.

    None is one that the system may give to a connection that leaves the machine, and none is one of Slurm's jobs.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(3_001, 10_000, 2)
        with ExitStack() as sockets, suppress(OSError):
            _reserve(port)  # First, because even a look at a port that is reserved can disturb its owner.
            for taken in (port - 1, port):
                sockets.enter_context(socket.create_server(("", taken)))
            found.append(port)
    return found


def _reserve(port: int) -> None:
    """Take a port for as long as this process runs. Another process that wants it meanwhile gets a BlockingIOError.

    Workers listen only seconds after their ports were chosen, and several processes choose at the same time.
    """
    folder = Path(tempfile.gettempdir()) / f"transfer-job-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    file = (folder / str(port)).open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _RESERVED.append(file)


PRESET = "models/keras/dinov2/keras/dinov2_small/1"  # In KERAS_HOME.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KERAS_HOME of a machine that has a preset."""
    folder = tmp_path / "home" / PRESET
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.weights.h5").write_bytes(b"weights")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "home"
