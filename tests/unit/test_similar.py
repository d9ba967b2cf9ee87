import numpy as np
import pytest

from job.measure import similar
from job.measure.similar import most_similar
from job.stores.arrays import StoreWriter


def test_most_similar_are_those_of_comparing_each_query_with_all(tmp_path, monkeypatch):
    monkeypatch.setattr(similar, "_ROWS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    values, queries = (rng.normal(size=(n, 6)).astype(np.float32) * rng.uniform(0.1, 9, (n, 1)) for n in (40, 5))
    writer = StoreWriter(tmp_path, (6,), "float32")
    writer.write([str(k) for k in range(40)], values.astype(np.float32))
    rows = rng.permutation(40)[:30]

    positions, cosine = most_similar(writer.finish([str(k) for k in range(40)]), rows, queries, 4)

    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(values[rows], axis=1)
    expected = queries @ values[rows].T / lengths
    assert (positions == np.argsort(-expected, axis=1)[:, :4]).all()
    assert cosine == pytest.approx(-np.sort(-expected, axis=1)[:, :4], abs=1e-6)


def test_fewer_photos_than_wanted_are_all_returned(tmp_path):
    writer = StoreWriter(tmp_path, (3,), "float32")
    writer.write(list("abc"), np.eye(3, dtype=np.float32))
    positions, cosine = most_similar(writer.finish(list("abc")), np.arange(3), np.eye(3)[1:2], 9)
    assert positions.shape == (1, 3) and positions[0, 0] == 1 and cosine[0].tolist() == [1, 0, 0]
