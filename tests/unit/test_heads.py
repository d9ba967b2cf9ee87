import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as Reference

from job.model.heads import Head, LogisticRegression, class_weights, smoothed_one_hot


@pytest.fixture(scope="module")
def problem():
    """Badly scaled, correlated features of three overlapping classes, as float32."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    features = rng.normal(size=(400, 30)) + np.eye(3)[labels] @ rng.normal(size=(3, 30))
    features = features @ rng.normal(size=(30, 30)) * np.geomspace(0.1, 10, 30)
    return features.astype(np.float32), labels, rng.uniform(0.2, 2, 400)


def objective(features, labels, weights, c, kernel, bias):
    logits = features.astype(np.float64) @ kernel + bias
    log_sum = np.logaddexp.reduce(logits, axis=1)
    losses = log_sum - logits[np.arange(len(labels)), labels]
    return c * (weights * losses).sum() + (kernel.astype(np.float64) ** 2).sum() / 2


@pytest.mark.parametrize("c", [0.001, 0.1, 10.0])
def test_solution_is_no_worse_than_scikit_learns(problem, c):
    features, labels, weights = problem
    reference = Reference(C=c, tol=1e-8, max_iter=20000).fit(features.astype(np.float64), labels, sample_weight=weights)
    found = LogisticRegression(features, smoothed_one_hot(labels, 3, 0.0), weights).solve(c, Head.zeros(30, 3), 5000)
    best = objective(features, labels, weights, c, reference.coef_.T, reference.intercept_)
    mine = objective(features, labels, weights, c, found.head.kernel_DC, found.head.bias_C)
    assert found.converged and mine <= best * (1 + 1e-4)


def test_start_changes_the_way_and_not_the_end(problem):
    features, labels, weights = problem
    regression = LogisticRegression(features, smoothed_one_hot(labels, 3, 0.0), weights)
    cold = regression.solve(0.1, Head.zeros(30, 3), 5000)
    warm = regression.solve(0.1, regression.solve(0.05, Head.zeros(30, 3), 5000).head, 5000)
    assert warm.num_iterations < cold.num_iterations
    assert np.allclose(cold.head.probabilities(features), warm.head.probabilities(features), atol=2e-3)


def test_smoothed_targets_pull_probabilities_in(problem):
    features, labels, weights = problem
    hard, soft = (
        LogisticRegression(features, smoothed_one_hot(labels, 3, s), weights).solve(10.0, Head.zeros(30, 3), 5000).head
        for s in (0.0, 0.3)
    )
    assert soft.probabilities(features).max(1).mean() < hard.probabilities(features).max(1).mean() - 0.05


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
        regression = LogisticRegression(features, smoothed_one_hot(labels, 3, 0.0), weights)
        regression.solve(1.0, Head.zeros(30, 3), 100, on_iteration=stop)
