"""Stored views of photos for training, and rows of a store that are read slice by slice."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from job.stores.arrays import ArrayStore

_IN_MEMORY_BYTES = 128 * 2**20


class StoredRows:
    """Numbered rows of a store: an array that is read slice by slice. Its first 128 MB stay in memory."""

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], numbers_N: np.ndarray, row_shape: tuple[int, ...]) -> None:
        """Take rows `numbers_N`, each one of `row_shape` float32 numbers, from `read`."""
        self.shape = (len(numbers_N), *row_shape)
        self._read, self._numbers_N = read, numbers_N
        self._held = read(numbers_N[: _IN_MEMORY_BYTES // (4 * math.prod(row_shape))])

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self._numbers_N))
        return self._held[start:stop] if stop <= len(self._held) else self._read(self._numbers_N[start:stop])


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
