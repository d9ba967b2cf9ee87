"""The measurement of familiarity: it is fitted on training and validation photos, and tested on the held-out ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from job.data.examples import Examples
from job.measure.accepted import Rejections
from job.measure.metrics import wilson
from job.model.familiarity import MIN_FAMILIARITY, Familiarity, Source, chosen_for_fitting

_VALIDATION_PHOTOS = 10_000  # So many give the percentiles exactly enough.


@dataclass(frozen=True)
class Known:
    """A familiarity, fitted with so many validation photos, and that of N photos, float64 (N,)."""

    familiarity: Familiarity
    num_validation: int
    of_N: np.ndarray

    @property
    def is_familiar(self) -> np.ndarray:
        """True for each photo that is familiar, boolean (N,)."""
        return self.of_N >= MIN_FAMILIARITY

    def __getitem__(self, photos: slice) -> Self:
        """Return the same for some of the photos."""
        return replace(self, of_N=self.of_N[photos])

    def rejections(self, is_right_N: np.ndarray) -> Rejections:
        """Return how many of the photos are rejected. `is_right_N` says which answers are right."""
        is_rejected_N = ~self.is_familiar
        num_rejected, num_photos = int(is_rejected_N.sum()), len(is_rejected_N)
        return {
            "source": self.familiarity.source,
            "min_familiarity": MIN_FAMILIARITY,
            "num_prototypes": len(self.familiarity.prototypes_PD),
            "num_validation": self.num_validation,
            "num_photos": num_photos,
            "num_rejected": num_rejected,
            "rejected": num_rejected / num_photos,
            "rejected_ci95": wilson(num_rejected, num_photos),
            "accuracy_of_rejected": float(is_right_N[is_rejected_N].mean()) if num_rejected else None,
        }


def known(
    features_of: Callable[[np.ndarray], Iterator[np.ndarray]],
    source: Source,
    photos_N: np.ndarray,
    examples: Examples,
    seed: int,
) -> Known:
    """Fit the familiarity on training and validation photos, and return that of the photos `photos_N`.

    `features_of` yields the features (B, D) of photos, given by their rows in the stores.
    """

    def read(photos: np.ndarray) -> np.ndarray:
        return np.concatenate(list(features_of(examples["row"][photos])))

    train, val = examples.of("train"), examples.of("val")
    train = train[chosen_for_fitting(examples.labels[train])]
    some = val[:: max(1, -(-len(val) // _VALIDATION_PHOTOS))]
    found = Familiarity.fit(read(train), examples.labels[train], read(some), source, seed)
    of_N = np.concatenate([found.of(batch_BD) for batch_BD in features_of(examples["row"][photos_N])])
    return Known(found, len(some), of_N)
