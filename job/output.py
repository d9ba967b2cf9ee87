"""The output of a run: where it lies, on this machine or in a bucket, and who owns it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job.config import CacheConfig
from job.context import Context
from job.errors import DataUnusable, Diverged, GateNotMet, Stopped, UsageError
from job.storage import lease
from job.storage.copies import scratch
from job.storage.mirror import Mirror
from job.storage.objects import is_remote, open_objects
from job.storage.workdir import Workdir, storage_errors

# The local part of a bucket's directory lies on a disk of this machine, where the touches of its owner show at once; whether
# the owner on another machine is alive the bucket's own lease decides. It is silent while TensorFlow is imported.
_SCRATCH_DEAD_AFTER_S = 15.0


def make_workdir(out: str, data: str, caching: CacheConfig | None = None, worker: int = 0) -> Workdir:
    """The output directory, or this worker's part of a bucket.

    Raises:
        UsageError: where the run would write into its own source.
    """
    for name, place in (("--out", out), ("cache.dir", caching.dir if caching else None)):
        if place and _lies_in(place, data):
            raise UsageError(
                f"{name} {place} lies inside --data {data}: nothing is ever written there. Choose another folder."
            )
    return _workdir(out, worker)


def existing_workdir(out: str) -> Workdir:
    """That of an earlier run. Raises: UsageError."""
    if not is_remote(out) and not Path(out).is_dir():
        raise UsageError(f"{out}: no such folder.")
    workdir = _workdir(out)
    if workdir.mirror and not workdir.mirror.exists():
        raise UsageError(f"{out}: this is not the output of a run.")
    return workdir


@contextmanager
def looked_at(workdir: Workdir) -> Iterator[Workdir]:
    """The same, to read only: what is in a bucket now is brought to a folder that lasts as long as the block."""
    if workdir.mirror is None:
        yield Workdir(workdir.root, is_glance=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        glance = Workdir(root, Mirror(root, workdir.mirror.objects), is_glance=True)
        if workdir.mirror.exists():
            glance.refresh()
        yield glance


def _workdir(out: str, worker: int = 0) -> Workdir:
    if is_remote(out):
        objects = open_objects(out)
        root = scratch(objects.uri) / f"worker-{worker}"
        return Workdir(root, Mirror(root, objects))
    root = Path(out).resolve()
    if root.exists() and not root.is_dir():
        raise UsageError(f"--out {out}: this is a file; give a folder.")
    return Workdir(root)


def _lies_in(place: str, data: str) -> bool:
    if is_remote(place) or is_remote(data):
        return f"{place.rstrip('/')}/".startswith(f"{data.rstrip('/')}/")
    return Path(place).expanduser().resolve().is_relative_to(Path(data).resolve())


@contextmanager
def owned(context: Context) -> Iterator[None]:
    """A block in which nobody else works in the output directory; what killed runs left unfinished there is removed first.

    At its end everything lasts, also where the run ends with an error that says something about the data or the model.

    Raises:
        TryAgainLater: where somebody does.
        StorageFailed, Stopped.
    """
    workdir = context.workdir
    with storage_errors(workdir.root):
        workdir.root.mkdir(parents=True, exist_ok=True)
        wait_s = _SCRATCH_DEAD_AFTER_S if workdir.mirror else lease.DEAD_AFTER_S
        tell, check_stop = context.telemetry.line, context.stop.check
        workdir.lease = lease.acquire(workdir.root, tell, check_stop, wait_s, workdir.uri)
    try:
        workdir.remove_parts(None if context.cache.may_be_swept else context.cache.root)
        if workdir.mirror:
            workdir.mirror.take_over(tell, check_stop)
        try:
            yield
        except (DataUnusable, Diverged, GateNotMet, Stopped, UsageError):
            workdir.settle()
            raise
        workdir.settle()
    finally:
        if workdir.mirror:
            workdir.mirror.release()
        workdir.lease.release()
        workdir.lease = None
