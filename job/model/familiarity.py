"""Familiarity: how similar a photo is to the training photos, in comparison with validation photos.

A network gives one of its classes to every picture, also to one of something else, and often with a high probability. The
features of such a picture point in a direction in which those of no training photo do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, cast

import numpy as np
from threadpoolctl import threadpool_limits

from job.data.neighbours import unit
from job.runtime.telemetry import spent_once

if TYPE_CHECKING:
    import keras

Source = Literal["frozen", "tuned"]
MIN_FAMILIARITY = 0.05  # Of validation photos, this share is below it.
_MIN_PROTOTYPES, _MAX_PROTOTYPES, _PHOTOS_PER_PROTOTYPE = 5, 20, 25
_MAX_IN_ALL = 2_000  # With 1,280 features they take 10 MB of the model.
_MAX_PHOTOS_PER_PROTOTYPE, _MAX_PHOTOS = 64, 20_000
_ROUNDS = 15
_SEGMENTS = 20  # So that MIN_FAMILIARITY is a knot.
# A cosine differs by 1e-5 between runtimes. So the familiarity differs by at most 1e-5 / _MIN_GAP / _SEGMENTS = 0.0005.
_MIN_GAP = 1e-3
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Familiarity:
    """Largest cosine similarity with P prototypes of the training photos, as a percentile of validation photos.

    The nearest relative is Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors" (2022). Prototypes
    replace the training photos, which would not fit into an exported graph.

    `prototypes_PD`: unit vectors. `knots_K`: the similarities at equally spaced percentiles of the validation photos,
    ascending. `source`: whether the features are those of the frozen or of the fine-tuned network.
    """

    prototypes_PD: np.ndarray
    knots_K: np.ndarray
    source: Source

    @classmethod
    def fit(
        cls, features_ND: np.ndarray, labels_N: np.ndarray, validation_VD: np.ndarray, source: Source, seed: int
    ) -> Self:
        """Cluster the training photos of each class, and take the percentiles of the validation photos."""
        with threadpool_limits(1):  # Several threads wait for each other, which takes five times the CPU time.
            prototypes_PD = _prototypes(features_ND, labels_N, seed)
            similarities_V = similarities(validation_VD, prototypes_PD)
        # Weibull's positions: of new photos from the same source, the expected share below the quantile q is q.
        knots_K = np.quantile(similarities_V, np.linspace(0, 1, _SEGMENTS + 1), method="weibull")
        return cls(prototypes_PD, _apart(knots_K).astype(np.float32), source)

    @classmethod
    def load(cls, file: Path) -> Self:
        with np.load(file) as arrays:
            return cls(arrays["prototypes_PD"], arrays["knots_K"], cast(Source, str(arrays["source"])))

    def save(self, file: Path) -> None:
        with file.open("wb") as stream:
            np.savez(stream, prototypes_PD=self.prototypes_PD, knots_K=self.knots_K, source=np.asarray(self.source))

    def of(self, features_ND: np.ndarray) -> np.ndarray:
        """Return the familiarity of each photo, float64 (N,), from 0 to 1."""
        shares_K = np.linspace(0, 1, len(self.knots_K))
        return np.interp(similarities(features_ND, self.prototypes_PD), self.knots_K, shares_K)

    def layers(self, features: keras.KerasTensor) -> keras.KerasTensor:
        """Return the familiarity (B,) of features (B, D) in a Keras model. The layers are built-in ones, with fixed weights.

        The piecewise linear percentile is the mean of ramps: one for each two knots, from 0 at the lower to 1 at the upper.
        """
        import keras

        slopes_K = 1 / np.diff(self.knots_K)
        cosine = keras.layers.Dense(len(self.prototypes_PD), use_bias=False, trainable=False, name="prototypes")
        ramps = keras.layers.Dense(len(slopes_K), trainable=False, name="percentiles")
        cosines = cosine(keras.layers.UnitNormalization(name="unit_features")(features))
        rising = ramps(keras.ops.max(cosines, axis=1, keepdims=True))
        cosine.set_weights([self.prototypes_PD.T])
        ramps.set_weights([slopes_K[None, :], -self.knots_K[:-1] * slopes_K])
        return keras.ops.mean(keras.layers.ReLU(max_value=1.0, name="ramps")(rising), axis=1)


@dataclass(frozen=True)
class Acceptance:
    """The limits that an answer must reach to be accepted. `familiarity` is None if it is off: every photo is familiar then.

    `target_precision` is the precision that `min_probability` was chosen for; None if there is none.
    """

    familiarity: Familiarity | None = None
    min_familiarity: float = 0.0
    min_probability: float = 0.0
    target_precision: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        return {"min_probability": self.min_probability, "min_familiarity": self.min_familiarity}


ALWAYS = Acceptance()


def chosen_for_fitting(labels_N: np.ndarray) -> np.ndarray:
    """Return the positions of the photos that `fit` uses of a large set, evenly spaced in each class. Ascending."""
    counts_C = np.bincount(labels_N)
    num_classes = int((counts_C > 0).sum())
    of_prototypes = _MAX_PHOTOS_PER_PROTOTYPE * _num_prototypes(int(counts_C.max()), num_classes)
    most = max(1, min(of_prototypes, _MAX_PHOTOS // num_classes))
    of_classes = (np.flatnonzero(labels_N == k) for k in np.flatnonzero(counts_C))
    return np.sort(np.concatenate([of[:: -(-len(of) // most)] for of in of_classes]))


def _prototypes(features_ND: np.ndarray, labels_N: np.ndarray, seed: int) -> np.ndarray:
    """Return the centres of a spherical k-means of each class, float32 (P, D).

    Dhillon and Modha, "Concept Decompositions for Large Sparse Text Data Using Clustering" (2001).
    """
    with spent_once("imports"):
        import faiss

    classes, counts = np.unique(labels_N, return_counts=True)
    found = []
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        vectors_BD = unit(features_ND[labels_N == label])
        clusters = min(_num_prototypes(count, len(classes)), count)
        options = {"niter": _ROUNDS, "spherical": True, "seed": seed % 2**31, "min_points_per_centroid": 1}
        kmeans = faiss.Kmeans(vectors_BD.shape[1], clusters, **options)
        kmeans.train(vectors_BD)
        found.append(unit(np.asarray(kmeans.centroids)))
    return np.concatenate(found)


def _num_prototypes(num_photos: int, num_classes: int) -> int:
    """Return the number of prototypes of a class with so many photos."""
    wanted = int(np.clip(num_photos // _PHOTOS_PER_PROTOTYPE, _MIN_PROTOTYPES, _MAX_PROTOTYPES))
    return max(1, min(wanted, _MAX_IN_ALL // num_classes))


def similarities(features_ND: np.ndarray, prototypes_PD: np.ndarray) -> np.ndarray:
    """Return the largest cosine similarity of each photo with a prototype, float32 (N,)."""
    parts = np.array_split(features_ND, range(_ROWS_AT_ONCE, len(features_ND), _ROWS_AT_ONCE))
    return np.concatenate([(unit(part) @ prototypes_PD.T).max(axis=1) for part in parts])


def _apart(knots_K: np.ndarray) -> np.ndarray:
    """Move knots that are too close to each other down. So no photo becomes less familiar."""
    steps_K = _MIN_GAP * np.arange(len(knots_K))
    return np.minimum.accumulate((knots_K - steps_K)[::-1])[::-1] + steps_K
