"""The head: a linear classifier on features. One in closed form, and the targets and weights that others are trained on."""

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from job.data.moments import Moments, eigenvectors


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
        return (features_ND.astype(np.float32, copy=False) @ self.kernel_DC + self.bias_C).astype(np.float64)

    def probabilities(self, features_ND: np.ndarray) -> np.ndarray:
        """Return the softmax of the logits, float64 (N, C)."""
        return softmax(self.logits(features_ND), axis=1)

    def at_temperature(self, temperature: float) -> "Head":
        """Return the head whose logits are these divided by the temperature."""
        return Head(self.kernel_DC / np.float32(temperature), self.bias_C / np.float32(temperature))


class Discriminant:
    """Linear discriminant analysis: classifiers of Gaussian classes with one covariance, for any shrinkage.

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


def smoothed_one_hot(labels_N: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    """Return targets (N, C) with 1 - `smoothing` on the label, and `smoothing` spread evenly over all classes.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016), section 7.
    """
    targets_NC = np.full((len(labels_N), num_classes), smoothing / num_classes, np.float32)
    targets_NC[np.arange(len(labels_N)), labels_N] += np.float32(1 - smoothing)
    return targets_NC


def class_weights(labels_N: np.ndarray, num_classes: int, mode: str) -> np.ndarray:
    """Return weights (N,) with mean 1: all equal for mode "none", or with the same total for each class."""
    if mode == "none":
        return np.ones(len(labels_N), np.float32)
    counts_C = np.bincount(labels_N, minlength=num_classes)
    return (len(labels_N) / (num_classes * counts_C[labels_N])).astype(np.float32)
