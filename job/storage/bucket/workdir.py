"""The form of an output directory in object storage: a local folder to work in, and a bucket for what lasts.

Objects lie under the names of the files, so that users find them. What counts is the manifest alone. It names every file
with the version and the SHA-256 of its object. It is written after the objects, and only if it is still the one that this
run has read or written. An object that was replaced by another version no longer belongs to the directory. The records of
the stages say by digest which files have to be there, so such a stage runs again. Logs only grow, and are taken as they are.

The job's own objects are those in the manifest, and those that have its mark in their metadata: a run that was killed
before it could commit has left them. No other object is ever replaced or removed.
"""

import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Self

from job.errors import JobError, TryAgainLater, UsageError
from job.runtime.session import Session
from job.storage import claim, lease
from job.storage.bucket import lease as bucket_lease
from job.storage.bucket import manifest
from job.storage.bucket.downloads import fetch
from job.storage.bucket.manifest import File
from job.storage.bucket.objects import Conflict, NoSuchObject, Objects, join, remove_own
from job.storage.bucket.parallel import each
from job.storage.files import digest_of_file, own_mark, remove_tree, storage_errors
from job.storage.lease import NAME as LEASE
from job.storage.ledger import MARK, TEMPORARY, ScratchLedger
from job.storage.workdir import Workdir

_LAST = "model/model.json"  # Uploaded last, so that a reader of it finds the files that it names.
_EDITED = "label_issues.csv"  # Users may edit it, and their edits are kept.
_OF_THIS_MACHINE = (LEASE, MARK, ".secret")
_CHECKPOINTS, _LOGS = "checkpoints/", "logs/"
_CHECKPOINT = re.compile(r"checkpoints/\w+/\d{10}-[0-9a-f]{64}/(arrays\.npy|state\.json)")
_READ_WHOLE_BYTES = 32 * 2**20  # Logs may grow while they are read. Larger files never change.
_Look = tuple[int, int, int]  # Size, modification time and inode of a file.


