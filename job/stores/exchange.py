"""Stores in object storage: shards are uploaded while a stage works, and downloaded if they are missing here.

The content of a shard never changes under its name, and its digest is checked before use. So no coordination is needed
between workers without a shared disk, a node that continues another one's run, and runs that share a `cache.dir`.
"""

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from job.errors import JobError, StorageFailed
from job.storage.bucket.downloads import fetch
from job.storage.bucket.objects import Conflict, NoSuchObject, Objects, remove_own
from job.storage.bucket.parallel import each
from job.storage.files import digest_of_file, own_mark, storage_errors, writing
from job.stores.arrays import ArrayStore, Shard, read_shard, record_name
from job.stores.cache import SHARED, Cache
from job.stores.sweeping import names_in

_SECONDS_BETWEEN_UPLOADS = 2.0


class Exchange:
    """Upload and download of a stage's stores, in these folders of the cache. Does nothing if the cache has no bucket.

    Inside the block, a thread uploads committed shards. If the block ends without an error, all shards are in the bucket.
    """

    def __init__(self, cache: Cache, folders: Sequence[str]) -> None:
        self._cache, self._folders = cache, folders
        self._there: dict[str, set[str]] = {}  # Names in the bucket, by folder, as far as this machine knows.
        self._indexes: dict[Path, int] = {}  # Times of the indexes that are in the bucket as they are here.
        self._ended, self._given_up = threading.Event(), False
        self._thread = threading.Thread(target=self._keep_uploading, daemon=True)
        self._lock = threading.Lock()
        self._error: JobError | None = None  # An upload error that a retry cannot repair.

    def __enter__(self) -> Self:
        if self._cache.objects:
            self._thread.start()
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        self._ended.set()
        self._given_up = error_type is not None
        if self._cache.objects and error_type is None:
            self._thread.join()
            self.flush()

    def fetch(self, folder: str, wants: Callable[[Shard], bool]) -> None:
        """Download those shards in the bucket that this machine does not have and `wants` is true of."""
        if self._cache.objects:
            with self._lock:
                there = self._there[folder] = _names(self._cache.objects, folder)
                records = sorted(n for n in there if n.endswith(".json") and not n.startswith("index-"))
                here = self._cache.path(folder)
                _bring(self._cache, folder, [name for name in records if not _has(here, name)], there, wants)

    def flush(self) -> None:
        """Wait until all committed shards are in the bucket. Raises: StorageFailed, UsageError."""
        if self._error:
            raise self._error
        if self._cache.objects:
            with self._lock:
                for folder in self._folders:
                    self._upload(folder, self._cache.objects)

    def _keep_uploading(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_UPLOADS):
            try:
                self.flush()
            except StorageFailed:  # The flush at the end tries again, and raises.
                continue
            except JobError as error:
                self._error = error
                return

    def _upload(self, folder: str, objects: Objects) -> None:
        here = self._cache.path(folder)
        if folder not in self._there:
            self._there[folder] = _names(objects, folder)
        there = self._there[folder]
        shards = [p for p in sorted(here.glob("[!i]*.json")) if p.name not in there]

        def upload(record: Path) -> None:
            if not _has(here, record.name):  # Its array is missing here. A stage that needs it makes it again.
                return
            shard = read_shard(record)
            for name in (shard.array_name, record.name) if shard else ():
                if name not in there and not self._given_up:
                    with suppress(Conflict):  # Another worker has already uploaded the same content.
                        objects.write(f"{folder}/{name}", here / name, replaces="")
                    there.add(name)

        with storage_errors(here):
            each(upload, shards)
            for index in here.glob("index-*.json"):
                written = index.stat().st_mtime_ns
                if self._indexes.get(index) != written and not self._given_up:
                    _replace(objects, f"{folder}/{index.name}", index.read_bytes(), is_there=index.name in there)
                    self._indexes[index] = written


def open_store(cache: Cache, name: str, rows: Sequence[int] | None = None) -> ArrayStore:
    """Open the store whose index has this name in the cache. Missing files are downloaded first, if there is a bucket.

    With `rows`, only these rows can be read.

    Raises:
        FileNotFoundError: if there is no such store.
    """
    complete(cache, name, rows)
    return ArrayStore(cache.path(name))


