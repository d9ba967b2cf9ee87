"""A store while its rows are computed: they are collected until they fill a shard, and written by a thread."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from job.stores.arrays import Shard, StoreWriter


class Filled:
    """The new rows of a store, in the order in which they are computed."""

    def __init__(self, writer: StoreWriter, names: Sequence[str], thread: ThreadPoolExecutor) -> None:
        """Set up a store for rows with the keys `names`, in order. Rows that it has already are dropped."""
        self._writer, self._names, self._thread = writer, names, thread
        self._is_new = ~writer.has(names)
        self._keys: list[str] = []
        self._rows = np.empty((0, *writer.row_shape), writer.dtype)
        self._writes = deque[Future[Shard]]()

    def add(self, start: int, rows: np.ndarray) -> None:
        """Add rows, the first of which has the key `names[start]`."""
        is_new = self._is_new[start : start + len(rows)]
        self._keys += [self._names[start + k] for k in np.flatnonzero(is_new).tolist()]
        self._rows = np.concatenate([self._rows, rows[is_new]])
        while len(self._keys) >= self._writer.max_rows:
            self._submit(self._writer.max_rows)

    def wait(self, num_ahead: int) -> None:
        """Wait until no more than `num_ahead` shards are left to write."""
        while self._writes and (self._writes[0].done() or len(self._writes) > num_ahead):
            self._writes.popleft().result()

    def close(self) -> None:
        """Write the rest, and wait until it is on the disk."""
        if self._keys:
            self._submit(len(self._keys))
        self.wait(0)

    def _submit(self, count: int) -> None:
        self._writes.append(self._thread.submit(self._writer.write, self._keys[:count], self._rows[:count]))
        self._keys, self._rows = self._keys[count:], self._rows[count:]
