import numpy as np
import pytest

from job.model import familiarity
from job.model.familiarity import MIN_FAMILIARITY, Familiarity, chosen_for_fitting, similarities


def drawn(num_photos, num_classes=3, seed=0):
    """Features of photos around a direction for each class, and their labels."""
    centres = np.random.default_rng(99).normal(size=(num_classes, 16)) * 2
    rng = np.random.default_rng(seed)
    labels = np.arange(num_photos) % num_classes
    return (centres[labels] + rng.normal(size=(num_photos, 16))).astype(np.float32), labels


def fitted(num_train=300, num_val=100, num_classes=3, seed=0):
    return Familiarity.fit(*drawn(num_train, num_classes, 1), drawn(num_val, num_classes, seed + 2)[0], "frozen", seed)


def test_share_of_new_photos_that_is_rejected_is_5_percent_on_average():
    known = drawn(2000, seed=50)[0]
    rejected = [(fitted(seed=seed).of(known) < MIN_FAMILIARITY).mean() for seed in range(20)]
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.015)


def test_other_directions_are_not_familiar():
    found = fitted()
    foreign = np.random.default_rng(8).normal(size=(200, 16)).astype(np.float32)
    assert (found.of(foreign) < MIN_FAMILIARITY).mean() > 0.8
    assert found.of(-drawn(50)[0]).max() == 0


def test_familiarity_is_the_percentile_of_validation_photos_and_does_not_depend_on_length():
    validation = drawn(400, seed=2)[0]
    found = Familiarity.fit(*drawn(300, seed=1), validation, "frozen", 0)
    percentile = similarities(validation, found.prototypes_PD).argsort().argsort() / 399
    assert found.of(validation) == pytest.approx(percentile, abs=0.03)
    assert found.of(validation * 7) == pytest.approx(found.of(validation), abs=1e-4)


def test_prototypes_are_unit_vectors_of_a_bounded_number_for_each_class(monkeypatch):
    assert fitted(num_train=3000).prototypes_PD.shape == (60, 16)
    assert fitted(num_train=30).prototypes_PD.shape == (15, 16)
    assert fitted(num_train=6).prototypes_PD.shape == (6, 16)  # There are no more photos than these.
    monkeypatch.setattr(familiarity, "_MAX_IN_ALL", 20)
    found = fitted(num_train=400, num_classes=10)
    assert found.prototypes_PD.shape == (20, 16)
    assert np.linalg.norm(found.prototypes_PD, axis=1) == pytest.approx(1, abs=1e-5)


def test_equal_photos_do_not_make_each_other_unfamiliar():
    same = np.ones((30, 16), np.float32)
    found = Familiarity.fit(same, np.zeros(30, int), same, "frozen", 0)
    assert (np.diff(found.knots_K) > 0).all()
    assert (found.of(same) > 0.9).all() and found.of(np.zeros((1, 16), np.float32)) == 0


def test_large_classes_are_thinned_out_evenly():
    labels = np.r_[np.zeros(100_000, int), np.full(10, 3)]
    chosen = chosen_for_fitting(labels)
    assert len(chosen) < 1500 and np.bincount(labels[chosen])[3] == 10
    assert np.diff(chosen[:-10]).min() == np.diff(chosen[:-10]).max()


def test_it_is_read_as_it_was_written(tmp_path):
    found = fitted()
    found.save(tmp_path / "familiarity.npz")
    again = Familiarity.load(tmp_path / "familiarity.npz")
    assert again.source == "frozen" and np.array_equal(again.of(drawn(9)[0]), found.of(drawn(9)[0]))
