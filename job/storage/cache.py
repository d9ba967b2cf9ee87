"""Where stores lie that can be made again: photos, features, activations. Several runs may share the place.

A store is found by what it was made from (`data/stores.py`), so sharing needs no lock, and nothing in it goes stale.
"""

import shutil
from pathlib import Path

from job.errors import StorageFailed, UsageError
from job.storage.objects import Objects
from job.storage.workdir import in_units, storage_errors

_GB = 10**9
SHARED = ".shared"  # Lies in a folder that a run has named as its cache.dir.


class Cache:
    """A folder of stores. `is_shared` where other runs may own some of them, so that nothing of it may be removed.

    `objects`: where the stores last, if that is a bucket (`data/exchange.py`); the folder is then this machine's part.
    `complete`: names of stores of which everything was brought here.
    """

    def __init__(self, root: Path, *, is_shared: bool, max_gb: float | None = None, objects: Objects | None = None) -> None:
        self.root, self.is_shared, self.max_gb, self.objects = root, is_shared, max_gb, objects
        self.complete: set[str] = set()

    @property
    def may_be_swept(self) -> bool:
        """Whether no other run can want anything of it."""
        return not self.is_shared and not self.path(SHARED).exists()

    def path(self, name: str) -> Path:
        return self.root / name

    def name(self, path: Path) -> str:
        """The name of what lies at `path`, which stays the same where the folder is moved or mounted elsewhere."""
        return path.relative_to(self.root).as_posix()

    @property
    def free_bytes(self) -> int:
        existing = next(p for p in (self.root, *self.root.parents) if p.exists())
        return shutil.disk_usage(existing).free

    def reserve(self, needed_bytes: int, missing_bytes: int) -> None:
        """Ask before work starts whether this run's stores may take `needed_bytes`, `missing_bytes` of them still to write.

        Raises:
            UsageError: where they are over the budget.
            StorageFailed: where the disk has not so much left.
        """
        if self.is_shared:
            with storage_errors(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                self.path(SHARED).touch()
            if self.objects:
                self.objects.write(SHARED, b"")  # It tells at once whether this run may write there, too.
        if self.max_gb is not None and needed_bytes > self.max_gb * _GB:
            raise UsageError(
                f"The stores of this run need {in_units(needed_bytes)} under {self.root}; cache.max_gb allows "
                f"{self.max_gb:g}. Raise it, or store less: fewer augment.views, a smaller intake.image_size, or "
                'fine_tune.inputs = "online".'
            )
        if missing_bytes > self.free_bytes:
            raise StorageFailed(
                f"The stores of this run need {in_units(missing_bytes)} more under {self.root}, where "
                f"{in_units(self.free_bytes)} are free. Free some space, give another cache.dir, or store less: fewer "
                'augment.views, a smaller intake.image_size, or fine_tune.inputs = "online".'
            )
