"""The checks before a run: whether its data, output, machine, devices and workers have what it needs.

`doctor` does all of them, in the order of `CHECKS`, and says what each one finds. A run does those that it would not do by
itself in its first seconds (`before_run`). Where a run has a function that raises an error, the check calls that function.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from job.cluster.listener import listening
from job.console.places import denial
from job.errors import JobError, Stopped, TryAgainLater, UsageError, of_code
from job.pipeline import publishing
from job.pipeline.job import Job
from job.preflight import gpus
from job.preflight.base import Finding, Planned, ok, warning
from job.runtime.cgroups import cpu_quota, memory_bytes, usable_cores
from job.serving.formats.table import require
from job.storage import lease
from job.storage.bucket.objects import is_remote
from job.storage.claim import probing
from job.storage.files import everything_below, free_bytes, in_units, storage_failed
from job.train.recipe import Recipe

Run = Planned | Job
Fault = TypeVar("Fault", bound=Exception)
_NUM_READ = 8  # Files that are read as a sample.
_CLEARLY_TOO_MANY = 0.5  # If none of the sample can be read, more than this share of all files cannot.
_MAX_AHEAD_S = 60.0
_OLDEST_TIME = 1_793_491_200  # 1 November 2026, in seconds since 1970: a clock that is behind it is wrong.
# Measured with the smallest run: docs/operating.md, "Costs and sizes".
_MIN_MEMORY, _MEMORY_OF_A_DECODER = 1_050_000_000, 50_000_000
_COPIES_OF_WEIGHTS = 5  # Weights, gradients, the two averages of the optimizer, and a copy for the checkpoint.
_SHM_PER_GPU = 500_000_000
_ANSWERS_WITHIN_S, _TRIES_FOR_S, _PAUSE_S, _NUM_THREADS = 2.0, 10.0, 0.5, 32
_SHM, _CPUINFO = Path("/dev/shm"), Path("/proc/cpuinfo")  # noqa: S108


def examine(run: Planned) -> Iterator[Finding]:
    """Do all checks, and yield what they find. An error that an earlier check has met is not repeated."""
    met: dict[Finding, str] = {}
    for check in CHECKS:
        try:
            for finding in check.look(run):
                yield replace(finding, check=check.name)
        except Stopped:
            raise
        except (JobError, OSError) as error:
            found = Finding.of(error if isinstance(error, JobError) else storage_failed(error))
            if found in met:
                found = Finding("skipped", f"needs what the check {met[found]!r} has found missing")
            else:
                met[found] = check.name
            yield replace(found, check=check.name)


def before_run(job: Job, *, computes: bool) -> None:
    """Do the checks that a run does not do by itself. Print warnings. `computes`: stages that need the devices will run.

    Raises:
        JobError: if a check finds an error.
    """
    for check in CHECKS:
        if check.in_run and (computes or not check.of_devices):
            for finding in check.look(job):
                if finding.level == "error":
                    raise of_code(finding.exit_code, finding.text)
                if finding.level == "warning":
                    job.context.telemetry.line(f"Warning ({check.name}): {finding.text}", level="warning")


def _data(run: Run) -> Iterator[Finding]:
    yield ok(f"{_num_photos(run):,} files in {len(run.listing.class_names):,} classes, in {run.source.uri}")
    if place := run.config.intake.corrections:
        from job.data.corrections import read_corrections

        decisions = read_corrections(place, run.listing.class_names).decisions
        yield ok(f"{len(decisions):,} decisions about labels, in {place}")


def _photos(run: Run) -> Iterator[Finding]:
    """Read a few files. Whoever may list a folder may not always read what is in it."""
    if isinstance(run, Job) and is_remote(run.source.uri):
        return  # Intake ends with the first object that it may not read, and each request costs.
    entries = [entry for entry in run.listing.entries if entry.verdict is None]
    sample = entries[:: max(1, len(entries) // _NUM_READ)][:_NUM_READ]
    answers = zip(sample, run.source.read(sample), strict=True)
    faults = [(run.source.location(entry), answer) for entry, answer in answers if isinstance(answer, OSError)]
    if not faults:
        yield ok(f"{len(sample)} of them were read")
        return
    place, fault = faults[0]
    why = denial(place) if fault.errno in (errno.EACCES, errno.EPERM) else f"{place}: {fault.strerror or fault}"
    text = (
        f"{len(faults)} of {len(sample)} files in {run.source.uri} that were tried cannot be read: {why}. Give that user "
        "permission (chmod -R a+rX), or start the job as one that may read them (docker run --user, runAsUser)."
    )
    if len(faults) == len(sample) and run.config.intake.max_quarantined_fraction < _CLEARLY_TOO_MANY:
        raise UsageError(text)
    yield warning(text)


def _output(run: Run) -> Iterator[Finding]:
    assert isinstance(run, Planned)  # A run claims its output itself.
    workdir, cache = run.workdir, run.context.cache
    cache.check()
    holder = lease.owner_of(workdir.root)
    if holder and holder.is_dead is False:
        raise lease.in_use(workdir.uri, holder)
    _ = run.ahead_s
    if cache.is_shared and not cache.objects:
        with probing(cache.root, f"cache.dir {cache.root}"):
            pass
    if holder and holder.is_dead is None:
        yield warning(
            f"{workdir.uri} may be in use by {holder}, which cannot be seen from here. If it is, a run ends with 75: wait "
            "until it has ended, or give another --out."
        )
    else:
        yield ok(f"{workdir.uri} can be written to")


def _clock(run: Run) -> Iterator[Finding]:
    now = time.time()
    if now < _OLDEST_TIME:
        yield warning(f"it is {time.ctime(now)} here. With a wrong clock, no secure connection is accepted. Set it (NTP).")
    elif run.cluster.is_chief:  # In a run it has just written its lease, or has touched it within a second.
        ahead_s = run.ahead_s if isinstance(run, Planned) else run.workdir.path(lease.NAME).stat().st_mtime - now
        if abs(ahead_s) > _MAX_AHEAD_S:
            yield warning(
                f"the clock of the file system of {run.workdir.root} is {ahead_s:+,.0f} s from this machine's. Runs that "
                "share a cache.dir may remove each other's unfinished files. Set both clocks (NTP)."
            )
        else:
            yield ok(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))} UTC")


def _processor(run: Run) -> Iterator[Finding]:  # noqa: ARG001
    """Look for AVX. Without it, TensorFlow ends the process by a signal while it is imported."""
    with suppress(OSError):
        if platform.machine() == "x86_64" and "avx" not in _CPUINFO.read_text().split():
            raise UsageError(
                "This processor has no AVX, and TensorFlow needs it. Use another machine. A virtual machine must pass the "
                "processor on (QEMU: -cpu host). An emulator, as on a Mac with Apple silicon, may have none."
            )
    if cpu_quota() < 1:
        yield warning(f"the job may use {cpu_quota():.1f} CPU cores. Give it one or more: docker --cpus, limits.cpu.")
    else:
        yield ok(f"{usable_cores()} of {os.cpu_count()} cores")


def _memory(run: Run) -> Iterator[Finding]:
    workers = run.config.intake.workers
    needed = _MIN_MEMORY + _MEMORY_OF_A_DECODER * (usable_cores() if workers == "auto" else workers)
    if "network" in vars(run):  # `doctor` has built it already.
        needed += _COPIES_OF_WEIGHTS * 4 * run.network.backbone.count_params()
    sizes = f"{in_units(memory_bytes())} for this job, which needs about {in_units(needed)}"
    if memory_bytes() < needed:
        yield warning(f"{sizes}. Give it more: docker --memory, limits.memory in Kubernetes, sbatch --mem.")
    else:
        yield ok(sizes)


def _disk(run: Run) -> Iterator[Finding]:
    """Compare what is free with what intake, extract and the export reserve."""
    config, cache, network = run.config, run.context.cache, run.network
    num_photos = _num_photos(run)
    num_train = round(num_photos * (1 - config.split.val_fraction - config.split.test_fraction))
    num_views = num_photos + num_train * (Recipe.resolve(config, num_examples=num_train).views - 1)
    needed = num_photos * 3 * config.intake.image_size**2 + num_views * 4 * network.feature_width
    if config.fine_tune.inputs == "stored" and network.cut_point:
        needed += num_views * 2 * network.cut_point.values_per_view
    there = sum(path.stat().st_size for path in everything_below(cache.root) if path.is_file())
    publishing.keep_room(run.context, network.backbone.count_params(), len(config.export.formats))
    cache.reserve(needed, max(0, needed - there))
    yield ok(f"{in_units(free_bytes(cache.root))} free; stores of {in_units(needed)} are needed under {cache.root}")


def _weights(run: Run) -> Iterator[Finding]:
    backbone, config = run.network.backbone, run.config.backbone
    yield ok(f"{config.name}, {config.weights}: {backbone.count_params():,} parameters")


def _formats(run: Run) -> Iterator[Finding]:
    require(run.config.export.formats)
    yield ok(", ".join(run.config.export.formats))


def _shared_memory(run: Run) -> Iterator[Finding]:
    needed = _SHM_PER_GPU * run.cluster.num_gpus
    if run.cluster.num_gpus < 2:
        return
    try:
        size = shutil.disk_usage(_SHM).total
    except OSError:
        size = 0
    if size < needed:
        yield warning(
            f"{_SHM} has {in_units(size)}, and NCCL needs about {in_units(needed)} for {run.cluster.num_gpus} GPUs. Give it "
            "more: docker run --shm-size, or a volume of memory as in k8s/base/job.yaml."
        )
    else:
        yield ok(f"{in_units(size)} in {_SHM}")


def _gpus(run: Run) -> Iterator[Finding]:
    seen, required = gpus.look(run.cluster, run.stop.check), run.config.cluster.require_gpu
    yield from gpus.judge(seen, required=required)
    # Where this process has TensorFlow already, as in a notebook, it may have taken the memory of the GPUs.
    if seen.num_devices and seen.build.get("is_cuda_build") and "tensorflow" not in sys.modules:
        yield from gpus.judge_trial(seen, gpus.attempt(run.stop.check), required=required)


def _ports(run: Run) -> Iterator[Finding]:
    """Listen on the ports of this worker. Its process of an earlier start, which is just ending, gets ten seconds."""
    cluster = run.cluster
    if cluster.num_workers > 1:
        own = [("", _port(cluster.addresses[cluster.index]), "TensorFlow's server")]
        if cluster.is_chief:
            own.append((*cluster.control_address, "The chief"))
        for host, port, who in own:
            if taken := _fault_of(partial(_try_port, host, port, who), TryAgainLater):
                raise taken
        yield ok(f"free: {', '.join(str(port) for _, port, _ in own)}")


def _workers(run: Run) -> Iterator[Finding]:
    """Try to reach the machines of the other workers. One that refuses a connection can be reached."""
    cluster = run.cluster
    others = [address for k, address in enumerate(cluster.addresses) if k != cluster.index]
    if not others:
        return
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        faults = list(pool.map(lambda address: _fault_of(partial(_try_to_reach, address), OSError), others))
    lost = [f"{other} ({fault.strerror or fault})" for other, fault in zip(others, faults, strict=True) if fault]
    if lost:
        raise TryAgainLater(
            f"{len(lost)} of {len(others)} other workers cannot be reached: {', '.join(lost[:4])}. Start doctor on all "
            "workers at the same time, and look at names (DNS), firewalls and network policies between them."
        )
    yield ok(f"{len(others)} other machines can be reached")


def _try_port(host: str, port: int, who: str) -> None:
    listening(host, port, who).close()


def _try_to_reach(address: str) -> None:
    """Connect to a machine. Raises: OSError, if it does not answer, or has no name yet."""
    with suppress(ConnectionRefusedError):
        socket.create_connection((address.rpartition(":")[0], _port(address)), timeout=_ANSWERS_WITHIN_S).close()


def _fault_of(attempt: Callable[[], None], kind: type[Fault]) -> Fault | None:
    """Try something for ten seconds, until it raises no error of this kind. Return the last one."""
    deadline = time.monotonic() + _TRIES_FOR_S
    while True:
        try:
            attempt()
            return None
        except kind as error:
            if time.monotonic() > deadline:
                return error
        time.sleep(_PAUSE_S)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _num_photos(run: Run) -> int:
    return sum(entry.verdict is None for entry in run.listing.entries)


@dataclass(frozen=True)
class Check:
    """A row of the table. `in_run`: a run does the check, too. `of_devices`: only a run that computes with the backbone."""

    name: str
    look: Callable[[Run], Iterator[Finding]]
    in_run: bool = False
    of_devices: bool = False


CHECKS = (
    Check("data", _data),
    Check("photos", _photos, in_run=True),
    Check("output", _output),
    Check("clock", _clock, in_run=True),
    Check("processor", _processor, in_run=True, of_devices=True),
    Check("ports", _ports, in_run=True),
    Check("workers", _workers),
    Check("shared memory", _shared_memory, in_run=True, of_devices=True),
    Check("gpus", _gpus, in_run=True, of_devices=True),
    Check("weights", _weights),
    Check("formats", _formats),
    Check("memory", _memory, in_run=True, of_devices=True),
    Check("disk", _disk),
)
