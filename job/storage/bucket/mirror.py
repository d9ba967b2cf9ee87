"""The twin of an output directory in object storage: a local folder to work in, and a bucket for what lasts.

Objects lie under the names of the files, so that users find them. What counts is the manifest alone: it names every file
with the version and the SHA-256 of its object, is written after the objects, and only where it is still the one that this
run has read or written. An object that another version has replaced does not belong to the directory any more; records say
by digest which of a stage's files have to be there, so that such a stage runs again. Logs, which only grow, are taken as
they are.

The job's own objects are those in the manifest, and those that bear its mark in their metadata, which a run that was killed
before it could commit has left. No other object is ever replaced or removed.
"""

import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from job.errors import StorageFailed, TryAgainLater, UsageError
from job.storage.bucket.downloads import fetch
from job.storage.bucket.lease import ObjectLease, acquire
from job.storage.bucket.objects import Conflict, NoSuchObject, Objects, join, remove_own
from job.storage.bucket.parallel import each
from job.storage.claim import of_version_1
from job.storage.files import digest_of_file, storage_errors
from job.storage.lease import NAME as LEASE
from job.storage.ledger import MARK, TEMPORARY, is_inside

MANIFEST = ".manifest.json"
_LAST = "model/model.json"  # Whoever sees a new one finds the files that it names.
_EDITED = "label_issues.csv"  # Its user may write into it, and keeps what was written.
_OF_THIS_MACHINE = (LEASE, MARK, ".secret")
_CHECKPOINTS, _LOGS = "checkpoints/", "logs/"
_CHECKPOINT = re.compile(r"checkpoints/\w+/\d{10}-[0-9a-f]{64}/(arrays\.npy|state\.json)")
_SCHEMA = 2
_READ_WHOLE_BYTES = 32 * 2**20  # Logs grow while they are read; what is larger never changes.
_Look = tuple[int, int, int]  # Size, time and number of a file.


@dataclass(frozen=True)
class _File:
    """A line of the manifest."""

    version: str
    sha256: str  # Empty where it is not known.
    num_bytes: int


