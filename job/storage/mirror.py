"""The twin of an output directory in object storage: a local folder to work in, and a bucket for what lasts.

Objects lie under the names of the files, so that users find them. What counts is the manifest alone: it names every file
with the version and the SHA-256 of its object, is written after the objects, and only where it is still the one that this
run has read or written. An object that another version has replaced does not belong to the directory any more; records say
by digest which of a stage's files have to be there, so that such a stage runs again. Logs, which only grow, are taken as
they are.
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
from pathlib import Path
from typing import Any

from job.errors import StorageFailed, TryAgainLater
from job.storage.copies import fetch
from job.storage.lease import NAME as LEASE
from job.storage.object_lease import ObjectLease, acquire
from job.storage.objects import Conflict, NoSuchObject, Objects, join
from job.storage.parallel import each
from job.storage.workdir import digest_of_file, is_part, remove_folder, storage_errors

MANIFEST = ".manifest.json"
_VERSIONS = "versions"
_CHECKPOINTS, _LOGS = "checkpoints/", "logs/"
_CHECKPOINT = re.compile(r"checkpoints/\w+/\d{10}-[0-9a-f]{64}/(arrays\.npy|state\.json)")
_SCHEMA = 1
_READ_WHOLE_BYTES = 32 * 2**20  # Logs grow while they are read; what is larger never changes.
_Look = tuple[int, int, int]  # Size, time and number of a file.


@dataclass(frozen=True)
class _File:
    """A line of the manifest."""

    object: str
    version: str
    sha256: str  # Empty where it is not known.
    num_bytes: int


class Mirror:
    """`folder` as it is below `objects`, but for what lies in `cache/`, which has its own way (`data/exchange.py`)."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        self.folder, self.objects = folder, objects
        self._files: dict[str, _File] = {}
        self._links: dict[str, str] = {}
        self._removed: set[str] = set()
        self._absent: set[str] = set()  # Checkpoints in the manifest that were not brought here yet.
        self._version = ""
        self._known: dict[str, tuple[_Look, str]] = {}  # The SHA-256 that a file of this look has.
        self._lock = threading.RLock()
        self._lease: ObjectLease | None = None

    @property
    def token(self) -> str:
        """What nobody else can have written into the lease."""
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
            if self._version:  # Of a run that was killed before it could commit them.
                known = {file.object for file in self._files.values()}
                self._removed |= {name for name in there if _CHECKPOINT.fullmatch(name)} - known
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
            version = there.get(file.object)
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
        """The same for checkpoints below a folder, which are large and which hardly anybody wants."""
        with self._lock, storage_errors(self.folder):
            self._fetch_all([file for file in self._absent if file.startswith(f"{name}/")])

    def push(self) -> None:
        """Upload what has changed, and commit it.

        Raises:
            TryAgainLater: where another run has taken the directory over; nothing is committed then.
        """
        with self._lock, storage_errors(self.folder):
            links = dict(self._local_links())
            aliases = {target: link for link, target in links.items()}
            names = {name: _object_name(name, aliases) for name in self._local_names() if _is_published(name, aliases)}
            changed = [name for name, object_name in names.items() if self._has_changed(name, object_name)]
            if not changed and self._files.keys() <= names.keys() | self._absent and links == self._links:
                return
            if not self.has(self.token):
                raise self._taken_over()
            uploaded = self._upload_all({name: names[name] for name in changed})
            kept = {n: f for n, f in self._files.items() if n in names.keys() | self._absent and n not in changed}
            self._removed |= {self._files[name].object for name in self._files.keys() - kept.keys()}
            self._files, self._links = {**kept, **uploaded}, links
            self._removed -= {file.object for file in self._files.values()}
            self._commit()

    def _upload_all(self, names: dict[str, str]) -> dict[str, _File]:
        """What replaces an object comes last: a run that is ended before it commits leaves that file without its object."""
        there = {file.object for file in self._files.values()}
        uploaded: dict[str, _File] = {}
        for part in ([n for n in names if names[n] not in there], [n for n in names if names[n] in there]):
            files = each(lambda name: self._upload(name, names[name]), part)
            uploaded |= {name: file for name, file in zip(part, files, strict=True) if file}
        return uploaded

    def _bring_all(self) -> None:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in {*self._local_names(), *dict(self._local_links())} - self._files.keys() - self._links.keys():
                self._path(name).unlink(missing_ok=True)
            for path in sorted(self.folder.glob(f"{_CHECKPOINTS}*/*"), reverse=True):
                if not any(path.iterdir()):
                    path.rmdir()
            self._absent = {name for name in self._files if name.startswith(_CHECKPOINTS)}
            self._fetch_all([name for name in self._files if name not in self._absent])
            for link, target in self._links.items():
                self._link(link, target)

    def _fetch_all(self, names: Sequence[str]) -> None:
        for name, is_there in zip(names, each(self._fetch, names), strict=True):
            self._absent.discard(name)
            if not is_there:
                del self._files[name]

    def _commit(self) -> None:
        manifest: dict[str, Any] = {
            "schema": _SCHEMA,
            "owner": self.token,
            "files": {name: vars(file) for name, file in sorted(self._files.items())},
            "links": self._links,
            "removed": sorted(self._removed),
        }
        try:
            self._version = self.objects.write(MANIFEST, json.dumps(manifest, indent=1).encode(), self._version)
        except Conflict as error:
            raise self._taken_over() from error
        each(self.objects.remove, self._removed)
        self._removed.clear()  # The next manifest will know.

    def _read_manifest(self) -> None:
        text = None
        while text is None and (found := self.objects.find(MANIFEST)):
            with suppress(NoSuchObject):  # Written again in between.
                text = self.objects.read(MANIFEST, found.version)
        try:
            manifest: Any = json.loads(text) if text else {"schema": _SCHEMA, "files": {}, "links": {}, "removed": []}
            if manifest["schema"] != _SCHEMA:
                raise ValueError
            self._files = {name: _File(**file) for name, file in manifest["files"].items() if _is_inside(name)}
            self._links = {k: v for k, v in manifest["links"].items() if _is_inside(k) and _is_inside(v)}
            self._removed, self._version = set(manifest["removed"]), found.version if found else ""
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageFailed(
                f"{join(self.objects.uri, MANIFEST)}: not a manifest that this version reads. Give another --out."
            ) from error

    def _fetch(self, name: str) -> bool:
        """Whether the file is there now; not where its object has been written over."""
        file, path = self._files[name], self._path(name)
        if path.is_file() and path.stat().st_size == file.num_bytes and self._digest(name) == file.sha256:
            return True
        with suppress(NoSuchObject):
            fetch(self.objects, file.object, path, file.version)
            digest = self._digest(name)
            if not file.sha256:
                self._files[name] = replace(file, sha256=digest, num_bytes=path.stat().st_size)
            if file.sha256 in ("", digest):
                return True
        path.unlink(missing_ok=True)
        return False

    def _digest(self, name: str) -> str:
        """Of a file; asked once for each look that it has."""
        path = self._path(name)
        look, digest = self._known.get(name, (None, ""))
        if look != (now := _look(path)):
            look, digest = now, digest_of_file(path)
            self._known[name] = look, digest
        return digest

    def _has_changed(self, name: str, object_name: str) -> bool:
        known = self._files.get(name)
        try:
            look = _look(self._path(name))
            is_same = known is not None and (known.object, known.num_bytes) == (object_name, look[0])
            return not (known and is_same and self._digest(name) == known.sha256)
        except FileNotFoundError:  # Gone since it was listed.
            return False

    def _upload(self, name: str, object_name: str) -> _File | None:
        """None where the file has gone meanwhile."""
        path = self._path(name)
        try:
            data: bytes | Path = path.read_bytes() if path.stat().st_size < _READ_WHOLE_BYTES else path
            digest = sha256(data).hexdigest() if isinstance(data, bytes) else self._digest(name)
            num_bytes = len(data) if isinstance(data, bytes) else path.stat().st_size
            before = next((f.version for f in self._files.values() if f.object == object_name), "")
            version = self._write(object_name, data, before)
        except FileNotFoundError:
            return None
        return _File(object_name, version, digest, num_bytes)

    def _write(self, object_name: str, data: bytes | Path, before: str) -> str:
        """What lies there otherwise was left by a run that ended before it could commit, unless that has the lease now."""
        try:
            return self.objects.write(object_name, data, before)
        except Conflict:
            if not self.has(self.token):
                raise self._taken_over() from None
            found = self.objects.find(object_name)
            return self.objects.write(object_name, data, found.version if found else "")

    def _local_names(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self.folder):
            here = Path(folder)
            folders[:] = [f for f in folders if not is_part(f) and not (here == self.folder and f == "cache")]
            for file in files:
                if file != LEASE and not is_part(file) and stat.S_ISREG((here / file).lstat().st_mode):
                    yield (here / file).relative_to(self.folder).as_posix()

    def _local_links(self) -> Iterator[tuple[str, str]]:
        """Folders that are published, by the link that leads to them."""
        for path in self.folder.iterdir():
            if path.is_symlink() and path.is_dir():
                yield path.name, path.readlink().as_posix()

    def _link(self, link: str, target: str) -> None:
        path = self._path(link)
        if not path.is_symlink() or path.readlink().as_posix() != target:
            if path.is_dir() and not path.is_symlink():
                remove_folder(path)
            path.unlink(missing_ok=True)
            path.symlink_to(target, target_is_directory=True)

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _taken_over(self) -> TryAgainLater:
        return TryAgainLater(
            f"{self.objects.uri} was taken over by another run, because this one seemed to be dead. "
            "Nothing was published after that."
        )


def _object_name(name: str, aliases: dict[str, str]) -> str:
    """`versions/model-DIGEST/x` is found as `model/x`."""
    for target, link in aliases.items():
        if name.startswith(f"{target}/"):
            return link + name[len(target) :]
    return name


def _is_published(name: str, aliases: dict[str, str]) -> bool:
    """Not a version that nothing leads to: it was withdrawn."""
    return not name.startswith(f"{_VERSIONS}/") or any(name.startswith(f"{target}/") for target in aliases)


def _look(path: Path) -> _Look:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _is_inside(name: str) -> bool:
    """Whether a name from the bucket stays inside the folder."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)
