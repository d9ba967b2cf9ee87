"""The output directory of a run. Only this module gives files in it their final names.

A file or folder appears under its final name whole or not at all: it is made in `.tmp/`, synced, and renamed. The ledger
knows which names belong to the job. Anything else in the directory is never replaced, renamed or removed.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

from job.console.places import refused_at_start
from job.errors import JobError
from job.runtime.session import Session
from job.storage import claim, lease
from job.storage.bucket.objects import Objects
from job.storage.files import (
    digest_of,
    digest_of_file,
    digests_below,
    everything_below,
    own_mark,
    read_json,
    remove_tree,
    storage_errors,
    swap,
    sync,
    sync_all,
    to_json,
    writing,
)
from job.storage.ledger import TEMPORARY, Ledger

LOG = "logs/events.jsonl"
_DIGEST = "sha256"


class Workdir:
    """A directory that outlives the run. Names are relative to it, with `/` between their parts.

    This is the form on this machine. The form in a bucket is `BucketWorkdir`, which overrides the methods up to `close`.
    Only that one has `objects`, the client of the bucket. With a `lease`, files get, change and lose their final names only
    while the lease is held. A dry run has none, and only reads.
    """

    _dead_after_s = lease.DEAD_AFTER_S
    objects: Objects | None = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lease: lease.Lease | None = None
        self.ledger = Ledger(root)

    @property
    def uri(self) -> str:
        """The name of the directory that its user knows: the path, or the URI in a bucket."""
        return str(self.root)

    def check(self, session: Session) -> None:
        """Refuse a directory with files that the job did not make. Raises: UsageError, StorageFailed."""
        with storage_errors(self.root), refused_at_start(f"--out {self.uri}", self.root):
            claim.check(self.root, self.uri, config_file=session.config_file, environ=session.environ)

    def is_claimed(self) -> bool:
        """Return whether the directory has the job's mark."""
        return claim.is_claimed(self.root)

    def is_version_1(self) -> bool:
        """Return whether version 0.1 has written a directory without the mark."""
        return claim.is_version_1(self.root)

    def glance(self, *only: str) -> AbstractContextManager[Self]:  # noqa: ARG002
        """Give the directory, or a copy of it, for reading only. With names, a copy may have `only` these files."""
        return nullcontext(self)

    def probe(self) -> float:
        """Try what a run does in the directory, without making it, and leave nothing behind.

        Return how many seconds the clock of its file system is ahead of this machine's. Raises: UsageError, StorageFailed.
        """
        with claim.probing(self.root, f"--out {self.uri}") as folder:
            claim.try_renames(folder, self.uri)
            with writing(folder / "written", folder / "part") as part:
                part.write_bytes(b"0")
            return (folder / "written").stat().st_mtime - time.time()

    def acquire(self, tell: Callable[[str], None], session: Session) -> None:
        """Claim the directory and take its lease. `close` gives the lease back.

        Raises:
            UsageError: if it holds files that the job did not make, or its file system lacks what a run needs.
            TryAgainLater: if another run works in it.
            StorageFailed, Stopped.
        """
        with storage_errors(self.root), refused_at_start(f"--out {self.uri}", self.root, writing=True):
            self._claim(session)
            self.lease = lease.acquire(self.root, tell, session.stop.check, self._dead_after_s, self.uri)

    def _claim(self, session: Session) -> None:
        claim.claim(self.root, self.uri, config_file=session.config_file, environ=session.environ)

    def commit(self) -> None:
        """Make everything written so far last. Raises: TryAgainLater, StorageFailed."""

    def settle(self) -> None:
        """Commit for the last time in a run. Raises: TryAgainLater, StorageFailed."""

    def refresh(self) -> None:
        """See what another worker has committed."""
        self.ledger.load()

    def bring(self, name: str) -> None:
        """Make sure that the files below a folder of checkpoints are on this machine."""

    def close(self) -> None:
        """Remove `.tmp/`, if the directory is still this run's, and release the lease."""
        if self.lease:
            with suppress(JobError, OSError), self.held():
                self.ledger.settle()
                remove_tree(self.root / TEMPORARY)
            self.lease.release()
            self.lease = None

    def discard(self) -> None:
        """Remove the local copy of a directory in a bucket after `close`, unless another run already works in it."""

    def shown(self, name: str) -> str:
        """Return the name of a file in it that its user knows: the path, or the URI in a bucket."""
        return f"{self.uri}/{name}"

    def path(self, name: str) -> Path:
        """Return the local path of a name."""
        return self.root / name

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder of this name."""
        return self.path(name).exists()

    def temporary(self) -> Path:
        """Return a new path below `.tmp/`, with nothing there yet. The next run removes what is left there."""
        return self.root / TEMPORARY / own_mark()

    def held(self) -> AbstractContextManager[None]:
        """Give a block in which no other run can take this directory over; not nested. Raises: TryAgainLater, if one has."""
        return self.lease.held() if self.lease else nullcontext()

    @contextmanager
    def writing(self, name: str, needed_bytes: int | None = None) -> Iterator[Path]:
        """Give a temporary path to write to. When the block ends well, it becomes `name` in one step.

        Raises:
            StorageFailed: if the file could not be written. The old one, if any, is untouched.
            UsageError: if a file that the job did not make has this name.
        """
        temporary = self.temporary()
        with writing(self.path(name), temporary, needed_bytes, self.held):
            yield temporary
            if not self.ledger.is_settled(name):
                self.ledger.expect({name: digest_of_file(temporary)})
        self.ledger.wrote([name])

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file. Raises as `writing` does."""
        with self.writing(name, len(data)) as path:
            path.write_bytes(data)

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file with indentation, for people."""
        self.write_bytes(name, to_json(value))

    def read_json(self, name: str) -> Any:
        """Return the parsed JSON file, or None if it is missing or not JSON."""
        return read_json(self.path(name))

    def write_sealed(self, name: str, content: Mapping[str, object]) -> None:
        """Write a JSON object with a digest of itself under the key "sha256", so that a damaged file counts as missing."""
        self.write_json(name, {**content, _DIGEST: digest_of(content)})

    def read_sealed(self, name: str) -> Any:
        """Return the JSON object that `write_sealed` wrote; None if it is missing or damaged."""
        content = self.read_json(name)
        if not isinstance(content, dict):
            return None
        digest = content.pop(_DIGEST, None)
        return content if digest == digest_of(content) else None

    @contextmanager
    def writing_folder(self, name: str) -> Iterator[Path]:
        """Give a new folder to fill. When the block ends well, it replaces the job's files below `name`.

        That is one step if only the job has files there (see `files.swap`). Otherwise the job's files are replaced one by
        one, and the others stay.

        Raises:
            StorageFailed: if the folder could not be written. The old one, if any, is untouched.
            UsageError: if a file that the job did not make has one of the names.
        """
        temporary = self.temporary()
        try:
            with storage_errors(self.path(name)):
                temporary.mkdir(parents=True)
            yield temporary
            with storage_errors(self.path(name)):
                sync_all(temporary)
                new = {f"{name}/{inner}": digest for inner, digest in digests_below(temporary).items()}
                with self.held():
                    self._put_in_place(name, temporary, new)
        finally:
            remove_tree(temporary)

    def _put_in_place(self, name: str, built: Path, new: dict[str, str]) -> None:
        final, old = self.path(name), self.ledger.below(name)
        self.ledger.expect(new)
        final.parent.mkdir(parents=True, exist_ok=True)
        if not final.exists():
            os.replace(built, final)
        elif _names_below(final) <= {Path(n).relative_to(name).as_posix() for n in old}:
            swap(built, final)
        else:
            for inner in sorted(digests_below(built)):
                (final / inner).parent.mkdir(parents=True, exist_ok=True)
                os.replace(built / inner, final / inner)
            self.ledger.remove(set(old) - new.keys())
        sync(final.parent)
        self.ledger.forget(set(old) - new.keys())
        self.ledger.wrote(new)

    def remove(self, *names: str) -> None:
        """Remove the job's own files at or below these names."""
        with storage_errors(self.root), self.held():
            self.ledger.remove([file for name in names for file in self.ledger.below(name)])

    def clean(self) -> None:
        """Remove what killed runs left in `.tmp/`, and find out which other files they left."""
        with storage_errors(self.root), self.held():
            remove_tree(self.root / TEMPORARY)
            self.ledger.load()
            self.ledger.settle()

    def begin_log(self) -> None:
        """Make sure that the log file belongs to the job. Raises: UsageError, StorageFailed."""
        with storage_errors(self.root), self.held():
            self.ledger.begin_log(LOG)

    def digests(self, names: tuple[str, ...]) -> dict[str, str]:
        """Return the SHA-256 of the job's files at or below these names, by name. Missing files are left out."""
        files = [file for name in names for file in self.ledger.below(name) if self.path(file).is_file()]
        return {file: digest_of_file(self.path(file)) for file in files}


def _names_below(folder: Path) -> set[str]:
    """Return the names of all files, links and empty folders below a folder."""
    found = set()
    for path in everything_below(folder):
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            found.add(path.relative_to(folder).as_posix())
    return found
