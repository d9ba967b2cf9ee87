"""The head: multinomial logistic regression on features, solved to convergence."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits

from job.stores.arrays import StoredViews

# Tolerances: the largest component of the scaled gradient of the mean loss. FINE is the best that float32 features allow.
# COARSE is enough to compare regularisation strengths by validation log-loss, or as a start for fine-tuning.
FINE, COARSE = 5e-7, 5e-5
_ROUNDING = 2e-5  # Rounding error of a float32 gradient, depending on the CPU. No solver gets below it for certain.


@dataclass(frozen=True)
class Head:
    """A linear classifier: logits_NC = features_ND @ kernel_DC + bias_C  # N examples, D feature width, C classes"""

    kernel_DC: np.ndarray
    bias_C: np.ndarray

    @classmethod
    def zeros(cls, feature_width: int, num_classes: int) -> "Head":
        return cls(np.zeros((feature_width, num_classes), np.float32), np.zeros(num_classes, np.float32))

    def logits(self, features_ND: np.ndarray) -> np.ndarray:
        """Return the logits, float64 (N, C)."""
        return (features_ND.astype(np.float32) @ self.kernel_DC + self.bias_C).astype(np.float64)

    def probabilities(self, features_ND: np.ndarray) -> np.ndarray:
        """Return the softmax of the logits, float64 (N, C)."""
        return softmax(self.logits(features_ND), axis=1)


@dataclass(frozen=True)
class Solution:
    """A solved head, with the number of L-BFGS iterations and whether the tolerance was reached."""

    head: Head
    num_iterations: int
    converged: bool


class LogisticRegression:
    """Multinomial logistic regression: minimises c * sum(weights * cross-entropy) + ||kernel||^2 / 2 for any c.

    This is the objective of scikit-learn. `targets_NC` are probabilities, so smoothed labels need no approximation. L-BFGS
    runs on the principal components of the features, scaled by the curvature of the loss (at most 1/2 for softmax; Boehning,
    "Multinomial logistic regression algorithm", 1992). This needs some tens of iterations instead of hundreds, for the same
    solution. Features are float32, sums float64.
    """

    def __init__(self, features_ND: np.ndarray, targets_NC: np.ndarray, weights_N: np.ndarray) -> None:
        self._total_weight = float(weights_N.sum())
        self._shares_N1 = (weights_N / self._total_weight).astype(np.float64)[:, None]
        self._targets = targets_NC.astype(np.float64)
        self._mean_D = (self._shares_N1.T @ features_ND)[0]
        centred = features_ND - self._mean_D.astype(np.float32)
        covariance = (centred * self._shares_N1.astype(np.float32)).T @ centred
        # On shared cores, BLAS threads wait for each other: with two, this took 10 times the wall and CPU time.
        with threadpool_limits(1, user_api="blas"):
            variances, axes = np.linalg.eigh(covariance)
        self._variances_D = np.maximum(variances, 0)
        self._axes_DD = axes
        self._rotated_ND = centred @ axes

    def solve(
        self,
        c: float,
        start: Head,
        max_iterations: int,
        *,
        tolerance: float = FINE,
        on_iteration: Callable[[], None] = lambda: None,
    ) -> Solution:
        """Return the minimum, searched from `start`. `on_iteration` is called after each iteration and may raise to stop."""
        num_features, num_classes = start.kernel_DC.shape
        penalty = 1 / (c * self._total_weight)
        scale_D1 = 1 / np.sqrt(0.5 * self._variances_D + penalty)[:, None]

        def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            kernel = scale_D1 * parameters[:-num_classes].reshape(num_features, num_classes)
            logits = self._rotated_ND @ kernel.astype(np.float32) + parameters[-num_classes:]
            log_probabilities = log_softmax(logits, axis=1)
            cross_entropy = -float((self._shares_N1 * self._targets * log_probabilities).sum())
            error = self._shares_N1 * (np.exp(log_probabilities) - self._targets)
            gradient = scale_D1 * (self._rotated_ND.T @ error.astype(np.float32) + penalty * kernel)
            return cross_entropy + penalty / 2 * float((kernel**2).sum()), np.append(gradient.ravel(), error.sum(axis=0))

        start_kernel = self._axes_DD.T @ start.kernel_DC / scale_D1
        with threadpool_limits(1, user_api="blas"):  # With few classes, more threads cost CPU time and save no wall time.
            result = scipy.optimize.minimize(
                loss_and_gradient,
                np.append(start_kernel.ravel(), start.bias_C + self._mean_D @ start.kernel_DC),
                jac=True,
                method="L-BFGS-B",
                callback=lambda _: on_iteration(),
                options={"maxiter": max_iterations, "maxfun": 2 * max_iterations, "gtol": tolerance, "ftol": 0.0},
            )
        kernel = self._axes_DD @ (scale_D1 * result.x[:-num_classes].reshape(num_features, num_classes))
        bias = result.x[-num_classes:] - self._mean_D @ kernel
        converged = float(np.abs(result.jac).max()) <= max(10 * tolerance, _ROUNDING)
        return Solution(Head(kernel.astype(np.float32), bias.astype(np.float32)), int(result.nit), converged)


def regression_on_views(
    features: StoredViews, rows_T: np.ndarray, targets_TC: np.ndarray, weights_T: np.ndarray
) -> LogisticRegression:
    """Return the regression on all stored views of these photos. The views of a photo share its weight.

    `rows_T` are rows of the image store, `targets_TC` probabilities and `weights_T` weights, for T training photos.
    """
    photos_N = np.tile(np.arange(len(rows_T)), features.num_views)
    views_N = np.repeat(np.arange(features.num_views), len(rows_T))
    weights_N = weights_T[photos_N] / features.num_views
    positions_N = features.positions_of(rows_T)[photos_N]
    return LogisticRegression(features.training(positions_N, views_N), targets_TC[photos_N], weights_N)


def smoothed_one_hot(labels_N: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """Return targets (N, C) with 1 - `smoothing` on the label, and `smoothing` spread evenly over all classes.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016), section 7.
    """
    one_hot = np.eye(num_classes, dtype=np.float32)[labels_N]
    return one_hot * np.float32(1 - smoothing) + np.float32(smoothing / num_classes)


def class_weights(labels_N: np.ndarray, num_classes: int, mode: str) -> np.ndarray:
    """Return weights (N,) with mean 1: all equal for mode "none", or with the same total for each class."""
    if mode == "none":
        return np.ones(len(labels_N), np.float32)
    counts_C = np.bincount(labels_N, minlength=num_classes)
    return (len(labels_N) / (num_classes * counts_C[labels_N])).astype(np.float32)
