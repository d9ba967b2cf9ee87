"""Means and covariances of features that are read in parts. N examples, D feature width, C classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.sparse

from job.runtime.blas import one_thread

_BYTES_AT_ONCE = 4 * 2**20
_ROWS_MULTIPLE = 128


class Features(Protocol):
    """Features, float32 (N, D): an array, or an object that reads a slice of its rows when it is asked for it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def parts(features: Features, num_classes: int = 0) -> Iterator[slice]:
    """Return slices that together cover all rows, in order. Only the last one is no multiple of 128.

    The features of a slice, float32, take about 4 MB, or its logits, if there are more classes than features.
    """
    num_rows, width = features.shape[0], max(features.shape[1], num_classes)
    step = _ROWS_MULTIPLE * max(1, _BYTES_AT_ONCE // (4 * width * _ROWS_MULTIPLE))
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


@dataclass(frozen=True)
class Moments:
    """Weighted sums over labelled features: of the weights and the features of each class, and of all outer products.

    The sums of disjoint sets can be subtracted: all photos without those of a fold.
    """

    weight_C: np.ndarray
    sums_CD: np.ndarray
    products_DD: np.ndarray

    @classmethod
    def of(cls, features: Features, labels_N: np.ndarray, weights_N: np.ndarray, num_classes: int) -> "Moments":
        """Read the features once and return their moments, float64."""
        width = features.shape[1]
        sums_CD, products_DD = np.zeros((num_classes, width)), np.zeros((width, width))
        # On shared cores, BLAS threads wait for each other: with two, this took 10 times the wall and CPU time.
        with one_thread():
            for part in parts(features):
                roots_B = np.sqrt(weights_N[part]).astype(np.float32)
                scaled_BD = features[part] * roots_B[:, None]
                products_DD += scaled_BD.T @ scaled_BD
                own = (roots_B, (labels_N[part], np.arange(len(roots_B))))
                sums_CD += scipy.sparse.csr_array(own, (num_classes, len(roots_B))) @ scaled_BD
        return cls(np.bincount(labels_N, weights_N, num_classes), sums_CD, products_DD)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.weight_C - other.weight_C, self.sums_CD - other.sums_CD, self.products_DD - other.products_DD)

    @property
    def total_weight(self) -> float:
        return float(self.weight_C.sum())

    @property
    def mean(self) -> np.ndarray:
        return self.sums_CD.sum(axis=0) / self.total_weight

    @property
    def class_means(self) -> np.ndarray:
        """Mean of each class; 0 for a class without examples."""
        return self.sums_CD / np.maximum(self.weight_C, 1e-12)[:, None]

    @property
    def covariance(self) -> np.ndarray:
        return self.products_DD / self.total_weight - np.outer(self.mean, self.mean)

    @property
    def within(self) -> np.ndarray:
        """Covariance of the features around the means of their classes."""
        return (self.products_DD - self.class_means.T @ self.sums_CD) / self.total_weight

    @cached_property
    def principal_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Variances (D,) and principal axes (D, D), one in each column, of all features together."""
        return eigenvectors(self.covariance)


def eigenvectors(covariance_DD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (D,), at least 0, and the eigenvectors (D, D), one in each column."""
    with one_thread():
        variances_D, axes_DD = np.linalg.eigh(covariance_DD)
    return np.maximum(variances_D, 0), axes_DD
