"""Photos in feature space: principal components and nearest neighbours."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from job.runtime.blas import one_thread
from job.runtime.telemetry import spent_once
from job.stores.arrays import ArrayStore

_ROWS_AT_ONCE = 4096
_ENOUGH_ROWS = 20_000  # Their components change the similarities of 60,000 photos by 0.002 on average.
# With fewer photos, comparing all with all takes less time than building an index.
_EXACT_BELOW = 10_000
# Cells are compared in two steps: each photo with the centres of _FAMILIES families of _FAMILY_SIZE cells, then with those
# of _CELLS cells of them. The sizes do not depend on the number of photos, so the time for each photo hardly does.
_CELL_SIZE, _CELLS = 64, 24
_FAMILY_SIZE, _FAMILIES = 16, 16
# The cells need not be better: with five rounds on twice as many photos, the same share of the similar pairs is found.
_ROUNDS, _TRAINED_SHARE = 3, 8


def principal_components(features: ArrayStore, rows_N: np.ndarray, num_components: int) -> np.ndarray:
    """Return the principal components of the features in these rows, float32 (N, K), scaled to a mean variance of 1.

    K is `num_components`, or less for narrower features or fewer photos. Of more than 20,000 rows, evenly spaced ones give
    the axes. Features are read in parts to save memory.
    """
    width = features.row_shape[0]
    total_D, products_DD = np.zeros(width), np.zeros((width, width))
    some = rows_N[:: max(1, len(rows_N) // _ENOUGH_ROWS)]
    for part in _parts(len(some)):
        values = features.rows(some[part])
        total_D += values.sum(axis=0, dtype=np.float64)
        products_DD += values.T @ values
    mean_D = total_D / len(some)
    covariance_DD = products_DD / len(some) - np.outer(mean_D, mean_D)
    kept = min(num_components, width, max(1, len(some) - 1))
    # If other programs use the same cores, two BLAS threads wait for each other. That took 40 times the time and CPU time.
    with one_thread():
        variances_K, axes_DK = scipy.linalg.eigh(covariance_DD, subset_by_index=(width - kept, width - 1))
    axes_DK = (axes_DK / np.sqrt(max(variances_K.mean(), 1e-12))).astype(np.float32)
    components_NK = np.empty((len(rows_N), kept), np.float32)
    for part in _parts(len(rows_N)):
        components_NK[part] = features.rows(rows_N[part]) @ axes_DK
    components_NK -= (mean_D @ axes_DK).astype(np.float32)
    return components_NK


@dataclass(frozen=True)
class Neighbours:
    """The M nearest neighbours of each of N photos, nearest first: cosine similarity and position. Shapes (N, M).

    If fewer were found, the rest of the row has position -1 and similarity -1.
    """

    similarity_NM: np.ndarray
    position_NM: np.ndarray

    def pairs(self, min_similarity: float) -> np.ndarray:
        """Return the pairs of positions with at least this similarity, each pair once, sorted. Shape (P, 2)."""
        first, rank = np.nonzero((self.similarity_NM >= min_similarity) & (self.position_NM >= 0))
        pairs = np.stack([first, self.position_NM[first, rank]], axis=1)
        return np.unique(np.sort(pairs, axis=1), axis=0)

    def class_shares(self, labels_N: np.ndarray, groups_N: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the share of each class among the neighbours of each photo, weighted by similarity: float64 (N, C).

        Neighbours of the same group, and those with the label -1, do not count. The shares of the classes in the whole set
        count as one more neighbour, so that no share is zero.
        """
        is_known = labels_N >= 0
        counts = (self.position_NM >= 0) & is_known[self.position_NM] & (groups_N[self.position_NM] != groups_N[:, None])
        photo, rank = np.nonzero(counts)
        cell = photo * num_classes + labels_N[self.position_NM[photo, rank]]
        weights = self.similarity_NM[photo, rank].clip(0)
        votes_NC = np.bincount(cell, weights, len(labels_N) * num_classes).reshape(-1, num_classes)
        votes_NC = votes_NC + np.bincount(labels_N[is_known], minlength=num_classes) / is_known.sum()
        votes_NC /= votes_NC.sum(axis=1, keepdims=True)
        return votes_NC


def nearest(vectors_NK: np.ndarray, num_neighbours: int) -> Neighbours:
    """Find the nearest neighbours of each vector by cosine similarity.

    The search is exact below 10,000 vectors. Above, an inverted file over k-means cells compares each vector only with
    the vectors in the nearest cells, which are rounded to float16 (Jegou et al., "Product Quantization for Nearest Neighbor
    Search", 2011).
    """
    index: Any = _index(vectors_NK)
    num_found = min(num_neighbours, len(vectors_NK) - 1)
    similarity_NM = np.empty((len(vectors_NK), num_found), np.float32)
    position_NM = np.empty((len(vectors_NK), num_found), np.int64)
    for part in _parts(len(vectors_NK)):
        similarity, position = index.search(unit(vectors_NK[part]), num_found + 1)
        itself = position == np.arange(part.start, part.stop)[:, None]
        itself[~itself.any(axis=1), -1] = True  # A photo with many exact copies may be missing from its own list.
        shape = (len(position), num_found)
        similarity_NM[part] = np.where(position < 0, -1.0, similarity)[~itself].reshape(shape)
        position_NM[part] = position[~itself].reshape(shape)
    return Neighbours(similarity_NM, position_NM)


def _index(vectors_NK: np.ndarray) -> object:
    """Return a faiss index of the vectors, scaled to length 1."""
    with spent_once("imports"):
        import faiss

    num_vectors, width = vectors_NK.shape
    index: Any = faiss.IndexFlatIP(width)
    if num_vectors >= _EXACT_BELOW:
        num_cells, metric = num_vectors // _CELL_SIZE, faiss.METRIC_INNER_PRODUCT
        families: Any = faiss.IndexIVFFlat(index, width, num_cells // _FAMILY_SIZE, metric)
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(families, width, num_cells, half, metric, False)
        families.nprobe, index.nprobe = _FAMILIES, _CELLS
        for level in (families, index):
            level.cp.niter, level.cp.min_points_per_centroid = _ROUNDS, 1
        index.train(unit(vectors_NK[::_TRAINED_SHARE]))
    for part in _parts(num_vectors):
        index.add(unit(vectors_NK[part]))
    return index


def unit(vectors_NK: np.ndarray) -> np.ndarray:
    """Return the vectors scaled to length 1, float32 (N, K). Zeros stay zeros."""
    lengths_N1 = np.maximum(np.linalg.norm(vectors_NK, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(vectors_NK / lengths_N1, np.float32)


def _parts(num_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS_AT_ONCE, num_rows)) for start in range(0, num_rows, _ROWS_AT_ONCE))