def complete(cache: Cache, name: str, rows: Sequence[int] | None = None) -> None:
    """Download the missing files of a store, or with `rows` only those with these rows, if the bucket has them."""
    if cache.objects is None or name in cache.complete:
        return
    try:
        store = _with_index(cache, name)
        folder, shards = name.rpartition("/")[0], store.shards if rows is None else store.shards_of(rows)
        records = [record_name(shard.key) for shard in shards]
        if missing := [record for record in records if not _has(cache.path(folder), record)]:
            _bring(cache, folder, missing, _names(cache.objects, folder))
    except (NoSuchObject, ValueError, KeyError, TypeError):  # An error follows when the store is opened.
        return
    if rows is None:
        cache.complete.add(name)


def is_listed(cache: Cache, name: str) -> bool:
    """Return True if the bucket has every file of a store. Only names are compared."""
    assert cache.objects is not None
    try:
        needed = {file for shard in _with_index(cache, name).shards for file in (shard.array_name, record_name(shard.key))}
        return needed <= _names(cache.objects, name.rpartition("/")[0])
    except (NoSuchObject, ValueError, KeyError, TypeError):
        return False


def _with_index(cache: Cache, name: str) -> ArrayStore:
    """Return the store of an index, which is downloaded if it is missing here. Raises as `ArrayStore` does; NoSuchObject."""
    assert cache.objects is not None
    if not cache.path(name).exists():
        fetch(cache.objects, name, cache.path(name))
    return ArrayStore(cache.path(name))


def sweep_bucket(cache: Cache, wanted: Iterable[Path]) -> None:
    """Remove the objects of stores that are not among the `wanted` files from the bucket, unless other runs share it.

    Only objects that an index or a record refers to are removed.
    """
    objects = cache.objects
    if objects is None or objects.find(SHARED):
        return
    there = {found.name for found in objects.list() if found.name.count("/") == 1}
    left = there - {cache.name(path) for path in wanted}
    for name in sorted((n for n in left if n.endswith(".json")), key=lambda n: ("/index-" not in n, n)):
        folder, _, file = name.partition("/")
        with suppress(NoSuchObject, ValueError, RecursionError):
            named = {f"{folder}/{inner}" for inner in names_in(file, json.loads(objects.read(name)))}
            going = sorted(named & left, key=lambda n: ("/index-" not in n, n))
            each(lambda n: remove_own(objects, n), going)
            left -= named


def _bring(
    cache: Cache, folder: str, records: Iterable[str], there: set[str], wants: Callable[[Shard], bool] = lambda _: True
) -> None:
    """Download the shards with these records that `wants` is true of. `there` are the names in the bucket."""
    objects, here = cache.objects, cache.path(folder)
    assert objects is not None

    def bring(name: str) -> None:
        with suppress(NoSuchObject, ValueError, TypeError):  # The shard is then made again.
            record = objects.read(f"{folder}/{name}")
            shard = Shard(**json.loads(record))
            if not wants(shard):
                return
            file = here / shard.array_name
            if not file.exists() or digest_of_file(file) != shard.sha256:
                fetch(objects, f"{folder}/{file.name}", file)
                if digest_of_file(file) != shard.sha256:
                    file.unlink()  # The downloaded file is damaged.
                    for damaged in (name, file.name):  # Remove it there, so that a new shard can be uploaded.
                        there.discard(damaged)
                        with suppress(JobError):
                            objects.remove(f"{folder}/{damaged}")
                    return
            with writing(here / name, cache.temporary / own_mark()) as path:
                path.write_bytes(record)

    with storage_errors(here):
        here.mkdir(parents=True, exist_ok=True)
        each(bring, [name for name in records if name in there])


def _names(objects: Objects, folder: str) -> set[str]:
    return {found.name.rpartition("/")[2] for found in objects.list(f"{folder}/")}


def _has(here: Path, record: str) -> bool:
    """Return whether a record and its array are on this machine."""
    try:
        return (here / Shard(**json.loads((here / record).read_text())).array_name).exists()
    except (OSError, ValueError, TypeError):
        return False


def _replace(objects: Objects, name: str, data: bytes, *, is_there: bool) -> None:
    """Write an index, unless the bucket has the same one. Where the rows lie may differ between two of one name."""
    with suppress(NoSuchObject):
        if is_there and objects.read(name) == data:
            return
    objects.write(name, data)
