"""Stores of photos, features and activations: N rows of one shape and dtype, in shards of `.npy` files.

A row is found by its key, which says what it was made from. The record of a shard, KEY.json, lists the keys of its rows and
names its array, KEY-DIGEST.npy. It is written after the array, and neither of them changes later. So workers can write
shards in any order, several runs can share a folder, and a half-finished store continues where it stopped. A store only
grows: rows that are missing are made in new shards, and rows that are no longer needed leave holes.

The index of a store, index-DIGEST.json, is written last. It says where each row lies. DIGEST depends on the keys of the
rows alone, so a store that has grown has the name and the digest of a store that was made in one go. Rows are read, not
mapped: pages of a map count as memory of the process, and an error of the disk in one of them kills it.
"""

import base64
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from errno import EIO
from functools import cached_property, lru_cache
from io import FileIO
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from job.storage.files import digest_of, digest_of_file, own_mark, read_json, storage_errors, sync, to_json, writing
from job.storage.ledger import TEMPORARY

HEADER_BYTES = 128  # NumPy pads the header of such a .npy file to this size.
# Shards that are larger would lose more work in a kill, and smaller ones make more files.
MAX_SHARD_BYTES, MAX_SHARD_ROWS = 32 << 20, 512
_MAX_SHORT_SHARDS = 32  # Of shards that are not half full. If a store has more, they are merged.
_MAX_GAP_BYTES = 16 << 10  # Reading so many bytes takes as long as another call.
_MAX_OPEN_FILES = 128  # Of each store. A process may often have 1,024.


@dataclass(frozen=True)
class Shard:
    """A committed shard: the keys of its rows, and the SHA-256 of its array.

    `notes`: a JSON value for a key, which need not have a row. `extra`: any JSON value, which is not kept when the shard is
    merged with others. In the index of a store, all three are left out.
    """

    key: str
    num_rows: int
    sha256: str
    rows: Sequence[str] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    extra: Any = None

    @property
    def array_name(self) -> str:
        return f"{self.key[:32]}-{self.sha256[:16]}.npy"


