"""The ledger of a work directory: which files in it the job has made. Other files are never replaced or removed.

The ledger is the content of the mark, the file that claims the directory (`claim.py`). A name is written into it *before*
the file appears, with the SHA-256 that the file will have, and before the file is removed. So after a kill at any instant it
is known for every file whether the job made it: an announced file is the job's if it has those bytes, and a user's if it has
others. Names are relative to the directory, which may therefore be moved or copied. The mark contains the ledger twice, so
that one copy survives a flipped bit.

Some files need no line. Shards and checkpoints have the SHA-256 of their content in their names, everything in `.tmp/` is
the job's, and logs are only appended to.
"""

import json
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TypedDict

from job.errors import UsageError
from job.storage.files import digest_of_file, open_own, own_mark, sync

MARK = ".transfer-job"
TEMPORARY = ".tmp"
_WHAT = "The output of transfer-job. It owns the files named here; it never changes or removes others."
# The first part of every name that the job may write in its directory.
_RESERVED = frozenset(
    f"""{MARK} .lease .manifest.json .secret {TEMPORARY} attempt cache checkpoints comparison.parquet cost.json
    examples.parquet logs label_issues.csv metrics.json model photos predictions.parquet probe.json published.json rank.csv
    rank.json rank.svg report.html run run.json seed.json stages versions""".split()
)
_WITHOUT_LINES = ("cache", "checkpoints", TEMPORARY)


class _Content(TypedDict):
    files: list[str]
    coming: dict[str, str]


def is_reserved(name: str) -> bool:
    """Return whether the job may write a file of this name in its directory, so that no input may have it."""
    return Path(name).parts[0] in _RESERVED


