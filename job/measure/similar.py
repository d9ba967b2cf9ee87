"""The photos that are most similar to others: nearest neighbours among stored features."""

import numpy as np

from job.data.neighbours import unit
from job.runtime.telemetry import spent_once
from job.stores.arrays import ArrayStore

_ROWS_AT_ONCE = 4096


def most_similar(
    features: ArrayStore, rows_N: np.ndarray, queries_QD: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the stored features that are most similar to each query, by cosine similarity.

    `rows_N` are the rows of the store to search. The search is exact, and reads them in parts to save memory.

    Returns:
        positions in `rows_N`, int64 (Q, K), and their cosine similarities, float32 (Q, K), most similar first. K is `count`,
        or N if there are fewer rows.
    """
    with spent_once("imports"):
        import faiss

    unit_QD = unit(queries_QD)
    cosine_QK, positions_QK = np.empty((len(unit_QD), 0), np.float32), np.empty((len(unit_QD), 0), np.int64)
    for start in range(0, len(rows_N), _ROWS_AT_ONCE):
        block_BD = unit(features.rows(rows_N[start : start + _ROWS_AT_ONCE]))
        found = faiss.knn(unit_QD, block_BD, min(count, len(block_BD)), metric=faiss.METRIC_INNER_PRODUCT)
        cosine_QK = np.concatenate([cosine_QK, found[0]], axis=1)
        positions_QK = np.concatenate([positions_QK, found[1] + start], axis=1)
        best_QK = np.argsort(-cosine_QK, axis=1, kind="stable")[:, :count]
        cosine_QK = np.take_along_axis(cosine_QK, best_QK, axis=1)
        positions_QK = np.take_along_axis(positions_QK, best_QK, axis=1)
    return positions_QK, cosine_QK