class StoreWriter:
    """Writer that adds shards of one shape and dtype to a folder, and finds the rows that are there already."""

    def __init__(self, folder: Path, row_shape: Sequence[int], dtype: str, temporary: Path | None = None) -> None:
        """Make the folders. `temporary` (default: `.tmp/` in `folder`) is for unfinished files, on the same file system."""
        self.folder, self._temporary = folder, temporary or folder / TEMPORARY
        self.row_shape, self.dtype = tuple(row_shape), np.dtype(dtype)
        self._shards: dict[str, Shard] = {}
        self._read: dict[str, int] = {}  # Times of the records that were read, by their names.
        self._checked: set[str] = set()  # Keys of the shards whose arrays were compared with their digests.
        self._places: dict[str, tuple[str, int]] = {}
        self._notes: dict[str, tuple[str, Any]] = {}
        with storage_errors(folder):
            for made in (folder, self._temporary):
                made.mkdir(parents=True, exist_ok=True)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def max_rows(self) -> int:
        """The number of rows of a full shard."""
        return max(1, min(MAX_SHARD_ROWS, MAX_SHARD_BYTES // max(1, self.row_bytes)))

    def refresh(self) -> list[Shard]:
        """Read the records that were written since the last call, by any process. Return their shards."""
        found = []
        with storage_errors(self.folder):
            for record in sorted(self.folder.glob("[!i]*.json")):  # Names of records begin with a hexadecimal digit.
                written = record.stat().st_mtime_ns
                if self._read.get(record.name) != written:
                    self._read[record.name] = written
                    if shard := read_shard(record):
                        self._take(shard)
                        found.append(shard)
        return found

    def has(self, keys: Sequence[str]) -> np.ndarray:
        """Return for each key whether an undamaged shard has its row, as far as `refresh` has seen. Boolean, (N,).

        Damaged shards with one of these rows, or a note for one of these keys, are forgotten.
        """
        while damaged := [s for s in self._shards_of(keys, self._notes.keys() & set(keys)) if not self._is_intact(s)]:
            self._drop(damaged)
        return np.asarray([key in self._places for key in keys], bool)

    def note(self, key: str) -> Any:
        """Return the note for a key; None if there is none."""
        return self._notes[key][1] if key in self._notes else None

    def notes(self) -> Iterator[Any]:
        """Yield every note that `refresh` has seen."""
        return (note for _, note in self._notes.values())

    def open_shard(self, capacity: int) -> Path:
        """Make a file for up to `capacity` rows, the first one at HEADER_BYTES. `commit` turns it into a shard."""
        path = self._temporary / own_mark()
        with storage_errors(path), path.open("wb") as file:
            file.truncate(HEADER_BYTES + capacity * self.row_bytes)
        return path

    def commit(
        self, path: Path, keys: Sequence[str], notes: Mapping[str, object] | None = None, extra: object = None
    ) -> Shard:
        """Turn the first rows of a file from `open_shard` into a shard. `keys` are the keys of these rows."""
        with storage_errors(path), path.open("r+b") as file:
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": (len(keys), *self.row_shape)}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == HEADER_BYTES
            file.truncate(HEADER_BYTES + len(keys) * self.row_bytes)
        key = _shard_key(list(keys), dict(notes or {}), extra)
        shard = Shard(key, len(keys), digest_of_file(path), list(keys), dict(notes or {}), extra)
        with storage_errors(path, len(keys) * self.row_bytes):
            sync(path)
            os.replace(path, self.folder / shard.array_name)
        self._write(record_name(key), to_json(shard.__dict__, indent=None))
        self._take(shard)
        self._checked.add(key)
        return shard

    def write(self, keys: Sequence[str], rows: np.ndarray, notes: Mapping[str, object] | None = None) -> Shard:
        """Write a shard of these rows, which have these keys."""
        path = self.open_shard(len(rows))
        with storage_errors(path, rows.nbytes), path.open("r+b") as file:
            file.seek(HEADER_BYTES)
            file.write(np.ascontiguousarray(rows, self.dtype).data)
        return self.commit(path, keys, notes)

    def finish(self, keys: Sequence[str], *, noted: Sequence[str] = (), compacts: bool = False) -> "ArrayStore":
        """Write the index of the store of these rows, in this order, and open the store. All rows must be there.

        `noted` are keys without rows whose notes belong to the store. With `compacts`, shards with too few rows of this
        store are first replaced by copies of these rows. In a folder that runs share, that would only add files.
        """
        if compacts:
            self._compact(keys, noted)
        shards = [self._shards[key] for key in sorted(self._shards_of(keys, noted))]
        starts = dict(zip([s.key for s in shards], np.cumsum([0, *(s.num_rows for s in shards)]).tolist(), strict=False))
        places = np.asarray([starts[shard] + row for shard, row in map(self._places.__getitem__, keys)], np.int64)
        index = {
            "row_shape": self.row_shape,
            "dtype": self.dtype.str,
            "keys": digest_of(list(keys)),
            "shards": [{"key": s.key, "num_rows": s.num_rows, "sha256": s.sha256} for s in shards],
            "places": base64.b64encode(zlib.compress(np.diff(places, prepend=0).tobytes())).decode(),
        }
        name = index_name(index)
        self._write(name, to_json({**index, "sha256": digest_of(index)}))
        return ArrayStore(self.folder / name)

    def _compact(self, keys: Sequence[str], noted: Sequence[str]) -> None:
        """Copy the rows of shards of which less than half are needed, and of many short shards, into new shards."""
        distinct = list(dict.fromkeys(keys))
        needed = Counter(self._places[key][0] for key in distinct)
        used = self._shards_of(distinct, noted)
        going = {shard for shard in used if 2 * needed[shard] < self._shards[shard].num_rows}
        short = {shard for shard in used if 2 * needed[shard] < self.max_rows}
        if len(short) > _MAX_SHORT_SHARDS:
            going |= short
        rows = sorted((self._places[key], key) for key in distinct if self._places[key][0] in going)
        alone = [key for key in dict.fromkeys(noted) if self._notes[key][0] in going]
        parts = [[key for _, key in rows[k : k + self.max_rows]] for k in range(0, len(rows), self.max_rows)]
        if alone and not parts:
            parts = [[]]
        copies = [self._copied(part, alone if k == 0 else []) for k, part in enumerate(parts)]
        self._drop(going)
        for copy in copies:
            self._take(copy)

    def _copied(self, keys: Sequence[str], noted: Sequence[str]) -> Shard:
        places = [self._places[key] for key in keys]
        rows = [np.empty((0, *self.row_shape), self.dtype)]
        for shard, group in groupby(places, key=itemgetter(0)):
            array = np.load(self.folder / self._shards[shard].array_name, mmap_mode="r")
            rows.append(array[[row for _, row in group]])
        notes = {key: self._notes[key][1] for key in (*keys, *noted) if key in self._notes}
        return self.write(keys, np.concatenate(rows), notes)

    def _shards_of(self, keys: Iterable[str], noted: Iterable[str] = ()) -> set[str]:
        shards = {self._places[key][0] for key in keys if key in self._places}
        return shards | {self._notes[key][0] for key in noted}

    def _is_intact(self, shard: str) -> bool:
        if shard not in self._checked and _has_array(self.folder, self._shards[shard]):
            self._checked.add(shard)
        return shard in self._checked

    def _take(self, shard: Shard) -> None:
        if shard.sha256 != self._shards.get(shard.key, shard).sha256:  # Another process has made it with other last bits.
            self._checked.discard(shard.key)
        self._shards[shard.key] = shard
        for row, key in enumerate(shard.rows):
            self._places.setdefault(key, (shard.key, row))
        for key, note in shard.notes.items():
            self._notes.setdefault(key, (shard.key, note))

    def _drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            del self._shards[key]
            self._checked.discard(key)
        self._places.clear()
        self._notes.clear()
        for shard in self._shards.values():
            self._take(shard)

    def _write(self, name: str, data: bytes) -> None:
        with writing(self.folder / name, self._temporary / own_mark(), len(data)) as path:
            path.write_bytes(data)


class ArrayStore:
    """A complete store, given by its index file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError, KeyError, TypeError: if the file is damaged, or of an earlier version of the job.
    """

    def __init__(self, index_file: Path) -> None:
        self.index_file = index_file
        index = json.loads(index_file.read_text())
        if index.pop("sha256") != digest_of(index):
            raise ValueError(f"{index_file} is damaged")
        self.row_shape: tuple[int, ...] = tuple(index["row_shape"])
        self.dtype = np.dtype(index["dtype"])
        self.shards = tuple(Shard(**shard) for shard in index["shards"])
        self.digest = digest_of([index["row_shape"], index["dtype"], index["keys"]])
        self._starts = np.cumsum([0, *(s.num_rows for s in self.shards)])
        self._places = np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(index["places"])), np.int64))
        self._file = lru_cache(_MAX_OPEN_FILES)(self._opened)

    @staticmethod
    def is_intact(index_file: Path) -> bool:
        """Return True if the store is complete and undamaged. All of it is read for that."""
        try:
            store = ArrayStore(index_file)
            return len(store.keys) == len(store) and all(_has_array(index_file.parent, shard) for shard in store.shards)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def __len__(self) -> int:
        return len(self._places)

    @property
    def num_bytes(self) -> int:
        return len(self) * int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    @cached_property
    def keys(self) -> list[str]:
        """The key of each row. Raises: ValueError, if a record is damaged."""
        records = [read_shard(self.index_file.parent / record_name(shard.key)) for shard in self.shards]
        if [record and record.num_rows for record in records] != [shard.num_rows for shard in self.shards]:
            raise ValueError(f"{self.index_file}: the record of a shard is missing or damaged")
        keys = [key for record in records if record for key in record.rows]
        return [keys[place] for place in self._places.tolist()]

    def order_on_disk(self, numbers: np.ndarray) -> np.ndarray:
        """Return the positions of these row numbers in the order in which reading the rows is fastest."""
        return np.argsort(self._places[numbers], kind="stable")

    def shards_of(self, numbers: Sequence[int]) -> list[Shard]:
        """Return the shards in which these rows are."""
        places = self._places[np.asarray(numbers, np.int64)]
        return [self.shards[k] for k in np.unique(np.searchsorted(self._starts, places, side="right") - 1)]

    def rows(self, numbers: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return these rows, in this order. They are read in the order on the disk, and near ones at once."""
        places = self._places[np.asarray(numbers, np.int64)]
        order = np.argsort(places, kind="stable")
        places = places[order]
        shards = np.searchsorted(self._starts, places, side="right") - 1
        gathered = np.empty((len(places), *self.row_shape), self.dtype)
        steps, most = np.diff(places, prepend=-1), 1 + _MAX_GAP_BYTES // max(1, gathered[:1].nbytes)
        is_near = (steps >= 1) & (steps <= most) & (np.diff(order, prepend=-2) == 1) & (np.diff(shards, prepend=-1) == 0)
        firsts = np.flatnonzero(~is_near).tolist()
        with storage_errors(self.index_file):
            for first, end in pairwise([*firsts, len(places)]):
                rows = gathered[order[first] : order[first] + end - first]
                self._read(int(shards[first]), places[first:end], rows)
        return gathered

    def _read(self, shard: int, places: np.ndarray, rows: np.ndarray) -> None:
        """Fill `rows` with the rows at these places, which ascend and are all in one shard."""
        count = int(places[-1] - places[0]) + 1
        buffer = rows if count == len(rows) else np.empty((count, *self.row_shape), self.dtype)
        file, offset = self._file(shard), int(places[0] - self._starts[shard]) * (rows.nbytes // len(rows))
        if os.preadv(file.fileno(), [buffer.data], HEADER_BYTES + offset) != buffer.nbytes:
            raise OSError(
                EIO, "the file is shorter than its record says. Delete it: the job makes its rows again", file.name
            )
        if buffer is not rows:
            rows[:] = buffer[places - places[0]]

    def _opened(self, shard: int) -> FileIO:
        # A file object closes its file when it is no longer used, in whichever thread that is.
        return FileIO(self.index_file.parent / self.shards[shard].array_name)


def index_name(index: Mapping[str, Any]) -> str:
    """Return the file name of a store's index. It contains a digest of the shape, the dtype and the keys of the rows.

    The indexes of version 0.5 and before have a digest of their whole content.
    """
    named = [index["row_shape"], index["dtype"], index["keys"]] if "keys" in index else index
    return f"index-{digest_of(named)[:16]}.json"


def record_name(key: str) -> str:
    return f"{key[:32]}.json"


def read_shard(record: Path) -> Shard | None:
    """Return the shard of a record; None if the record is missing, damaged, or of an earlier version of the job."""
    try:
        shard = Shard(**read_json(record))
        is_whole = shard.num_rows == len(shard.rows) and shard.key == _shard_key(shard.rows, shard.notes, shard.extra)
        return shard if is_whole and record.name == record_name(shard.key) else None
    except TypeError:
        return None


def _shard_key(rows: Sequence[str], notes: Mapping[str, object], extra: object) -> str:
    return digest_of([rows, notes, extra])


def _has_array(folder: Path, shard: Shard) -> bool:
    file = folder / shard.array_name
    return file.is_file() and digest_of_file(file) == shard.sha256