class BucketWorkdir(Workdir):
    """An output directory in a bucket. `root` is the local folder, which equals the bucket as of the last `commit`.

    Two parts of the folder are never uploaded: `.tmp/`, and `cache/`, whose stores are exchanged one by one
    (`stores/exchange.py`).
    """

    # Only processes of this machine use the local folder, so a touch by its owner is seen at once. There is none for some
    # seconds while TensorFlow is imported. Owners on other machines are judged by the lease in the bucket.
    _dead_after_s = 15.0
    objects: Objects

    def __init__(self, root: Path, objects: Objects) -> None:
        super().__init__(root)
        self.objects, self.ledger = objects, ScratchLedger(root)
        self._files: dict[str, File] = {}
        self._removed: dict[str, str] = {}  # Objects to remove, with their versions.
        self._absent: set[str] = set()  # Checkpoints in the manifest that were not downloaded yet.
        self._version = ""
        self._known: dict[str, tuple[_Look, str]] = {}  # The SHA-256 of a file, valid while its look is the same.
        self._lock = threading.RLock()
        self._bucket_lease: bucket_lease.ObjectLease | None = None

    @property
    def uri(self) -> str:
        return self.objects.uri

    def check(self, session: Session) -> None:  # noqa: ARG002
        claim.check_bucket(self.objects)

    def is_claimed(self) -> bool:
        return self.objects.find(MARK) is not None

    def is_version_1(self) -> bool:
        """Return whether version 0.1 has written a prefix without the mark. Raises: UsageError, if there is no bucket."""
        next(self.objects.list(), None)  # It raises if there is no bucket.
        return self.objects.find(manifest.NAME) is not None

    @contextmanager
    def glance(self, *only: str) -> Iterator[Self]:
        """Give a copy in a temporary folder, without checkpoints and stores, for reading only. With names, `only` these."""
        with tempfile.TemporaryDirectory() as folder:
            copy = type(self)(Path(folder), self.objects)
            copy._read_manifest()
            copy._bring_all(only)
            yield copy

    def probe(self) -> float:
        ahead_s, name = super().probe(), f".transfer-job-{own_mark()}"
        self.objects.write(name, b"", replaces="")
        self.objects.remove(name)
        return ahead_s

    def acquire(self, tell: Callable[[str], None], session: Session) -> None:
        super().acquire(tell, session)
        self.take_over(tell, session.stop.check)

    def _claim(self, session: Session) -> None:  # noqa: ARG002
        claim.claim_bucket(self.objects)
        self.root.mkdir(parents=True, exist_ok=True)

    def take_over(self, tell: Callable[[str], None], check_stop: Callable[[], None]) -> None:
        """Take the lease in the bucket and download the files. The owner before this one cannot commit any more.

        Raises:
            TryAgainLater: if its owner is alive.
        """
        self._bucket_lease = bucket_lease.acquire(self.objects, tell, check_stop)
        with self._lock:
            self._read_manifest()
            there = self._forget_replaced()
            # Remove checkpoints of a run that was killed before it could commit them.
            self._removed |= {n: v for n, v in there.items() if n not in self._files and _CHECKPOINT.fullmatch(n)}
            self._write_manifest()
            self._bring_all()

    def commit(self) -> None:
        """Upload what has changed, and name it in the manifest.

        Raises:
            TryAgainLater: if another run has taken the directory over. Nothing was committed then.
        """
        with self._lock, storage_errors(self.root):
            names = set(self._local_names())
            changed = [name for name in names if self._has_changed(name)]
            if not changed and self._files.keys() <= names | self._absent:
                return
            if not self._is_owner():
                raise self._taken_over()
            uploaded = self._upload_all(changed)
            kept = {n: f for n, f in self._files.items() if n in names | self._absent and n not in changed}
            self._removed |= {name: self._files[name].version for name in self._files.keys() - names - self._absent}
            self._files = {**kept, **uploaded}
            self._removed = {name: v for name, v in self._removed.items() if name not in self._files}
            self._write_manifest()

    def settle(self) -> None:
        """Commit, and upload again what the owner before this one has overwritten without knowing that it was replaced."""
        with self._lock:
            self.commit()
            self._forget_replaced()
            self.commit()

    def refresh(self) -> None:
        """Download what another worker has committed, without checkpoints. Files that are the same already stay."""
        with self._lock:
            self._read_manifest()
            self._bring_all()

    def bring(self, name: str) -> None:
        """Download the checkpoints below a folder. They are large, and few runs need them."""
        with self._lock, storage_errors(self.root):
            self._fetch_all([file for file in self._absent if file.startswith(f"{name}/")])

    def close(self) -> None:
        if self._bucket_lease:
            self._bucket_lease.release()
            self._bucket_lease = None
        super().close()

    def discard(self) -> None:
        with suppress(JobError, OSError):
            own = lease.acquire(self.root, lambda _: None, lambda: None, self._dead_after_s, self.uri)
            with own.held():
                remove_tree(self.root)
            own.release()
            self.root.parent.rmdir()  # It fails if another worker of this machine still has its files there.

    @property
    def _token(self) -> str:
        assert self._bucket_lease is not None
        return self._bucket_lease.token

    def _is_owner(self) -> bool:
        """Return whether the lease in the bucket is still the one of this run."""
        try:
            return self._token.encode() in self.objects.read(LEASE)
        except NoSuchObject:
            return False

    def _forget_replaced(self) -> dict[str, str]:
        """Drop files whose objects have another version than in the manifest. Return the versions in the bucket, by name."""
        there = {found.name: found.version for found in self.objects.list()}
        for name, file in list(self._files.items()):
            version = there.get(name)
            if version and version != file.version and name.startswith(_LOGS):
                self._files[name] = replace(file, version=version, sha256="", num_bytes=-1)
            elif version != file.version:
                del self._files[name]
        return there

    def _upload_all(self, names: Sequence[str]) -> dict[str, File]:
        """Upload files, replacements last: if the run is killed before it commits, a replaced file no longer counts."""
        uploaded: dict[str, File] = {}
        replaced = [name for name in names if name in self._files and name != _LAST]
        new = [name for name in names if name not in self._files and name != _LAST]
        for part in (new, replaced, [_LAST] if _LAST in names else []):
            files = each(self._upload, part)
            uploaded |= {name: file for name, file in zip(part, files, strict=True) if file}
        return uploaded

    def _bring_all(self, only: Sequence[str] = ()) -> None:
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            for name in set(self._local_names()) - self._files.keys():
                self.path(name).unlink(missing_ok=True)
            for path in sorted(self.root.glob(f"{_CHECKPOINTS}*/*"), reverse=True):
                if not any(path.iterdir()):
                    path.rmdir()
            self._absent = {n for n in self._files if n.startswith(_CHECKPOINTS) or (only and n not in only)}
            self._fetch_all([name for name in self._files if name not in self._absent])

    def _fetch_all(self, names: Sequence[str]) -> None:
        for name, is_there in zip(names, each(self._fetch, names), strict=True):
            self._absent.discard(name)
            if not is_there:
                del self._files[name]

    def _write_manifest(self) -> None:
        text = manifest.encode(self._token, self._files, self._removed)
        try:
            self._version = self.objects.write(manifest.NAME, text, self._version)
        except Conflict as error:
            raise self._taken_over() from error
        each(lambda name: remove_own(self.objects, name, self._removed[name]), list(self._removed))
        self._removed.clear()  # They are missing in the next manifest.

    def _read_manifest(self) -> None:
        text = None
        while text is None and (found := self.objects.find(manifest.NAME)):
            with suppress(NoSuchObject):  # It was replaced in the meantime.
                text = self.objects.read(manifest.NAME, found.version)
        self._files, self._removed = manifest.decode(text, self.objects.uri) if text else ({}, {})
        self._version = found.version if found else ""

    def _fetch(self, name: str) -> bool:
        """Download a file if it is missing. Return False if its object was replaced."""
        file, path = self._files[name], self.path(name)
        if path.is_file() and path.stat().st_size == file.num_bytes and self._digest(name) == file.sha256:
            return True
        with suppress(NoSuchObject):
            fetch(self.objects, name, path, file.version)
            digest = self._digest(name)
            if not file.sha256:
                self._files[name] = replace(file, sha256=digest, num_bytes=path.stat().st_size)
            if file.sha256 in ("", digest):
                return True
        path.unlink(missing_ok=True)
        return False

    def _digest(self, name: str) -> str:
        """Return the SHA-256 of a file, which is computed again only after a change of its size or time."""
        path = self.path(name)
        look, digest = self._known.get(name, (None, ""))
        if look != (now := _look(path)):
            look, digest = now, digest_of_file(path)
            self._known[name] = look, digest
        return digest

    def _has_changed(self, name: str) -> bool:
        known = self._files.get(name)
        try:
            num_bytes = _look(self.path(name))[0]
            return known is None or known.num_bytes != num_bytes or self._digest(name) != known.sha256
        except FileNotFoundError:  # It was removed since it was listed.
            return False

    def _upload(self, name: str) -> File | None:
        """Upload a file. Return None if it was removed in the meantime."""
        path = self.path(name)
        try:
            data: bytes | Path = path.read_bytes() if path.stat().st_size < _READ_WHOLE_BYTES else path
            digest = sha256(data).hexdigest() if isinstance(data, bytes) else self._digest(name)
            num_bytes = len(data) if isinstance(data, bytes) else path.stat().st_size
            version = self._write(name, data, self._files[name].version if name in self._files else "")
        except FileNotFoundError:
            return None
        return File(version, digest, num_bytes)

    def _write(self, name: str, data: bytes | Path, before: str) -> str:
        """Replace the version in the manifest, or the object of a run that was killed before it committed.

        Raises:
            TryAgainLater: if another run has taken the directory over.
            UsageError: if an object that the job did not make has the name.
        """
        try:
            return self.objects.write(name, data, before)
        except Conflict:
            if not self._is_owner():
                raise self._taken_over() from None
            found = self.objects.find(name)
            if found and not found.is_own and name == _EDITED:
                self._set_aside(name)
            elif found and not found.is_own:
                raise UsageError(
                    f"{join(self.objects.uri, name)} is in the way: this job did not make it and does not replace it. Move "
                    "it somewhere else and run the same command again."
                ) from None
            return self.objects.write(name, data, found.version if found else "")

    def _set_aside(self, name: str) -> None:
        """Copy an edited object to a name that is free."""
        stem, _, suffix = name.rpartition(".")
        for number in count(1):
            with suppress(Conflict):
                other = f"{stem}.edited{'' if number == 1 else f'-{number}'}.{suffix}"
                self.objects.write(other, self.objects.read(name), replaces="")
                return

    def _local_names(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self.root):
            here, is_root = Path(folder), Path(folder) == self.root
            folders[:] = [f for f in folders if f != TEMPORARY and not (is_root and f == "cache")]
            for file in files:
                if not (is_root and file in _OF_THIS_MACHINE) and stat.S_ISREG((here / file).lstat().st_mode):
                    yield (here / file).relative_to(self.root).as_posix()

    def _taken_over(self) -> TryAgainLater:
        return TryAgainLater(
            f"{self.objects.uri} was taken over by another run, because this one seemed to be dead. "
            "Nothing was published after that."
        )


def _look(path: Path) -> _Look:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
