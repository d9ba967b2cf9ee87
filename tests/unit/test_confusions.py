import numpy as np

from job.measure.confusions import clusters, confusions, row_shares

# Cats and foxes are mixed up, so are bikes and cars; a boat is taken for nothing else, and there is no photo of a dog.
NAMES = ("bike", "boat", "car", "cat", "dog", "fox")
MATRIX = np.asarray(
    [
        [6, 0, 4, 0, 0, 0],
        [0, 9, 0, 0, 0, 0],
        [2, 0, 8, 0, 0, 0],
        [0, 0, 0, 5, 0, 5],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 3, 0, 6],
    ]
)


def test_pairs_with_the_most_photos_come_first():
    pairs = [(NAMES[pair["label"]], NAMES[pair["predicted"]], pair["count"], pair["share"]) for pair in confusions(MATRIX)]
    assert pairs == [
        ("cat", "fox", 5, 0.5),
        ("bike", "car", 4, 0.4),
        ("fox", "cat", 3, 0.3),
        ("car", "bike", 2, 0.2),
        ("fox", "car", 1, 0.1),
    ]


def test_of_pairs_with_the_same_number_the_larger_share_comes_first():
    assert [pair["label"] for pair in confusions(np.asarray([[8, 2, 0], [0, 9, 0], [2, 0, 2]]))] == [2, 0]


def test_classes_that_are_confused_are_a_group_and_neighbours():
    found = clusters(MATRIX)
    assert sorted(found.order_C) == list(range(6))
    groups = [({NAMES[k] for k in group.members}, group.num_confused) for group in found.groups]
    assert groups == [({"cat", "fox"}, 8), ({"bike", "car"}, 6)]
    for group in found.groups:
        assert found.order_C[group.start : group.start + len(group.members)].tolist() == group.members


def test_without_mistakes_there_is_no_group():
    assert confusions(np.diag([3, 4, 5])) == [] and clusters(np.diag([3, 4, 5])).groups == []


def test_row_of_a_class_without_photos_has_no_shares():
    assert row_shares(MATRIX)[4].tolist() == [0.0] * 6
    assert row_shares(MATRIX)[0].tolist() == [0.6, 0, 0.4, 0, 0, 0]
