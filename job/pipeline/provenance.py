"""The content of run.json: what a run was made with, and on what kind of machine."""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from job.cluster.tensorflow import onednn
from job.config import Config
from job.model import backbones
from job.pipeline.job import Job
from job.pipeline.records import read_run
from job.pipeline.settings import settings_digest
from job.pipeline.table import STAGES
from job.reporting.summaries import Run
from job.runtime.cgroups import usable_cores
from job.storage.bucket.objects import is_remote
from job.version import __version__

# A container does not know from which image it was started, so whoever starts it says so: NAME@sha256:DIGEST.
IMAGE = "TRANSFER_JOB_IMAGE"


def describe(job: Job, command: Sequence[str]) -> Run:
    """Return the content of run.json. `command` is what people type to make the run again."""
    packages = ["keras", "tensorflow-cpu", "tensorflow", "numpy", "scipy", "scikit-learn", "cleanlab", "faiss-cpu"]
    packages += ["pillow", "simplejpeg", "pyarrow"]
    versions = {"transfer-job": __version__, "python": platform.python_version()}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "schema": 1,
        "run_id": job.context.telemetry.run_id,
        "data": job.source.uri,
        "labels": job.labels if job.labels is None or is_remote(job.labels) else str(Path(job.labels).resolve()),
        "out": job.workdir.uri,
        "command": shlex.join(command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": job.config.model_dump(mode="json"),
        "settings_of_stages": {name: settings_digest(name, job.config) for name in STAGES},
        "versions": versions,
        "image": os.environ.get(IMAGE, ""),
        "weights_sha256": backbones.weights_digest(job.config.backbone),
        "fingerprint": fingerprint(job.context.peers.count),
    }


def fingerprint(num_workers: int) -> dict[str, object]:
    """Return what else the last bits of a result depend on, beside the configuration and the versions."""
    variables = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "gpus": len(list(Path("/dev").glob("nvidia[0-9]*"))),  # There, bits may also depend on the rest of a batch.
        "platform": platform.platform(),
        "onednn": onednn(),
        "environment": {name: os.environ[name] for name in variables if name in os.environ},
        "op_determinism": True,
        "workers": num_workers,
    }


def warn_of_the_run_before(job: Job, now: Run) -> None:
    """Print a line if the run before this one was on another kind of machine, and one if it divided the photos by `seed`."""
    before = read_run(job.workdir)
    if before and any(job.records[name] for name in STAGES):
        if job.records["split"] and _is_split_by_seed(before, job.config):
            job.context.telemetry.line(
                f"An earlier version divided these photos by seed ({before['config']['seed']}). The split now depends on "
                f"split.seed ({job.config.split.seed}), so the run starts again from split. To keep the old split: "
                f"--set split.seed={before['config']['seed']}",
                level="warning",
            )
        changed = [what for what, value in now["fingerprint"].items() if before["fingerprint"].get(what) != value]
        changed += ["versions"] if before["versions"] != now["versions"] else []
        if changed:
            job.context.telemetry.line(
                f"Resuming a run of another kind of machine ({', '.join(changed)} changed): the last bits may differ from a "
                "run on one machine.",
                level="warning",
            )


def _is_split_by_seed(before: Run, config: Config) -> bool:
    """Return whether a version before 0.5 took the seed of the split from `seed`, and this run has another one."""
    seeds = before["config"]["seed"], before["config"]["split"]["seed"]
    return "run_id" not in before and seeds[0] == seeds[1] != config.split.seed


def program() -> str:
    """Return how this program was called, for the command that runs it again."""
    return f"{Path(sys.executable).name} -P -m job" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
