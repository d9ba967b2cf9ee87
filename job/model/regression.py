"""Multinomial logistic regression on features that are read in parts.

N examples, D feature width, C classes. No array of N x C or another N x D is made: labels stay integers, and every sum goes
over parts of the features in a fixed order, so the result has the same bits in every run on the same machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize

from job.data.moments import Features, Moments, parts
from job.model.heads import Head
from job.runtime.blas import one_thread

# The largest component of the scaled gradient of the mean loss. A smaller one changes neither which strength validation
# prefers nor the accuracy: docs/decisions/0027-large-sets.md.
_TOLERANCE = 5e-4
_ROUNDING = 2e-5  # Rounding error of a float32 gradient, depending on the CPU. No solver gets below it for certain.
# OpenBLAS does not rearrange matrices whose product takes up to this many multiplications. With 11 classes and 1,280
# features that halves the time.
_SMALL_PRODUCT = 1_000_000


@dataclass(frozen=True)
class Solution:
    """A solved head, with the number of L-BFGS iterations and whether the tolerance was reached."""

    head: Head
    num_iterations: int
    converged: bool


class LogisticRegression:
    """Multinomial logistic regression: minimises c * sum(weights * cross-entropy) + ||kernel||^2 / 2 for any c.

    This is the objective of scikit-learn. L-BFGS runs on coordinates along the principal axes of the features, scaled by the
    curvature of the loss (at most 1/2 for softmax; Boehning, "Multinomial logistic regression algorithm", 1992). This needs
    some tens of iterations instead of hundreds, for the same solution. `moments` give the axes. They may come from other
    examples of the same kind: that changes the way and not the end.
    """

    def __init__(self, features: Features, labels_N: np.ndarray, weights_N: np.ndarray, moments: Moments) -> None:
        self._features, self._labels_N = features, labels_N
        self._total_weight = float(weights_N.sum())
        self._shares_N = (weights_N / self._total_weight).astype(np.float32)
        self._mean_D = moments.mean
        self._variances_D, self._axes_DD = moments.principal_axes

    def solve(
        self,
        c: float,
        start: Head,
        max_iterations: int,
        *,
        tolerance: float = _TOLERANCE,
        on_iteration: Callable[[], None] = lambda: None,
    ) -> Solution:
        """Return the minimum, searched from `start`. `on_iteration` is called after each iteration and may raise to stop."""
        num_features, num_classes = start.kernel_DC.shape
        penalty = 1 / (c * self._total_weight)
        scale_D1 = 1 / np.sqrt(0.5 * self._variances_D + penalty)[:, None]

        def head_at(parameters: np.ndarray) -> Head:
            scaled_DC = scale_D1 * parameters[:-num_classes].reshape(num_features, num_classes)
            kernel_DC = (self._axes_DD @ scaled_DC).astype(np.float32)
            return Head(kernel_DC, (parameters[-num_classes:] - self._mean_D @ kernel_DC).astype(np.float32))

        def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            head = head_at(parameters)
            loss, gradient_DC, gradient_C = self._cross_entropy(head)
            gradient_DC += penalty * head.kernel_DC - self._mean_D[:, None] * gradient_C
            scaled_DC = scale_D1 * (self._axes_DD.T @ gradient_DC)
            loss += penalty / 2 * float(np.square(head.kernel_DC).sum(dtype=np.float64))
            return loss, np.append(scaled_DC.ravel(), gradient_C)

        start_DC = self._axes_DD.T @ start.kernel_DC / scale_D1
        with one_thread():  # With few classes, more threads cost CPU time and save no wall time.
            result = scipy.optimize.minimize(
                loss_and_gradient,
                np.append(start_DC.ravel(), start.bias_C + self._mean_D @ start.kernel_DC),
                jac=True,
                method="L-BFGS-B",
                callback=lambda _: on_iteration(),
                options={"maxiter": max_iterations, "maxfun": 2 * max_iterations, "gtol": tolerance, "ftol": 0.0},
            )
        converged = float(np.abs(result.jac).max()) <= max(10 * tolerance, _ROUNDING)
        return Solution(head_at(result.x), int(result.nit), converged)

    def _cross_entropy(self, head: Head) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the mean cross-entropy and its gradients for the kernel and the bias."""
        loss, gradient_DC, gradient_C = 0.0, np.zeros(head.kernel_DC.shape), np.zeros(head.bias_C.shape)
        for part in parts(self._features, len(head.bias_C)):
            features_BD, labels_B, shares_B = self._features[part], self._labels_N[part], self._shares_N[part]
            own = np.arange(len(labels_B)), labels_B
            error_BC = _product(features_BD, head.kernel_DC) + head.bias_C
            error_BC -= error_BC.max(axis=1, keepdims=True)
            own_logit_B = error_BC[own].astype(np.float64)
            np.exp(error_BC, out=error_BC)
            error_BC[own] = 0  # 1 - p would lose the digits of a p close to 1. The sum over the other classes keeps them.
            others_B = error_BC.sum(axis=1, dtype=np.float64)
            total_B = others_B + np.exp(own_logit_B)
            loss += float(shares_B @ (np.log(total_B) - own_logit_B))
            scale_B = (shares_B / total_B).astype(np.float32)
            error_BC *= scale_B[:, None]
            error_BC[own] = -scale_B * others_B
            gradient_DC += (error_BC.T @ features_BD).T  # Faster than the other order.
            gradient_C += error_BC.sum(axis=0, dtype=np.float64)
        return loss, gradient_DC, gradient_C


def _product(features_BD: np.ndarray, kernel_DC: np.ndarray) -> np.ndarray:
    """Return the matrix product. If there are few classes, it is the product of blocks that OpenBLAS multiplies fast."""
    (num_rows, width), num_classes = features_BD.shape, kernel_DC.shape[1]
    for rows in (128, 64, 32):
        if num_rows % rows == 0 and rows * width * num_classes <= _SMALL_PRODUCT:
            return (features_BD.reshape(-1, rows, width) @ kernel_DC).reshape(num_rows, num_classes)
    return features_BD @ kernel_DC
