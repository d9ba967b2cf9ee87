"""The measurement of familiarity: it is fitted on training and validation photos, and tested on the held-out ones."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from job.data.examples import Examples
from job.measure.metrics import wilson
from job.measure.predicted import Predicted
from job.model.familiarity import MIN_FAMILIARITY, Familiarity, Source, chosen_for_fitting
from job.reporting.gallery import pictured
from job.reporting.summaries import MeasuredFamiliarity
from job.runtime.context import Context
from job.stores.arrays import ArrayStore

FAMILIARITY, PICTURES = "stages/evaluate/familiarity.npz", "stages/evaluate/least_familiar"
_VALIDATION_PHOTOS = 10_000  # So many give the percentiles exactly enough.


@dataclass(frozen=True)
class Known:
    """A fitted familiarity, that of the T test photos (T,), and what the report says about it."""

    familiarity: Familiarity
    of_T: np.ndarray
    numbers: MeasuredFamiliarity


def measured(
    features_of: Callable[[np.ndarray], np.ndarray],
    source: Source,
    share_added: float,
    num_pictures: int,
    examples: Examples,
    predicted: Predicted,
    images: ArrayStore,
    context: Context,
) -> Known:
    """Fit the familiarity, write it for the export, and measure on the test photos how many are rejected.

    `features_of` returns the features (N, D) of photos, given by their rows in the image store. `share_added` is the share
    of multiply-adds that they cost in the exported model. `predicted` is of the test photos.
    """
    train, val, test = (examples.of(split) for split in ("train", "val", "test"))
    train = train[chosen_for_fitting(examples.labels[train])]
    some = val[:: max(1, -(-len(val) // _VALIDATION_PHOTOS))]
    features = [features_of(examples["row"][photos]) for photos in (train, some, test)]
    found = Familiarity.fit(features[0], examples.labels[train], features[1], source, context.seed)
    with context.workdir.writing(FAMILIARITY) as path:
        found.save(path)
    of_T = found.of(features[2])
    is_rejected_T = of_T < MIN_FAMILIARITY
    is_right_T = predicted.class_N == examples.labels[test]
    least = np.argsort(of_T, kind="stable")[:num_pictures]
    pictures = pictured(PICTURES, least, examples, predicted, images, context.workdir)
    numbers: MeasuredFamiliarity = {
        "source": found.source,
        "min_familiarity": MIN_FAMILIARITY,
        "num_prototypes": len(found.prototypes_PD),
        "num_validation": len(some),
        "num_photos": len(test),
        "num_rejected": int(is_rejected_T.sum()),
        "rejected": float(is_rejected_T.mean()),
        "rejected_ci95": wilson(int(is_rejected_T.sum()), len(test)),
        "accuracy_of_rejected": float(is_right_T[is_rejected_T].mean()) if is_rejected_T.any() else None,
        "share_added": share_added,
        "least_familiar": [{**picture, "familiarity": float(of_T[k])} for picture, k in zip(pictures, least, strict=True)],
    }
    return Known(found, of_T, numbers)
