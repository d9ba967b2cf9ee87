import tracemalloc

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression as Reference

from job.data import moments
from job.data.moments import Moments, parts
from job.model.heads import Discriminant, Head, class_weights, smoothed_one_hot
from job.model.regression import LogisticRegression


@pytest.fixture(scope="module")
def problem():
    """Badly scaled, correlated features of three overlapping classes, as float32."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    features = rng.normal(size=(400, 30)) + np.eye(3)[labels] @ rng.normal(size=(3, 30))
    features = features @ rng.normal(size=(30, 30)) * np.geomspace(0.1, 10, 30)
    return features.astype(np.float32), labels, rng.uniform(0.2, 2, 400)


def regression_on(features, labels, weights):
    return LogisticRegression(features, labels, weights, Moments.of(features, labels, weights, 3))


def objective(features, labels, weights, c, kernel, bias):
    logits = features.astype(np.float64) @ kernel + bias
    log_sum = np.logaddexp.reduce(logits, axis=1)
    losses = log_sum - logits[np.arange(len(labels)), labels]
    return c * (weights * losses).sum() + (kernel.astype(np.float64) ** 2).sum() / 2


@pytest.mark.parametrize("c", [0.001, 0.1, 10.0])
def test_solution_is_no_worse_than_scikit_learns(problem, c):
    features, labels, weights = problem
    reference = Reference(C=c, tol=1e-8, max_iter=20000).fit(features.astype(np.float64), labels, sample_weight=weights)
    found = regression_on(features, labels, weights).solve(c, Head.zeros(30, 3), 5000, tolerance=5e-7)
    best = objective(features, labels, weights, c, reference.coef_.T, reference.intercept_)
    mine = objective(features, labels, weights, c, found.head.kernel_DC, found.head.bias_C)
    assert found.converged and mine <= best * (1 + 1e-4)


def test_start_changes_the_way_and_not_the_end(problem):
    features, labels, weights = problem
    regression = regression_on(features, labels, weights)
    cold = regression.solve(0.1, Head.zeros(30, 3), 5000, tolerance=1e-5)
    warm = regression.solve(0.1, regression.solve(0.05, Head.zeros(30, 3), 5000, tolerance=1e-5).head, 5000, tolerance=1e-5)
    assert warm.num_iterations < cold.num_iterations
    assert np.allclose(cold.head.probabilities(features), warm.head.probabilities(features), atol=5e-3)


def test_few_rows_at_a_time_give_the_same_solution(problem, monkeypatch):
    whole = regression_on(*problem).solve(0.1, Head.zeros(30, 3), 5000, tolerance=5e-7)
    monkeypatch.setattr(moments, "_BYTES_AT_ONCE", 1)
    assert [part.stop - part.start for part in moments.parts(problem[0])] == [128, 128, 128, 16]
    parted = regression_on(*problem).solve(0.1, Head.zeros(30, 3), 5000, tolerance=5e-7)
    assert parted.converged and np.allclose(parted.head.kernel_DC, whole.head.kernel_DC, atol=2e-3)


def test_axes_of_other_examples_change_the_way_and_not_the_end(problem):
    features, labels, weights = problem
    some = Moments.of(features[:100], labels[:100], weights[:100], 3)
    found = LogisticRegression(features, labels, weights, some).solve(0.1, Head.zeros(30, 3), 5000, tolerance=5e-7)
    own = regression_on(features, labels, weights).solve(0.1, Head.zeros(30, 3), 5000, tolerance=5e-7)
    assert found.converged and np.allclose(found.head.probabilities(features), own.head.probabilities(features), atol=2e-3)


@pytest.mark.parametrize("num_classes", [5, 300])
def test_memory_of_an_iteration_does_not_grow_with_the_number_of_photos(num_classes):
    def most_bytes(count):
        rng = np.random.default_rng(0)
        features, labels = rng.normal(size=(count, 256)).astype(np.float32), rng.integers(0, num_classes, count)
        weights = np.ones(count, np.float32)
        regression = LogisticRegression(features, labels, weights, Moments.of(features, labels, weights, num_classes))
        tracemalloc.start()
        try:
            regression.solve(0.1, Head.zeros(256, num_classes), 3)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert most_bytes(24_000) < 1.2 * most_bytes(8_000)


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 0.9])
def test_discriminant_is_scikit_learns(problem, shrinkage):
    features, labels, _ = problem
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(features.astype(np.float64), labels)
    head = Discriminant(Moments.of(features, labels, np.ones(400), 3)).head(shrinkage)
    assert head.probabilities(features) == pytest.approx(reference.predict_proba(features), abs=1e-4)


def test_weights_of_the_discriminant_count_like_repeated_examples(problem):
    features, labels, _ = problem
    times = np.random.default_rng(1).integers(1, 4, 400)
    weighted = Discriminant(Moments.of(features, labels, times, 3)).head(0.2)
    again = np.repeat(np.arange(400), times)
    repeated = Discriminant(Moments.of(features[again], labels[again], np.ones(len(again)), 3)).head(0.2)
    assert weighted.probabilities(features) == pytest.approx(repeated.probabilities(features), abs=1e-4)


def test_moments_without_a_part_are_those_of_the_rest(problem):
    features, labels, weights = problem
    whole, part, rest = (
        Moments.of(features[s], labels[s], weights[s], 3) for s in (slice(None), slice(90), slice(90, None))
    )
    assert (whole - part).within == pytest.approx(rest.within, rel=1e-4, abs=1e-3)
    assert (whole - part).covariance == pytest.approx(np.cov(features[90:].T, bias=True, aweights=weights[90:]), abs=1e-2)


def test_smoothed_one_hot_by_hand():
    assert smoothed_one_hot(np.asarray([1]), 4, 0.2)[0] == pytest.approx([0.05, 0.85, 0.05, 0.05])


def test_balanced_weights_give_every_class_the_same_total():
    labels = np.asarray([0, 0, 0, 1])
    weights = class_weights(labels, 2, "balanced")
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum()) and weights.mean() == pytest.approx(1)
    assert class_weights(labels, 2, "none").tolist() == [1, 1, 1, 1]


def test_iterations_can_be_stopped(problem):
    features, labels, weights = problem

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        regression = regression_on(features, labels, weights)
        regression.solve(1.0, Head.zeros(30, 3), 100, on_iteration=stop)


def test_parts_of_features_are_small_where_there_are_more_classes_than_features():
    sizes = [part.stop - part.start for part in parts(np.zeros((5000, 8), np.float32), 4096)]
    assert max(sizes) == 256 and sum(sizes) == 5000  # Logits of 256 examples take 4 MB.