class Mirror:
    """`folder` as it is below `objects`, but for `cache/`, which has its own way (`data/exchange.py`), and `.tmp/`."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        self.folder, self.objects = folder, objects
        self._files: dict[str, _File] = {}
        self._removed: dict[str, str] = {}  # The version of each object that is to go.
        self._absent: set[str] = set()  # Checkpoints in the manifest that were not brought here yet.
        self._version = ""
        self._known: dict[str, tuple[_Look, str]] = {}  # The SHA-256 that a file of this look has.
        self._lock = threading.RLock()
        self._lease: ObjectLease | None = None

    @property
    def token(self) -> str:
        """A secret text that only this owner can have written into the lease."""
        assert self._lease is not None
        return self._lease.token

    def has(self, token: str) -> bool:
        """Whether the lease in the bucket is the one with this token."""
        try:
            return token.encode() in self.objects.read(LEASE)
        except NoSuchObject:
            return False

    def exists(self) -> bool:
        """Whether there is such a directory. Raises: UsageError, where there is not even a bucket."""
        next(self.objects.list(), None)
        return self.objects.find(MANIFEST) is not None

    def take_over(self, tell: Callable[[str], None], check_stop: Callable[[], None]) -> None:
        """Make the directory this run's, and the folder what it is. An owner before this one cannot commit any more.

        Raises:
            TryAgainLater: where its owner is alive.
        """
        self._lease = acquire(self.objects, tell, check_stop)
        with self._lock:
            self._read_manifest()
            there = self._forget_replaced()
            # Checkpoints of a run that was killed before it could commit them.
            left = {n: version for n, version in there.items() if n not in self._files and _CHECKPOINT.fullmatch(n)}
            self._removed |= left
            self._commit()
            self._bring_all()

    def settle(self) -> None:
        """Commit, and upload again what an owner before this one, who does not know that it was, has written over."""
        with self._lock:
            self.push()
            self._forget_replaced()
            self.push()

    def _forget_replaced(self) -> dict[str, str]:
        """Drop files whose objects are not of the version in the manifest. Returns the versions that there are, by name."""
        there = {found.name: found.version for found in self.objects.list()}
        for name, file in list(self._files.items()):
            version = there.get(name)
            if version and version != file.version and name.startswith(_LOGS):
                self._files[name] = replace(file, version=version, sha256="", num_bytes=-1)
            elif version != file.version:
                del self._files[name]
        return there

    def release(self) -> None:
        if self._lease:
            self._lease.release()
            self._lease = None

    def pull(self) -> None:
        """Make the folder what the manifest says, but for checkpoints. What is there already is not fetched again."""
        with self._lock:
            self._read_manifest()
            self._bring_all()

    def bring(self, name: str) -> None:
        """Download the checkpoints below a folder. They are large, and few runs need them."""
        with self._lock, storage_errors(self.folder):
            self._fetch_all([file for file in self._absent if file.startswith(f"{name}/")])

    def push(self) -> None:
        """Upload what has changed, and commit it.

        Raises:
            TryAgainLater: where another run has taken the directory over; nothing is committed then.
        """
        with self._lock, storage_errors(self.folder):
            names = set(self._local_names())
            changed = [name for name in names if self._has_changed(name)]
            if not changed and self._files.keys() <= names | self._absent:
                return
            if not self.has(self.token):
                raise self._taken_over()
            uploaded = self._upload_all(changed)
            kept = {n: f for n, f in self._files.items() if n in names | self._absent and n not in changed}
            self._removed |= {name: self._files[name].version for name in self._files.keys() - names - self._absent}
            self._files = {**kept, **uploaded}
            self._removed = {name: v for name, v in self._removed.items() if name not in self._files}
            self._commit()

    def _upload_all(self, names: Sequence[str]) -> dict[str, _File]:
        """Upload files. What replaces an object comes last: a run that is ended before it commits leaves that file without
        its object."""
        uploaded: dict[str, _File] = {}
        replaced = [name for name in names if name in self._files and name != _LAST]
        new = [name for name in names if name not in self._files and name != _LAST]
        for part in (new, replaced, [_LAST] if _LAST in names else []):
            files = each(self._upload, part)
            uploaded |= {name: file for name, file in zip(part, files, strict=True) if file}
        return uploaded

    def _bring_all(self) -> None:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in set(self._local_names()) - self._files.keys():
                self._path(name).unlink(missing_ok=True)
            for path in sorted(self.folder.glob(f"{_CHECKPOINTS}*/*"), reverse=True):
                if not any(path.iterdir()):
                    path.rmdir()
            self._absent = {name for name in self._files if name.startswith(_CHECKPOINTS)}
            self._fetch_all([name for name in self._files if name not in self._absent])

    def _fetch_all(self, names: Sequence[str]) -> None:
        for name, is_there in zip(names, each(self._fetch, names), strict=True):
            self._absent.discard(name)
            if not is_there:
                del self._files[name]

    def _commit(self) -> None:
        manifest: dict[str, object] = {
            "schema": _SCHEMA,
            "owner": self.token,
            "files": {name: vars(file) for name, file in sorted(self._files.items())},
            "removed": self._removed,
        }
        try:
            self._version = self.objects.write(MANIFEST, json.dumps(manifest, indent=1).encode(), self._version)
        except Conflict as error:
            raise self._taken_over() from error
        each(lambda name: remove_own(self.objects, name, self._removed[name]), list(self._removed))
        self._removed.clear()  # The next manifest will know.

    def _read_manifest(self) -> None:
        text = None
        while text is None and (found := self.objects.find(MANIFEST)):
            with suppress(NoSuchObject):  # Written again in between.
                text = self.objects.read(MANIFEST, found.version)
        try:
            manifest: Any = json.loads(text) if text else {"schema": _SCHEMA, "files": {}, "removed": {}}
            if manifest["schema"] == 1:
                raise of_version_1(self.objects.uri)
            if manifest["schema"] != _SCHEMA:
                raise ValueError
            self._files = {name: _File(**file) for name, file in manifest["files"].items() if is_inside(name)}
            self._removed, self._version = dict(manifest["removed"]), found.version if found else ""
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StorageFailed(
                f"{join(self.objects.uri, MANIFEST)}: not a manifest that this version reads. Give another --out."
            ) from error

    def _fetch(self, name: str) -> bool:
        """Whether the file is there now; not where its object has been written over."""
        file, path = self._files[name], self._path(name)
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
        """Return the digest of a file; computed once for each size and time of the file."""
        path = self._path(name)
        look, digest = self._known.get(name, (None, ""))
        if look != (now := _look(path)):
            look, digest = now, digest_of_file(path)
            self._known[name] = look, digest
        return digest

    def _has_changed(self, name: str) -> bool:
        known = self._files.get(name)
        try:
            num_bytes = _look(self._path(name))[0]
            return known is None or known.num_bytes != num_bytes or self._digest(name) != known.sha256
        except FileNotFoundError:  # Gone since it was listed.
            return False

    def _upload(self, name: str) -> _File | None:
        """Upload a file. Return None where it has gone meanwhile."""
        path = self._path(name)
        try:
            data: bytes | Path = path.read_bytes() if path.stat().st_size < _READ_WHOLE_BYTES else path
            digest = sha256(data).hexdigest() if isinstance(data, bytes) else self._digest(name)
            num_bytes = len(data) if isinstance(data, bytes) else path.stat().st_size
            version = self._write(name, data, self._files[name].version if name in self._files else "")
        except FileNotFoundError:
            return None
        return _File(version, digest, num_bytes)

    def _write(self, name: str, data: bytes | Path, before: str) -> str:
        """Write an object over the version that the manifest has, or over what a run has left that ended before it
        committed.

        Raises:
            TryAgainLater: where a run has the lease that has taken this one over.
            UsageError: where somebody else's object has the name.
        """
        try:
            return self.objects.write(name, data, before)
        except Conflict:
            if not self.has(self.token):
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
        """Keep an object that its user has edited under a name that nobody uses."""
        stem, _, suffix = name.rpartition(".")
        for number in count(1):
            with suppress(Conflict):
                other = f"{stem}.edited{'' if number == 1 else f'-{number}'}.{suffix}"
                self.objects.write(other, self.objects.read(name), replaces="")
                return

    def _local_names(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self.folder):
            here, is_root = Path(folder), Path(folder) == self.folder
            folders[:] = [f for f in folders if f != TEMPORARY and not (is_root and f == "cache")]
            for file in files:
                if not (is_root and file in _OF_THIS_MACHINE) and stat.S_ISREG((here / file).lstat().st_mode):
                    yield (here / file).relative_to(self.folder).as_posix()

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _taken_over(self) -> TryAgainLater:
        return TryAgainLater(
            f"{self.objects.uri} was taken over by another run, because this one seemed to be dead. "
            "Nothing was published after that."
        )


def _look(path: Path) -> _Look:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
