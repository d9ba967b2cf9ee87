"""The output of a run: where it is, whether it belongs to the job, and which run works in it."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from job.console.places import refuse_odd_name
from job.errors import DataUnusable, Diverged, GateNotMet, Stopped, UsageError
from job.runtime.context import Context
from job.runtime.session import Session
from job.sources.tree import is_table as names_a_table
from job.storage.bucket.downloads import scratch
from job.storage.bucket.objects import is_remote
from job.storage.bucket.open import open_objects
from job.storage.bucket.workdir import BucketWorkdir
from job.storage.ledger import is_reserved
from job.storage.workdir import Workdir


def make_workdir(
    out: str, *, folders: Sequence[str | None] = (), files: Sequence[str | None] = (), worker: int = 0
) -> Workdir:
    """Return the output directory, which for a bucket has a local folder for this worker. Write nothing yet.

    `folders` and `files` are the inputs of the run; None stands for an option that was not given.

    Raises:
        UsageError: if an input folder is inside the output, the output is inside an input folder, or an input file in the
            output has a name that the job writes itself.
    """
    refuse_nested(out, "--out", folders)
    for file in filter(None, files):
        if _lies_in(file, out) and is_reserved(_relative(file, out)):
            name = file.rstrip("/").rpartition("/")[2]
            raise UsageError(
                f"{file} lies in --out {out}, under a name that the job writes itself. Copy it first, and give the copy: "
                f"cp {shlex.quote(file)} {shlex.quote(f'my-{name}')}"
            )
    return _workdir(out, worker)


def refuse_nested(place: str, option: str, folders: Sequence[str | None]) -> None:
    """Refuse a place to write to that is inside one of these input folders, or contains one. Raises: UsageError."""
    for folder in filter(None, folders):
        if _lies_in(place, folder) or _lies_in(folder, place):
            raise UsageError(
                f"{option} {place} and the input {folder} lie inside each other: the job never writes beside the data. "
                f"Give another place, for example {option} {shlex.quote(_outside(folder))}"
            )


def is_table(data: str) -> bool:
    """Return whether `--data` names a table, by its extension, and not a folder."""
    return names_a_table(data) and not Path(data).is_dir()


def existing_workdir(out: str) -> Workdir:
    """Return the output directory of an earlier run. Raises: UsageError, if there is none."""
    if not is_remote(out) and not Path(out).is_dir():
        raise UsageError(f"{out}: no such folder. Give the --out of a run.")
    workdir = _workdir(out)
    if not workdir.is_claimed():
        if workdir.is_version_1():
            raise UsageError(f"{out} is the output of transfer-job 0.1, which this version cannot read. Run the job again.")
        raise UsageError(f"{out}: this is not the output of a run. Give the --out of one.")
    return workdir


def check(context: Context, session: Session) -> None:
    """Refuse an output, or a cache.dir, that does not belong to the job. Write nothing. Raises: UsageError."""
    context.workdir.check(session)
    context.cache.check()


def _workdir(out: str, worker: int = 0) -> Workdir:
    if is_remote(out):
        objects = open_objects(out)
        root = scratch(objects.uri) / f"worker-{worker}"
        return BucketWorkdir(root, objects)
    root = Path(out).resolve()
    refuse_odd_name("--out", root)
    if root.exists() and not root.is_dir():
        raise UsageError(f"--out {out}: this is a file; give a folder.")
    return Workdir(root)


def _lies_in(place: str, folder: str) -> bool:
    """Return whether a place is this folder or inside it, with links resolved."""
    if is_remote(place) or is_remote(folder):
        return f"{place.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")
    return Path(place).resolve().is_relative_to(Path(folder).resolve())


def _relative(place: str, folder: str) -> str:
    if is_remote(place):
        return place.rstrip("/")[len(folder.rstrip("/")) + 1 :]
    return Path(place).resolve().relative_to(Path(folder).resolve()).as_posix()


def _outside(folder: str) -> str:
    return "runs/first" if not is_remote(folder) else f"{folder.rstrip('/').rpartition('/')[0]}/runs/first"


@contextmanager
def owned(context: Context, session: Session, outcome: Callable[[], Mapping[str, object]] | None = None) -> Iterator[None]:
    """Give a block in which no other run works in the output directory. Remove first what killed runs left unfinished.

    At the end of the block everything is made to last, also if the block ends with an error about the data or the model.
    With `outcome`, the last event of the log says how the block has ended, and what `outcome` returns then.

    Raises:
        UsageError: if the output does not belong to the job.
        TryAgainLater: if another run works in it.
        StorageFailed, Stopped.
    """
    workdir = context.workdir
    check(context, session)
    try:
        workdir.acquire(context.telemetry.line, session)
        workdir.clean()
        if context.telemetry.keeps_log:
            workdir.begin_log()
        end = partial(_log_end, context, outcome)
        session.stop.last_words.append(end)
        try:
            context.cache.claim()
            yield
            with workdir.held():
                end(None)
            workdir.settle()
        except BaseException as error:
            with suppress(Exception), workdir.held():  # The error of the run counts, not one of the log.
                end(error)
            if isinstance(error, (DataUnusable, Diverged, GateNotMet, Stopped, UsageError)):
                workdir.settle()
            if workdir.objects:
                context.telemetry.line(
                    f"Local files of {workdir.uri} stay in {workdir.root}, for the next start on this machine."
                )
            raise
        finally:
            session.stop.last_words.remove(end)
    finally:
        context.cache.close()
        workdir.close()


def _log_end(context: Context, outcome: Callable[[], Mapping[str, object]] | None, error: BaseException | None) -> None:
    if outcome is None:
        return
    found: Mapping[str, object] = {}
    with suppress(Exception) if error else nullcontext():  # What cannot be read after an error must not cost the event.
        found = outcome()
    context.telemetry.ended(error, **found)
