import faiss
import numpy as np
import pytest
from sklearn.decomposition import PCA

from job.data import neighbours
from job.data.neighbours import Neighbours, nearest, principal_components
from job.stores.arrays import StoreWriter


def stored(folder, values):
    writer = StoreWriter(folder, values.shape[1:], "float32")
    half = len(values) // 2
    keys = [str(k) for k in range(len(values))]
    writer.write(keys[:half], values[:half])
    writer.write(keys[half:], values[half:])
    return writer.finish(keys)


def test_components_are_those_of_a_pca_up_to_their_signs_and_one_scale(tmp_path):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(90, 12)) * np.linspace(5, 0.1, 12) + 3).astype(np.float32)
    rows = np.arange(10, 80)
    ours = principal_components(stored(tmp_path, values), rows, 4)[:, ::-1]
    theirs = PCA(4).fit_transform(values[rows])
    correlations = np.abs(np.diag(np.corrcoef(ours.T, theirs.T)[:4, 4:]))
    assert correlations == pytest.approx(1, abs=1e-4)
    assert ours.var(axis=0).mean() == pytest.approx(1, rel=1e-3)


def test_components_are_no_more_than_there_can_be(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    assert principal_components(stored(tmp_path, values), np.arange(6), 256).shape == (6, 5)


def test_nearest_are_those_of_comparing_all_with_all():
    vectors = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    found = nearest(vectors, 3)
    assert (found.position_NM == np.argsort(-similarity, axis=1)[:, :3]).all()
    assert found.similarity_NM[:, 0] == pytest.approx(similarity.max(axis=1), abs=1e-5)


def test_photo_is_not_its_own_neighbour_even_among_many_copies():
    found = nearest(np.ones((20, 4), np.float32), 5)
    assert (found.position_NM != np.arange(20)[:, None]).all()


def test_fewer_photos_than_neighbours_wanted():
    assert nearest(np.eye(3, dtype=np.float32), 10).position_NM.shape == (3, 2)
    assert nearest(np.ones((1, 3), np.float32), 10).pairs(0.5).shape == (0, 2)


def test_index_of_a_large_set_finds_nearly_all_planted_copies_and_always_the_same():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(60, 32)) * 2
    vectors = (centres[rng.integers(0, 60, 12_000)] + rng.normal(size=(12_000, 32))).astype(np.float32)
    vectors[6000:6500] = vectors[:500] + rng.normal(size=(500, 32)).astype(np.float32) * 0.15
    pairs = nearest(vectors, 4).pairs(0.9)
    planted = {(k, 6000 + k) for k in range(500)}
    assert len(planted & set(map(tuple, pairs.tolist()))) >= 495
    assert (nearest(vectors, 4).pairs(0.9) == pairs).all()


def test_index_holds_half_of_the_memory_of_the_vectors_and_leaves_them_as_they_are():
    vectors = np.random.default_rng(3).normal(size=(12_000, 16)).astype(np.float32)
    before = vectors.copy()
    index = neighbours._index(vectors)
    assert (index.ntotal, index.code_size) == (12_000, vectors[0].nbytes // 2)
    assert (vectors == before).all()


def test_each_photo_is_compared_with_equally_many_cells_of_equal_size_in_small_and_in_large_sets():
    vectors = np.random.default_rng(4).normal(size=(40_000, 8)).astype(np.float32)
    small, large = neighbours._index(vectors[:12_000]), neighbours._index(vectors)
    families = [faiss.downcast_index(index.quantizer) for index in (small, large)]
    for a, b in ((small, large), families):
        assert a.nprobe == b.nprobe
        assert a.ntotal / a.nlist == pytest.approx(b.ntotal / b.nlist, rel=0.1)


def test_shares_of_classes_leave_out_copies_and_photos_without_label():
    labels, groups = np.asarray([0, 1, 1, -1]), np.asarray([0, 1, 0, 3])
    similarity = np.asarray([[0.5, 0.9, 0.8], [0.5, 0.25, -0.1], [0.9, 0.25, 0.2], [0.8, 0.1, -1.0]], np.float32)
    position = np.asarray([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, -1]])
    found = Neighbours(similarity, position).class_shares(labels, groups, 2)
    votes = np.asarray([[0, 0.5], [0.5, 0.25], [0, 0.25], [0.8, 0.1]]) + np.asarray([1 / 3, 2 / 3])
    assert found == pytest.approx(votes / votes.sum(axis=1, keepdims=True))


def test_shares_of_a_photo_without_neighbours_are_those_of_the_set():
    alone = nearest(np.ones((1, 3), np.float32), 10)
    assert alone.class_shares(np.asarray([1]), np.asarray([0]), 3).tolist() == [[0, 1, 0]]
