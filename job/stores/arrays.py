"""Stores of photos, features and activations: N rows of one shape and dtype, in shards of `.npy` files.

A shard is found by its key, which says what it was made from. Its record, KEY.json, names its array, KEY-DIGEST.npy, and
is written after it. So workers can write shards in any order, several runs can share a folder, and a half-finished store
continues where it stopped. The index of a store, index-DIGEST.json, lists its shards and is written last. Rows are read
through memory maps.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from job.storage.files import digest_of, digest_of_file, own_mark, read_json, storage_errors, sync, to_json, writing
from job.storage.ledger import TEMPORARY

ROWS_PER_SHARD = 256
_IN_MEMORY_BYTES = 256 * 2**20
HEADER_BYTES = 128  # NumPy pads the header of such a .npy file to this size.


@dataclass(frozen=True)
class Shard:
    """A committed shard. `key` says what it was made from; `extra` is any JSON value that the writer keeps with it."""

    key: str
    num_rows: int
    sha256: str
    extra: Any = None

    @property
    def array_name(self) -> str:
        return f"{self.key[:32]}-{self.sha256[:16]}.npy"


class StoreWriter:
    """Writer that adds shards of one shape and dtype to a folder."""

    def __init__(self, folder: Path, row_shape: Sequence[int], dtype: str, temporary: Path | None = None) -> None:
        """Make the folders. `temporary` (default: `.tmp/` in `folder`) is for unfinished files, on the same file system."""
        self.folder, self._temporary = folder, temporary or folder / TEMPORARY
        self.row_shape, self.dtype = tuple(row_shape), np.dtype(dtype)
        self._seen: dict[str, Shard] = {}  # Without `extra`, which may be large.
        with storage_errors(folder):
            for made in (folder, self._temporary):
                made.mkdir(parents=True, exist_ok=True)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    def committed(self, key: str) -> Shard | None:
        """Return the shard that was made from `key`, or None if it is missing or damaged."""
        record = read_json(self.folder / record_name(key))
        try:
            found = Shard(**record) if record else None
        except TypeError:
            return None
        if found is None or found.key != key or not _is_intact(self.folder, found):
            return None
        self._seen[key] = replace(found, extra=None)
        return found

    def open_shard(self, capacity: int) -> Path:
        """Make a file for up to `capacity` rows, the first one at HEADER_BYTES. `commit` turns it into a shard."""
        path = self._temporary / own_mark()
        with storage_errors(path), path.open("wb") as file:
            file.truncate(HEADER_BYTES + capacity * self.row_bytes)
        return path

    def commit(self, key: str, path: Path, num_rows: int, extra: object = None) -> Shard:
        """Turn the first `num_rows` rows of a file from `open_shard` into a shard."""
        with storage_errors(path), path.open("r+b") as file:
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": (num_rows, *self.row_shape)}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == HEADER_BYTES
            file.truncate(HEADER_BYTES + num_rows * self.row_bytes)
        shard = Shard(key, num_rows, digest_of_file(path), extra)
        with storage_errors(path, num_rows * self.row_bytes):
            sync(path)
            os.replace(path, self.array_path(shard))
        self._write(record_name(key), to_json(shard.__dict__, indent=None))
        self._seen[key] = replace(shard, extra=None)
        return shard

    def write(self, key: str, rows: np.ndarray) -> Shard:
        path = self.open_shard(len(rows))
        with storage_errors(path, rows.nbytes), path.open("r+b") as file:
            file.seek(HEADER_BYTES)
            file.write(np.ascontiguousarray(rows, self.dtype).data)
        return self.commit(key, path, len(rows))

    def array_path(self, shard: Shard) -> Path:
        """Return the path of a shard's array."""
        return self.folder / shard.array_name

    def finish(self, keys: Sequence[str]) -> "ArrayStore":
        """Write the index of these shards, in this order, and open the store. This writer must have seen all of them."""
        shards = [self._seen[key] for key in keys]
        index = {
            "row_shape": self.row_shape,
            "dtype": self.dtype.str,
            "shards": [{"key": s.key, "num_rows": s.num_rows, "sha256": s.sha256} for s in shards],
        }
        name = index_name(index)
        self._write(name, to_json(index))
        return ArrayStore(self.folder / name)

    def _write(self, name: str, data: bytes) -> None:
        with writing(self.folder / name, self._temporary / own_mark(), len(data)) as path:
            path.write_bytes(data)


