"""Photos in feature space: principal components and nearest neighbours."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

from job.runtime.telemetry import spent_once
from job.stores.arrays import ArrayStore

_ROWS_AT_ONCE = 4096
_ENOUGH_ROWS = 20_000  # Their components change the similarities of 60,000 photos by 0.002 on average.
# With fewer photos, comparing all with all takes less time than building an index.
_EXACT_BELOW = 10_000


def principal_components(features: ArrayStore, rows_N: np.ndarray, num_components: int) -> np.ndarray:
    """Return the principal components of the features in these rows, float32 (N, K), scaled to a mean variance of 1.

    K is `num_components`, or less for narrower features or fewer photos. Of more than 20,000 rows, evenly spaced ones give
    the axes. Features are read in parts to save memory.
    """
    width = features.row_shape[0]
    total_D, products_DD = np.zeros(width), np.zeros((width, width))
    some = rows_N[:: max(1, len(rows_N) // _ENOUGH_ROWS)]
    for start in range(0, len(some), _ROWS_AT_ONCE):
        values = features.rows(some[start : start + _ROWS_AT_ONCE])
        total_D += values.sum(axis=0, dtype=np.float64)
        products_DD += values.T @ values
    mean_D = total_D / len(some)
    covariance_DD = products_DD / len(some) - np.outer(mean_D, mean_D)
    kept = min(num_components, width, max(1, len(some) - 1))
    # If other programs use the same cores, two BLAS threads wait for each other. That took 40 times the time and CPU time.
    with threadpool_limits(1, user_api="blas"):
        variances_K, axes_DK = scipy.linalg.eigh(covariance_DD, subset_by_index=(width - kept, width - 1))
    axes_DK = (axes_DK / np.sqrt(max(variances_K.mean(), 1e-12))).astype(np.float32)
    components_NK = np.empty((len(rows_N), kept), np.float32)
    for start in range(0, len(rows_N), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
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
        return np.asarray(votes_NC / votes_NC.sum(axis=1, keepdims=True))


def nearest(vectors_NK: np.ndarray, num_neighbours: int) -> Neighbours:
    """Find the nearest neighbours of each vector by cosine similarity.

    The search is exact below 10,000 vectors. Above, an inverted file over k-means cells compares each vector only with
    the vectors in the nearest cells (Jegou et al., "Product Quantization for Nearest Neighbor Search", 2011).
    """
    with spent_once("imports"):
        import faiss

    lengths = np.maximum(np.linalg.norm(vectors_NK, axis=1, keepdims=True), 1e-12)
    unit_NK = np.ascontiguousarray(vectors_NK / lengths.astype(np.float32), np.float32)
    width = unit_NK.shape[1]
    index: Any = faiss.IndexFlatIP(width)
    if len(unit_NK) >= _EXACT_BELOW:
        num_cells = int(4 * np.sqrt(len(unit_NK)))
        index = faiss.IndexIVFFlat(index, width, num_cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = 16
        # The cells need not be better: with 10 and 40, the same share of the similar pairs is found.
        index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = 5, 20, 1
        index.train(unit_NK)
    index.add(unit_NK)
    similarity, position = index.search(unit_NK, min(num_neighbours + 1, len(unit_NK)))
    itself = position == np.arange(len(unit_NK))[:, None]
    itself[~itself.any(axis=1), -1] = True  # A photo with many exact copies may be missing from its own list.
    shape = (len(unit_NK), position.shape[1] - 1)
    return Neighbours(
        np.where(position < 0, -1.0, similarity)[~itself].reshape(shape).astype(np.float32), position[~itself].reshape(shape)
    )
