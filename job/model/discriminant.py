"""Linear discriminant analysis with a shrunk covariance: a head in closed form. D feature width, C classes."""

import numpy as np

from job.data.moments import Moments, eigenvectors
from job.model.heads import Head


class Discriminant:
    """Linear classifiers of Gaussian classes with one covariance, for any shrinkage.

    The covariance is (1 - shrinkage) * within + shrinkage * m * I, where m is the mean variance of a feature (Friedman,
    "Regularized Discriminant Analysis", 1989). One decomposition serves all shrinkages.
    """

    def __init__(self, moments: Moments) -> None:
        self._shares_C = moments.weight_C / moments.total_weight
        self._variances_D, axes_DD = eigenvectors(moments.within)
        self._axes_DD = axes_DD.astype(np.float32)
        self._means_DC = axes_DD.T @ moments.class_means.T

    def head(self, shrinkage: float) -> Head:
        """Return the classifier whose softmax is the probability of each class. A class without examples gets none."""
        covariance_D1 = ((1 - shrinkage) * self._variances_D + shrinkage * self._variances_D.mean())[:, None]
        rotated_DC = self._means_DC / np.maximum(covariance_D1, 1e-12)
        log_shares_C = np.log(np.maximum(self._shares_C, 1e-12))
        bias_C = log_shares_C - (self._means_DC * rotated_DC).sum(axis=0) / 2
        return Head(self._axes_DD @ rotated_DC.astype(np.float32), bias_C.astype(np.float32))