class Ledger:
    """The names of the files below `root` that the job has made. Threads may share a ledger, processes may not."""

    def __init__(self, root: Path) -> None:
        self._root, self._file = root, root / MARK
        self._lock = threading.RLock()
        self._names: set[str] | None = None  # None until the mark has been read.
        self._unsaved: set[str] = set()  # Names that are not in the mark yet.

    def is_settled(self, name: str) -> bool:
        """Return whether the mark already says that a file of this name is the job's, so that it may be replaced."""
        return name in self._ours() and name not in self._unsaved

    def below(self, name: str) -> list[str]:
        """Return the names of the job's files at or below a name, sorted."""
        with self._lock:
            return sorted(n for n in self._ours() if n == name or n.startswith(f"{name}/"))

    def expect(self, files: Mapping[str, str]) -> None:
        """Announce files that are about to be written. `files` maps their names to the SHA-256 of their content.

        Raises:
            UsageError: if a file that the job did not make has one of the names.
        """
        with self._lock:
            new = {name: digest for name, digest in files.items() if name not in self._ours()}
            for name in new:
                self._refuse_foreign(name)
            if new or self._unsaved & files.keys():
                self._save(new)

    def wrote(self, names: Iterable[str]) -> None:
        """Add names that were announced with `expect`, now that the files are there."""
        with self._lock:
            fresh = set(names) - self._ours()
            self._ours().update(fresh)
            self._unsaved |= fresh

    def remove(self, names: Iterable[str]) -> None:
        """Remove files of the job, and folders that become empty. Files that the job did not make are left alone."""
        with self._lock:
            own = [name for name in names if name in self._ours()]
            going = {name: digest_of_file(self._root / name) for name in own if (self._root / name).is_file()}
            self.forget(own)
            if going:
                self._save(going)
            for name in going:
                (self._root / name).unlink(missing_ok=True)
                self._remove_empty_folders((self._root / name).parent)

    def forget(self, names: Iterable[str]) -> None:
        """Drop the names of files that were removed."""
        with self._lock:
            self._ours().difference_update(names)
            self._unsaved.difference_update(names)

    def begin_log(self, name: str) -> None:
        """Make sure that a log file is the job's. Create an empty one if there is none.

        Raises:
            UsageError: if a file that the job did not make has the name.
        """
        with self._lock:
            if name in self._ours():
                return
            self.expect({name: sha256(b"").hexdigest()})
            (self._root / name).parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._root / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            self.wrote([name])
            self._save({})

    def load(self) -> None:
        """Read the mark again, because another process may have worked here since."""
        with self._lock:
            self._names, self._unsaved = None, set()

    def settle(self) -> None:
        """Write the mark if files are missing in it, for example those that a killed run had announced."""
        with self._lock:
            self._ours()
            if self._unsaved:
                self._save({})

    def _ours(self) -> set[str]:
        if self._names is None:
            with self._lock:
                self._names = self._read()
        return self._names

    def _read(self) -> set[str]:
        try:
            with open(open_own(self._file, os.O_RDONLY), "rb") as file:
                text = file.read()
        except FileNotFoundError:
            return set()
        if not text:  # The claim was interrupted, or this is a copy of an output in a bucket.
            self._unsaved = {name for name in _in_manifest(self._root) if self._has(name)}
            if not self._unsaved:
                self._refuse_unknown("is empty")
            return set(self._unsaved)
        content = _parsed(text[: len(text) // 2]) or _parsed(text[len(text) // 2 :])
        if content is None:
            self._refuse_unknown("is damaged")
            return set()
        coming = content["coming"].items()
        self._unsaved = {name for name, digest in coming if self._has(name) and digest_of_file(self._root / name) == digest}
        return {name for name in content["files"] if self._has(name)} | self._unsaved

    def _refuse_unknown(self, what: str) -> None:
        """Refuse a directory with files that the job may or may not have made. Raises: UsageError."""
        apart = (MARK, ".lease", TEMPORARY)
        found = sorted(p.name for p in self._root.iterdir() if p.name not in apart and is_reserved(p.name))
        if found:
            raise UsageError(
                f"{self._file} {what}, so it is unknown whether this job made the files beside it: {', '.join(found[:5])}. "
                "They stay as they are, and predict can still read a model in them. Give another --out."
            )

    def _has(self, name: str) -> bool:
        """Return whether there is a regular file of this name, with no link in its path."""
        path = self._root / name
        is_regular = os.path.isfile(path) and not path.is_symlink()  # noqa: PTH113  # Unlike Path.is_file, it never raises.
        return is_inside(name) and is_regular and self._obstacle(path) is None

    def _obstacle(self, path: Path) -> Path | None:
        """Return the first part of the path to a file that is a link, or not a folder."""
        parents = (p for p in reversed(path.parents) if p != self._root and p.is_relative_to(self._root))
        return next((p for p in parents if os.path.lexists(p) and (p.is_symlink() or not p.is_dir())), None)

    def _refuse_foreign(self, name: str) -> None:
        path = self._root / name
        in_the_way = self._obstacle(path) or (path if os.path.lexists(path) else None)
        if in_the_way is not None:
            raise UsageError(
                f"{in_the_way} is in the way: this job did not make it and does not replace it. Move it somewhere else and "
                "run the same command again."
            )

    def _save(self, coming: Mapping[str, str]) -> None:
        content = {"what": _WHAT, "files": sorted(self._ours()), "coming": dict(coming)}
        text = json.dumps({"sha256": _checksum(content), **content}, indent=0) + "\n"
        temporary = self._root / TEMPORARY / own_mark()
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(2 * text, encoding="utf-8")  # Twice, because one copy may be damaged.
            sync(temporary)
            os.replace(temporary, self._file)
        finally:
            temporary.unlink(missing_ok=True)
        sync(self._root)
        self._unsaved.clear()

    def _remove_empty_folders(self, folder: Path) -> None:
        with suppress(OSError):  # The folder is not empty.
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent


class ScratchLedger(Ledger):
    """The ledger of a folder in scratch space. Every file there is the job's, so there is no mark."""

    def _ours(self) -> set[str]:
        found: set[str] = set()
        for folder, folders, files in os.walk(self._root):
            here = Path(folder)
            folders[:] = [f for f in folders if here != self._root or f not in _WITHOUT_LINES]
            found |= {(here / file).relative_to(self._root).as_posix() for file in files}
        return found - {MARK}

    def _save(self, coming: Mapping[str, str]) -> None:  # noqa: ARG002
        self._unsaved.clear()


def _parsed(text: bytes) -> _Content | None:
    """Return the content of a mark, or None if it is damaged."""
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        content = json.loads(text)
        if content.pop("sha256") == _checksum(content):
            return {"files": list(content["files"]), "coming": dict(content["coming"])}
    return None


def _in_manifest(root: Path) -> list[str]:
    """Return the names of the job's files in the manifest of a bucket, which is in a copy of the bucket."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return list(json.loads((root / ".manifest.json").read_bytes())["files"])
    return []


def _checksum(content: Mapping[str, object]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_inside(name: str) -> bool:
    """Return whether a relative name does not lead out of its folder."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)
