import numpy as np
import pytest

from job.data.duplicates import folds_of_groups
from job.errors import Stopped
from job.measure.probes import _best, learning_curve, out_of_fold


def blobs(count=300, classes=3, spread=1.0, seed=0):
    """Classes that lie apart in ten dimensions."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, 10)) * 1.5
    return (centres[labels] + spread * rng.normal(size=(count, 10))).astype(np.float32), labels


def nothing():
    pass


def test_folds_keep_copies_together_and_classes_even():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 400, 600)
    labels = np.asarray([g % 4 for g in groups])
    fold = folds_of_groups(groups, labels, 5, seed=3)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    shares = np.asarray([[np.mean(fold[labels == c] == f) for f in range(5)] for c in range(4)])
    assert shares == pytest.approx(0.2, abs=0.08)


def test_planted_wrong_labels_come_first_in_the_ranking():
    components, labels = blobs()
    planted = np.random.default_rng(1).choice(300, 15, replace=False)
    given = labels.copy()
    given[planted] = (labels[planted] + 1) % 3
    probabilities = out_of_fold(components, given, np.arange(300), 3, 5, 0, nothing)
    ranking = np.argsort(probabilities[np.arange(300), given])
    assert np.isin(planted, ranking[:30]).mean() >= 0.9


def test_an_example_is_never_judged_by_a_head_that_saw_a_copy_of_it():
    """Labels of pure noise, every example there five times: only who saw a copy could know them."""
    rng = np.random.default_rng(0)
    components = np.repeat(rng.normal(size=(60, 30)), 5, axis=0).astype(np.float32)
    labels, groups = np.repeat(rng.integers(0, 2, 60), 5), np.repeat(np.arange(60), 5)
    apart = out_of_fold(components, labels, groups, 2, 5, 0, nothing)
    torn = out_of_fold(components, labels, np.arange(300), 2, 5, 0, nothing)
    assert (torn.argmax(1) == labels).mean() > 0.85
    assert (apart.argmax(1) == labels).mean() < 0.7


def test_curve_rises_with_the_number_of_photos_and_keeps_every_class():
    components, labels = blobs(400, spread=2.0)
    val = blobs(300, spread=2.0, seed=5)
    shares = ((0.02, 4), (1.0, 1))
    points = learning_curve((components, labels, np.arange(400)), val, 3, shares, 0, nothing)
    assert [len(p["accuracies"]) for p in points] == [4, 1] and points[1]["num_examples"] == 400
    assert np.mean(points[0]["accuracies"]) + 0.05 < points[1]["accuracies"][0]


def test_the_same_seed_gives_the_same_numbers():
    components, labels = blobs()
    first, second = (out_of_fold(components, labels, np.arange(300), 3, 5, 7, nothing) for _ in range(2))
    assert (first == second).all()


def test_strengths_are_compared_by_the_log_loss_of_the_report():
    """It tells a probability of exp(-29) from one of exp(-30)."""
    wrong_by = {0.003: 30.0, 0.01: 29.0, 0.03: 32.0}
    strength, _ = _best(lambda strength: np.asarray([[wrong_by[strength], 0]]), np.asarray([1]), 2)
    assert strength == 0.01


def test_a_request_to_stop_is_heard_between_fits():
    def stop():
        raise Stopped("stop")

    components, labels = blobs()
    with pytest.raises(Stopped):
        out_of_fold(components, labels, np.arange(300), 3, 5, 0, stop)


def test_one_fold_of_many_photos_finds_the_strength_that_all_folds_find(monkeypatch):
    components, labels = blobs(spread=2.0)
    by_all = out_of_fold(components, labels, np.arange(300), 3, 5, 0, nothing)
    val = blobs(300, spread=2.0, seed=5)
    curve = learning_curve((components, labels, np.arange(300)), val, 3, ((1.0, 1),), 0, nothing)
    monkeypatch.setattr("job.measure.probes._ENOUGH_PHOTOS", 150)
    by_one = out_of_fold(components, labels, np.arange(300), 3, 5, 0, nothing)
    assert by_one.sum(axis=1) == pytest.approx(1) and (by_one.argmax(1) == by_all.argmax(1)).mean() > 0.97
    of_part = learning_curve((components, labels, np.arange(300)), val, 3, ((1.0, 1),), 0, nothing)
    assert of_part[0]["num_examples"] == 300 and of_part[0]["accuracies"] == pytest.approx(curve[0]["accuracies"], abs=0.03)


def test_many_classes_are_judged_by_discriminants_that_have_not_seen_the_photo_nor_its_copies():
    components, labels = blobs(1200, classes=60, spread=0.4)
    groups = np.arange(1200) // 2
    labels = labels[groups * 2]
    components[::2], components[1::2] = components[::2], components[::2]
    given = labels.copy()
    planted = np.asarray([10, 11, 400, 401])
    given[planted] = (labels[planted] + 1) % 60
    probabilities = out_of_fold(components, given, groups, 60, 5, 0, nothing)
    assert probabilities.sum(axis=1) == pytest.approx(1) and (probabilities.argmax(1) == given).mean() > 0.8
    assert (probabilities[planted, given[planted]] < np.median(probabilities.max(1)) / 2).all()


def test_curve_of_many_classes_rises():
    components, labels = blobs(1800, classes=60, spread=1.5)
    val = blobs(600, classes=60, spread=1.5, seed=5)
    points = learning_curve((components, labels, np.arange(1800)), val, 60, ((0.1, 2), (1.0, 1)), 0, nothing)
    assert np.mean(points[0]["accuracies"]) + 0.05 < points[1]["accuracies"][0]