class ArrayStore:
    """A complete store, given by its index file. Raises FileNotFoundError if there is no such file."""

    def __init__(self, index_file: Path) -> None:
        self.index_file = index_file
        index = json.loads(index_file.read_text())
        self.row_shape: tuple[int, ...] = tuple(index["row_shape"])
        self.dtype = np.dtype(index["dtype"])
        self.shards = tuple(Shard(**shard) for shard in index["shards"])
        self.digest = digest_of([index["row_shape"], index["dtype"], [s.sha256 for s in self.shards]])
        self._starts = np.cumsum([0, *(s.num_rows for s in self.shards)])

    @staticmethod
    def is_intact(index_file: Path) -> bool:
        """Return True if the store is complete and undamaged. All of it is read for that."""
        try:
            return all(_is_intact(index_file.parent, shard) for shard in ArrayStore(index_file).shards)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_bytes(self) -> int:
        return len(self) * int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    def shard_range(self, shard: int) -> range:
        """Return the row numbers in a shard."""
        return range(int(self._starts[shard]), int(self._starts[shard + 1]))

    def rows(self, numbers: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return a copy of these rows, in this order. They are read in the order on the disk."""
        numbers = np.asarray(numbers, np.int64)
        gathered = np.empty((len(numbers), *self.row_shape), self.dtype)
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], self._starts[1:])
        start = 0
        for shard, end in enumerate(ends):
            if end > start:
                here = order[start:end]
                gathered[here] = self._arrays[shard][numbers[here] - self._starts[shard]]
                start = end
        return gathered

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        folder = self.index_file.parent  # Rows of a plain array are read faster than those of np.memmap, its subclass.
        return [np.asarray(np.load(folder / shard.array_name, mmap_mode="r")) for shard in self.shards]


class StoredRows:
    """Numbered rows of a store: an array that is read slice by slice, or at once if it is small."""

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], numbers_N: np.ndarray, row_shape: tuple[int, ...]) -> None:
        """Take rows `numbers_N`, each one of `row_shape` float32 numbers, from `read`."""
        self.shape = (len(numbers_N), *row_shape)
        self._read, self._numbers_N = read, numbers_N
        is_small = 4 * int(np.prod(self.shape, dtype=np.int64)) <= _IN_MEMORY_BYTES
        self._held = read(numbers_N) if is_small else None

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._held[part] if self._held is not None else self._read(self._numbers_N[part])


@dataclass(frozen=True)
class StoredViews:
    """Output of a frozen network for every photo, and for augmented views of the training photos.

    `plain` has a row for each row of the image store. `augmented` has num_views - 1 consecutive rows for each training
    photo, in the order of `train_rows_T` (rows of the image store). It is None if there is only one view.
    """

    plain: ArrayStore
    augmented: ArrayStore | None
    train_rows_T: np.ndarray
    num_views: int

    def positions_of(self, rows_B: np.ndarray) -> np.ndarray:
        """Return the positions of these rows of the image store in `train_rows_T`."""
        return np.searchsorted(self.train_rows_T, rows_B)

    def training(self, positions_B: np.ndarray, views_B: np.ndarray) -> np.ndarray:
        """Return one view of each of these training photos, which are given by their positions in `train_rows_T`."""
        is_plain = views_B == 0
        if self.augmented is None or is_plain.all():
            return self.plain.rows(self.train_rows_T[positions_B])
        later = self.augmented.rows(positions_B[~is_plain] * (self.num_views - 1) + views_B[~is_plain] - 1)
        if not is_plain.any():
            return later
        gathered = np.empty((len(positions_B), *self.plain.row_shape), self.plain.dtype)
        gathered[is_plain] = self.plain.rows(self.train_rows_T[positions_B[is_plain]])
        gathered[~is_plain] = later
        return gathered


def index_name(index: object) -> str:
    """Return the file name of a store's index. It contains a digest of the index."""
    return f"index-{digest_of(index)[:16]}.json"


def record_name(key: str) -> str:
    return f"{key[:32]}.json"


def _is_intact(folder: Path, shard: Shard) -> bool:
    file = folder / shard.array_name
    return file.is_file() and digest_of_file(file) == shard.sha256
