"""The measurement of familiarity: it is fitted on training and validation photos, and tested on the held-out ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from job.data.examples import Examples
from job.measure.metrics import wilson
from job.measure.predicted import Predicted
from job.model.familiarity import MIN_FAMILIARITY, Familiarity, Source, chosen_for_fitting
from job.reporting.gallery import pictured
from job.reporting.summaries import MeasuredFamiliarity
from job.runtime.context import Context
from job.sections import EvaluateConfig
from job.stores.arrays import ArrayStore
from job.text.numbers import percent

FAMILIARITY, PICTURES = "stages/evaluate/familiarity.npz", "stages/evaluate/least_familiar"
_VALIDATION_PHOTOS = 10_000  # So many give the percentiles exactly enough.


@dataclass(frozen=True)
class Known:
    """A fitted familiarity, that of the T test photos (T,), and what the report says about it."""

    familiarity: Familiarity
    of_T: np.ndarray
    numbers: MeasuredFamiliarity


def measured(
    config: EvaluateConfig,
    features_of: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    share_above: float,
    examples: Examples,
    predicted: Predicted,
    images: ArrayStore,
    context: Context,
) -> Known | None:
    """Fit the familiarity, write it for the export, and measure on the test photos how many are rejected. None if it is off.

    `features_of` has functions that return the features (N, D) of photos, given by their rows in the image store: `frozen`
    and `tuned`. `share_above` is the share of the backbone that was fine-tuned, so that frozen features are computed beside
    it; 0 if the head alone ships. `predicted` is of the test photos.
    """
    if config.familiarity == "off":
        for name in (FAMILIARITY, PICTURES):
            context.workdir.remove(name)
        return None
    source: Source = "tuned" if config.familiarity == "tuned" and share_above else "frozen"
    share_added = 0.0 if source == "tuned" else share_above
    if config.mirror is True:
        share_added /= 2  # The model runs on the mirror image, too, for which no familiarity is computed.
    train, val, test = (examples.of(split) for split in ("train", "val", "test"))
    train = train[chosen_for_fitting(examples.labels[train])]
    some = val[:: max(1, -(-len(val) // _VALIDATION_PHOTOS))]
    features = [features_of[source](examples["row"][photos]) for photos in (train, some, test)]
    found = Familiarity.fit(features[0], examples.labels[train], features[1], source, context.seed)
    with context.workdir.writing(FAMILIARITY) as path:
        found.save(path)
    of_T = found.of(features[2])
    is_rejected_T = of_T < MIN_FAMILIARITY
    is_right_T = predicted.class_N == examples.labels[test]
    least = np.argsort(of_T, kind="stable")[: config.mistakes]
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
    rejected, added = percent(numbers["rejected"]), percent(share_added, 0)
    context.telemetry.line(
        f"  familiarity: {rejected} of the held-out photos are rejected; a photo costs {added} more multiply-adds"
    )
    return Known(found, of_T, numbers)
