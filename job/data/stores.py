"""One kind of store for photos, features and activations: N rows of one shape and dtype in shards of `.npy` files.

A shard is committed by its record (`shard-00007.json`: what it was made from, how many rows, digest), written after the
array; the index comes last. So shards may be written in any order, by anyone, and a half-finished store goes on where it
stopped. Rows are read through memory maps by row number.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from job.config import digest_of
from job.storage.workdir import Workdir, digest_of_file, sync

ROWS_PER_SHARD = 256
HEADER_BYTES = 128  # What NumPy pads the header of a .npy file of this kind to.


@dataclass(frozen=True)
class Shard:
    """A committed shard. `key` says what it was made from; `extra` is whatever the writer wants to find again."""

    key: str
    num_rows: int
    sha256: str
    extra: Any = None


class StoreWriter:
    """Fills the folder of a store, shard by shard."""

    def __init__(self, folder: Path, row_shape: Sequence[int], dtype: str) -> None:
        self._workdir = Workdir(folder)
        self.row_shape, self._dtype = tuple(row_shape), np.dtype(dtype)
        self._seen: dict[int, Shard] = {}  # Without `extra`, so that the index can be written without reading it all again.
        folder.mkdir(parents=True, exist_ok=True)

    def committed(self, shard: int, key: str) -> Shard | None:
        """The shard, if it was made from `key` and its bytes are what they were."""
        found = _read_record(self._workdir, shard)
        file = self._workdir.path(_array_name(shard))
        if found is None or found.key != key or not file.is_file() or digest_of_file(file) != found.sha256:
            return None
        self._seen[shard] = replace(found, extra=None)
        return found

    def open_shard(self, shard: int, capacity: int) -> Path:
        """A file to write rows into, the first one at HEADER_BYTES; `commit` makes it the shard."""
        path = self._workdir.path(f".{_array_name(shard)}.part")
        with path.open("wb") as file:
            file.truncate(HEADER_BYTES + capacity * self._row_bytes)
        return path

    def commit(self, shard: int, key: str, path: Path, num_rows: int, extra: Any = None) -> Shard:
        """Make the first `num_rows` rows of the file from `open_shard` the shard."""
        with path.open("r+b") as file:
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": (num_rows, *self.row_shape)}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == HEADER_BYTES
            file.truncate(HEADER_BYTES + num_rows * self._row_bytes)
        digest = digest_of_file(path)
        sync(path)
        os.replace(path, self._workdir.path(_array_name(shard)))
        committed = Shard(key, num_rows, digest, extra)
        self._seen[shard] = replace(committed, extra=None)
        self._workdir.write_json(_record_name(shard), committed.__dict__, indent=None)
        return committed

    def write(self, shard: int, key: str, rows: np.ndarray) -> Shard:
        path = self.open_shard(shard, len(rows))
        with path.open("r+b") as file:
            file.seek(HEADER_BYTES)
            np.ascontiguousarray(rows, self._dtype).tofile(file)
        return self.commit(shard, key, path, len(rows))

    def array_path(self, shard: int) -> Path:
        return self._workdir.path(_array_name(shard))

    def finish(self, num_shards: int) -> "ArrayStore":
        """Write the index over shards 0 to `num_shards` - 1 and remove what lies beyond them."""
        shards = [self._seen.get(k) or _read_record(self._workdir, k) for k in range(num_shards)]
        index = {
            "row_shape": self.row_shape,
            "dtype": self._dtype.str,
            "shards": [{"key": s.key, "num_rows": s.num_rows, "sha256": s.sha256} for s in shards if s],
        }
        assert len(index["shards"]) == num_shards
        self._workdir.write_json("index.json", index)
        kept = {name for k in range(num_shards) for name in (_array_name(k), _record_name(k))}
        for path in self._workdir.root.iterdir():
            if path.name not in kept and path.name != "index.json":
                path.unlink()
        return ArrayStore(self._workdir.root)

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self.row_shape, dtype=np.int64)) * self._dtype.itemsize


class ArrayStore:
    """A complete store. Raises FileNotFoundError where the index is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / "index.json").read_text())
        self.row_shape: tuple[int, ...] = tuple(index["row_shape"])
        self.dtype = np.dtype(index["dtype"])
        self.shards = tuple(Shard(**shard) for shard in index["shards"])
        self.digest = digest_of([index["row_shape"], index["dtype"], [s.sha256 for s in self.shards]])
        self._starts = np.cumsum([0, *(s.num_rows for s in self.shards)])

    @staticmethod
    def is_intact(folder: Path) -> bool:
        """Whether the store is complete and every byte is what it was."""
        try:
            store = ArrayStore(folder)
            return all(digest_of_file(folder / _array_name(k)) == s.sha256 for k, s in enumerate(store.shards))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def __len__(self) -> int:
        return int(self._starts[-1])

    def shard_range(self, shard: int) -> range:
        """The row numbers in a shard."""
        return range(int(self._starts[shard]), int(self._starts[shard + 1]))

    def rows(self, numbers: np.ndarray | Sequence[int]) -> np.ndarray:
        """The rows of these numbers, copied, in this order."""
        numbers = np.asarray(numbers, np.int64)
        gathered = np.empty((len(numbers), *self.row_shape), self.dtype)
        shard_of_row = np.searchsorted(self._starts, numbers, side="right") - 1
        for shard in np.unique(shard_of_row):
            here = np.flatnonzero(shard_of_row == shard)
            gathered[here] = self._arrays[shard][numbers[here] - self._starts[shard]]
        return gathered

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        return [np.load(self.folder / _array_name(k), mmap_mode="r") for k in range(len(self.shards))]


@dataclass(frozen=True)
class StoredViews:
    """What a frozen network made of every photo, and of further augmented views of the training photos.

    `plain` has a row for each row of the image store. `augmented` has num_views - 1 rows, one after the other, for each
    training photo in the order of `train_rows_T` (their rows in the image store); it is None where there is one view.
    """

    plain: ArrayStore
    augmented: ArrayStore | None
    train_rows_T: np.ndarray
    num_views: int

    def positions_of(self, rows_B: np.ndarray) -> np.ndarray:
        """Where these rows of the image store stand among the training photos that have views."""
        return np.searchsorted(self.train_rows_T, rows_B)

    def training(self, positions_B: np.ndarray, views_B: np.ndarray) -> np.ndarray:
        """One view of each of these training photos, given by position in `train_rows_T`."""
        if self.augmented is None:
            return self.plain.rows(self.train_rows_T[positions_B])
        is_plain = views_B == 0
        gathered = np.empty((len(positions_B), *self.plain.row_shape), self.plain.dtype)
        gathered[is_plain] = self.plain.rows(self.train_rows_T[positions_B[is_plain]])
        later = positions_B[~is_plain] * (self.num_views - 1) + views_B[~is_plain] - 1
        gathered[~is_plain] = self.augmented.rows(later)
        return gathered


def _array_name(shard: int) -> str:
    return f"shard-{shard:05d}.npy"


def _record_name(shard: int) -> str:
    return f"shard-{shard:05d}.json"


def _read_record(workdir: Workdir, shard: int) -> Shard | None:
    record = workdir.read_json(_record_name(shard))
    try:
        return Shard(**record) if record else None
    except TypeError:
        return None
