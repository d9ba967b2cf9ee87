"""Claims: a run works only in a folder that was missing or empty when the job first used it, or that has the job's mark.

The mark is a file that is created in one step. Only its existence counts, so an output may be moved or copied. A folder
with the mark belongs to the job, and its ledger (`ledger.py`) says which files in it do.
"""

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from job.console.places import refused_at_start
from job.errors import UsageError
from job.storage.bucket.objects import Conflict, Objects
from job.storage.files import existing, own_mark, read_json, remove_tree, storage_errors, sync
from job.storage.ledger import MARK, TEMPORARY

_SHOWN = 5
# Files and folders that operating systems and volumes create in every folder.
_OF_SYSTEMS = {"lost+found", ".snapshot", ".snapshots", ".DS_Store", ".localized", "@eaDir", "#recycle", "$RECYCLE.BIN"}
_OF_SYSTEMS |= {"System Volume Information", "Thumbs.db", "desktop.ini", ".Trashes", ".Spotlight-V100", ".fseventsd"}
_OF_SYSTEMS_BEGIN = (".Trash-", ".nfs", "..")  # `..data` and the folders that Kubernetes mounts beside it.


def claim(root: Path, out: str, *, config_file: Path | None = None, environ: Mapping[str, str]) -> None:
    """Claim a folder for the job: write the mark if it is missing.

    Raises:
        UsageError: if the folder holds files that the job did not make (nothing was written then), or if its file system
            lacks what a run needs.
        OSError.
    """
    check(root, out, config_file=config_file, environ=environ)
    root.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(root / MARK, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        sync(root)
    try_renames(root / TEMPORARY, out)


def check(root: Path, out: str, *, config_file: Path | None = None, environ: Mapping[str, str]) -> None:
    """Refuse a folder with files that the job did not make. The configuration file and the program's own log may be in it.

    Raises:
        UsageError: if there are any. The message names some of them, and an option to type instead.
        OSError.
    """
    if is_claimed(root) or not root.is_dir():
        return
    spared = [status for path in (1, 2, config_file) if (status := _status(path)) is not None]
    log = _slurms_log(environ)
    found = [path.name for path in sorted(root.iterdir()) if _is_content(path, spared, log)]
    # Listing takes a while: another start may have claimed the folder since, and written to it.
    if found and not is_claimed(root):
        if is_version_1(root):
            raise of_version_1(out)
        raise _not_empty(out, found[:_SHOWN], len(found))


def is_claimed(root: Path) -> bool:
    """Return whether a folder holds the job's mark."""
    return os.path.lexists(root / MARK)


def claim_bucket(objects: Objects) -> None:
    """Claim a prefix of a bucket for the job. Raises: UsageError, StorageFailed."""
    check_bucket(objects)
    with suppress(Conflict):  # Another start has just claimed it.
        objects.write(MARK, b"", replaces="")


def check_bucket(objects: Objects) -> None:
    """Refuse a prefix with objects that the job did not make. Raises: UsageError, StorageFailed."""
    if objects.find(MARK):
        return
    names = list(islice(_foreign_objects(objects), _SHOWN))
    if names and not objects.find(MARK):
        if objects.find(".manifest.json"):
            raise of_version_1(objects.uri)
        raise _not_empty(objects.uri, names, len(names))


def of_version_1(place: str) -> UsageError:
    """Return the error for an output of version 0.1."""
    return UsageError(
        f"{place} is the output of transfer-job 0.1. This version cannot resume it, but predict can read its model. "
        f"Give another output: --out {shlex.quote(_below(place))}"
    )


def is_of_a_system(name: str) -> bool:
    """Return whether operating systems or volumes create a file or folder of this name in every folder."""
    return name in _OF_SYSTEMS or name.startswith(_OF_SYSTEMS_BEGIN)


def _foreign_objects(objects: Objects) -> Iterator[str]:
    for found in objects.list():
        name = found.name.strip("/").split("/")[-1]
        if name and not found.name.endswith("/") and not is_of_a_system(name):
            yield found.name


def _is_content(path: Path, spared: list[os.stat_result], log: re.Pattern[str]) -> bool:
    """Return whether a file, or a file below a folder, belongs to a user. Logs and settings of this run do not."""
    waiting = [path]  # Not recursive, because folders may be nested deeper than Python's stack.
    while waiting:
        path = waiting.pop()
        if is_of_a_system(path.name):
            continue
        with suppress(FileNotFoundError, ProcessLookupError):  # It was removed in the meantime.
            status = path.lstat()
            inside = list(path.iterdir()) if stat.S_ISDIR(status.st_mode) else []
            waiting += inside
            if not inside and not (log.fullmatch(path.name) or any(os.path.samestat(status, own) for own in spared)):
                return True
    return False


def _slurms_log(environ: Mapping[str, str]) -> re.Pattern[str]:
    """Return a pattern for names of this Slurm job's logs, which end with its number, as in `train-4711_3.out`."""
    given = (environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"))
    numbers = "|".join(number for number in given if re.fullmatch("[0-9]+", number))
    return re.compile(rf"(.*[-_.])?({numbers})([-_.][0-9]+)*\.(out|err|log)" if numbers else "(?!)")


def _status(path: int | Path | None) -> os.stat_result | None:
    """Return the status of a regular file, given by path or open descriptor. None if it is anything else."""
    with suppress(OSError, TypeError):
        found = os.fstat(path) if isinstance(path, int) else Path(path).stat()  # type: ignore[arg-type]
        return found if stat.S_ISREG(found.st_mode) else None
    return None


def is_version_1(root: Path) -> bool:
    """Return whether a folder is an output, or a demo, of version 0.1."""
    described = (read_json(root / "run.json"), read_json(root / "run" / "run.json"))
    return any(isinstance(found, dict) and "settings_of_stages" in found for found in described)


def _not_empty(out: str, names: list[str], count: int) -> UsageError:
    shown = ", ".join(names) + (", ..." if count > len(names) else "")
    return UsageError(
        f"--out {out} holds files that this job did not make: {shown}. It works only in a folder of its own. Give one that "
        f"is empty or does not exist: --out {shlex.quote(_below(out))}"
    )


def _below(out: str) -> str:
    return "runs/first" if out in (".", "./") else f"{out.rstrip('/')}/runs/first"


@contextmanager
def probing(place: Path, what: str) -> Iterator[Path]:
    """Give a folder in a place that may not exist yet, to see whether it can be written to. Remove it again.

    Raises:
        UsageError: if nothing can be written there; the message calls the place `what`. StorageFailed: if a retry may help.
    """
    with storage_errors(place), refused_at_start(what, place, writing=True):
        folder = existing(place) / f".transfer-job-{own_mark()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            remove_tree(folder)


def try_renames(parent: Path, out: str) -> None:
    """Try to rename a folder in `parent`, which is made if it is missing. Publishing needs that at the end of a run.

    Raises:
        UsageError: if the file system cannot rename a folder.
        OSError: if the file system cannot be written to.
    """
    tried, renamed = (parent / own_mark() for _ in range(2))
    tried.mkdir(parents=True)
    try:
        tried.rename(renamed)
    except OSError as error:
        tried.rmdir()
        raise UsageError(
            f"--out {out}: its file system cannot rename a folder ({error.strerror}), so results cannot be published in one "
            "step. Give an --out on another file system."
        ) from error
    renamed.rmdir()
