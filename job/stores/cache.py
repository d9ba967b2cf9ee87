"""The cache: a folder for stores of photos, features and activations, which the job can make again at any time.

A store is found by what it was made from (`stores/arrays.py`). So several runs can share a cache without a lock, and no
entry becomes stale. A shared folder has no owner. The file `.shared` marks it, and no run removes anything from it that
another run may need.
"""

import re
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

from job.console.places import refused_at_start
from job.errors import StorageFailed, UsageError
from job.storage.bucket.objects import Conflict, NoSuchObject, Objects
from job.storage.claim import is_of_a_system
from job.storage.files import free_bytes, in_units, own_mark, remove_tree, storage_errors, writing
from job.storage.ledger import TEMPORARY

SHARED = ".shared"
_STORE = re.compile(r"\w+-[0-9a-f]{16}")
_ABANDONED_S = 24 * 3600
_TOKEN = own_mark()  # Subfolder for this process' unfinished files in a folder that several runs share.


class Cache:
    """A folder of stores.

    `is_shared`: several runs may use it, so it has no owner. `temporary`: the folder for unfinished files. `objects`: the
    bucket that keeps the stores, if there is one (`stores/exchange.py`); `root` is then only this machine's copy.
    `complete`: the names of stores that were downloaded completely. `kept_free_bytes`: disk space that stores must not use.
    """

    def __init__(
        self,
        root: Path,
        *,
        is_shared: bool,
        temporary: Path | None = None,
        max_gb: float | None = None,
        objects: Objects | None = None,
    ) -> None:
        self.root, self.is_shared, self.max_gb, self.objects = root, is_shared, max_gb, objects
        self.temporary = temporary or root / TEMPORARY / _TOKEN
        self.complete: set[str] = set()
        self.kept_free_bytes = 0

    @property
    def may_be_swept(self) -> bool:
        """True if no other run can need anything in it."""
        return not self.is_shared and not self.path(SHARED).exists()

    def path(self, name: str) -> Path:
        """Return the local path of a name."""
        return self.root / name

    def name(self, path: Path) -> str:
        """Return a path relative to the folder. It stays valid if the folder is moved or mounted elsewhere."""
        return path.relative_to(self.root).as_posix()

    def read(self, name: str) -> bytes | None:
        """Return a file that belongs to no store, from the bucket if there is one; None if it is missing."""
        with suppress(NoSuchObject), storage_errors(self.path(name)):
            if self.objects:
                return self.objects.read(name)
            return self.path(name).read_bytes() if self.path(name).is_file() else None
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file that belongs to no store. If runs write it at the same time, the last one counts."""
        if self.objects:
            self.objects.write(name, data)
            return
        with writing(self.path(name), self.temporary / own_mark(), len(data)) as path:
            path.write_bytes(data)

    def check(self) -> None:
        """Refuse a shared folder or prefix that is not marked yet and contains anything but stores.

        Raises:
            UsageError: with some of the other files, and the setting to type instead.
        """
        if not self.is_shared or self._is_marked():
            return
        if self.objects:
            names = (found.name for found in self.objects.list())
        else:
            with refused_at_start(f"cache.dir {self.root}", self.root):
                there = sorted(self.root.iterdir()) if self.root.exists() else ()
            names = (path.name + "/" * path.is_dir() for path in there)
        found = list(islice((name for name in names if not _may_lie_in_a_cache(name)), 5))
        if found and not self._is_marked():
            place = self.objects.uri if self.objects else self.root
            raise UsageError(
                f"cache.dir {place} contains files that do not belong to a cache of this job: {', '.join(found)}. Give "
                f"the cache its own folder: --set cache.dir={place}/transfer-job-cache"
            )

    def claim(self) -> None:
        """Mark a shared folder or prefix as such, and remove unfinished files that are more than a day old.

        Raises:
            UsageError: as `check` does.
            StorageFailed: if the mark cannot be written.
        """
        if not self.is_shared:
            return
        self.check()
        with storage_errors(self.root), refused_at_start(f"cache.dir {self.root}", self.root, writing=True):
            self.root.mkdir(parents=True, exist_ok=True)
            self.path(SHARED).touch()
            for left in self.path(TEMPORARY).glob("*"):
                with suppress(FileNotFoundError):  # The run that it belongs to has just ended and removed it.
                    if time.time() - max(p.stat().st_mtime for p in (left, *left.glob("*"))) > _ABANDONED_S:
                        remove_tree(left)
        if self.objects and not self._is_marked():
            try:
                self.objects.write(SHARED, b"", replaces="")  # This also checks early that this run may write there.
            except Conflict:
                return  # Another run has just marked it.

    def close(self) -> None:
        """Remove this process' unfinished files from a folder that several runs share."""
        if self.is_shared:
            remove_tree(self.temporary)

    def _is_marked(self) -> bool:
        return self.objects.find(SHARED) is not None if self.objects else self.path(SHARED).exists()

    @property
    def free_bytes(self) -> int:
        """Disk space, in bytes, that stores may still use."""
        return max(0, free_bytes(self.root) - self.kept_free_bytes)

    def reserve(self, needed_bytes: int, missing_bytes: int) -> None:
        """Check before work starts that there is room for this run's stores. `missing_bytes` of them are not written yet.

        Raises:
            UsageError: if `needed_bytes` is more than cache.max_gb allows.
            StorageFailed: if less than `missing_bytes` is free on the disk.
        """
        if self.max_gb is not None and needed_bytes > self.max_gb * 1e9:
            raise UsageError(
                f"The stores of this run need {in_units(needed_bytes)} under {self.root}; cache.max_gb allows "
                f"{self.max_gb:g} GB. Raise it, or store less: fewer augment.views, a smaller intake.image_size, or "
                'fine_tune.inputs = "online".'
            )
        if missing_bytes > self.free_bytes:
            raise StorageFailed(
                f"The stores of this run need {in_units(missing_bytes)} more under {self.root}, where "
                f"{in_units(self.free_bytes)} are free. Free some space, set another cache.dir, or store less: "
                'fewer augment.views, a smaller intake.image_size, or fine_tune.inputs = "online".'
            )


def _may_lie_in_a_cache(name: str) -> bool:
    """Return True if a name belongs to a store or to the system. Names of folders end with a slash."""
    first, slash, _ = name.partition("/")
    return is_of_a_system(first) or first in ("", SHARED, TEMPORARY) or bool(slash and _STORE.fullmatch(first))
