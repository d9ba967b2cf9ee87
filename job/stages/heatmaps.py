"""heatmaps: show where the shipped model looks, on mistakes and on right photos, and test whether that can be trusted."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq

from job.data.examples import Examples
from job.measure.models import ShippedModel
from job.measure.occlusion import COPIES, FEWEST, Background, Deletion, copy_of, verdicts
from job.measure.predictions import PREDICTIONS
from job.measure.similar import most_similar
from job.model.gradcam import grad_cam
from job.reporting.gallery import Gallery
from job.reporting.summaries import Evaluated, Explained, ExplainedMistake, ExplainedPhoto
from job.runtime.context import Context
from job.sections import HeatmapsConfig
from job.stores.arrays import ArrayStore
from job.train.feed import all_rows, run_batches

SUMMARY = "stages/heatmaps/heatmaps.json"
PICTURES = "stages/heatmaps/pictures"
_BATCH_SIZE = 32
_MOST_OF_A_CLASS = 3
_SIMILAR, _SIMILAR_PX = 3, 48

# Heatmaps (N, G, G) and probabilities (N, C) of N pictures, which a function loads by their numbers from 0 to N - 1.
Look = Callable[[Callable[[np.ndarray], np.ndarray], int], Sequence[np.ndarray]]
# The heatmap (G, G) and the probabilities (C) of a photo, by its index in the table of examples.
Seen = Mapping[int, tuple[np.ndarray, np.ndarray]]


def heatmaps(
    config: HeatmapsConfig,
    *,
    examples: Examples,
    images: ArrayStore,
    features: ArrayStore,
    shipped: ShippedModel,
    evaluated: Evaluated,
    context: Context,
) -> None:
    """Draw heatmaps of the shipped model for held-out photos, and test them.

    The photos are the mistakes that `evaluated` shows, and right ones of each class, or of those with the lowest recall.
    `features` are the frozen ones, by which similar training photos are found.
    """
    test = examples.of("test")
    predicted = pq.read_table(context.workdir.path(PREDICTIONS), columns=["predicted"])["predicted"].to_numpy()
    right = np.random.default_rng(context.seed).permutation(test[predicted == examples["label"][test]])
    index_of = dict(zip(examples["path"][test], test, strict=True))
    wrong = np.asarray([index_of[mistake["path"]] for mistake in evaluated["mistakes"][: config.photos]], np.int64)
    good = _of_each_class(right, examples, evaluated, config.photos - len(wrong))
    checked = right[: config.checked] if min(config.checked, len(right)) >= FEWEST else right[:0]
    photos = np.unique(np.concatenate([wrong, good, checked]))
    numbers: Explained = {"mistakes": {}, "right": [], "deletion": None, "background": None}
    with Gallery.drawing(context.workdir, PICTURES, images) as gallery:
        if len(photos):
            look = _looking(shipped, context)
            maps_NGG, probabilities_NC = look(lambda k: images.rows(examples["row"][photos[k]]), len(photos))
            seen = dict(zip(photos.tolist(), zip(maps_NGG, probabilities_NC, strict=True), strict=True))
            with context.telemetry.spent("drawing"):
                numbers["mistakes"] = _mistakes(wrong, seen, examples, features, gallery)
                numbers["right"] = _right(good, seen, examples, gallery)
            if len(checked):
                numbers["deletion"], numbers["background"] = _tested(checked, seen, look, examples, images, context)
    context.workdir.write_json(SUMMARY, numbers)


def _of_each_class(right: np.ndarray, examples: Examples, evaluated: Evaluated, count: int) -> np.ndarray:
    """Return up to three of the `right` photos of each class, at most `count`. Classes with the lowest recall come first."""
    recalls = [row["recall"] for row in evaluated["per_class"]]
    each = min(_MOST_OF_A_CLASS, max(1, count // len(recalls)))
    labels = examples.labels[right]
    of_each = [right[labels == k][:each] for k in np.argsort(recalls, kind="stable")]
    return np.concatenate(of_each)[: max(0, count)]


def _looking(shipped: ShippedModel, context: Context) -> Look:
    replicas = shipped.network.replicas
    step = replicas.compiled(grad_cam(shipped.classifier, replicas.num))

    def look(load: Callable[[np.ndarray], np.ndarray], count: int) -> Sequence[np.ndarray]:
        return all_rows(run_batches(replicas, step, lambda k: (load(k),), count, _BATCH_SIZE, context.telemetry))

    return look


def _mistakes(
    wrong: np.ndarray, seen: Seen, examples: Examples, features: ArrayStore, gallery: Gallery
) -> dict[str, ExplainedMistake]:
    """Draw the heatmap of each mistake and the most similar training photos. Return them by the path of the photo."""
    if not len(wrong):
        return {}
    train = examples.of("train")
    rows = examples["row"]
    similar_QK, cosine_QK = most_similar(features, rows[train], features.rows(rows[wrong]), _SIMILAR)
    found: dict[str, ExplainedMistake] = {}
    for number, (index, similar_K, cosine_K) in enumerate(zip(wrong.tolist(), train[similar_QK], cosine_QK, strict=True)):
        found[examples["path"][index]] = {
            "heatmap": gallery.heatmap(rows[index], seen[index][0], f"mistake_{number:03d}"),
            "similar": gallery.sheet(rows[similar_K], f"similar_{number:03d}", _SIMILAR, _SIMILAR_PX),
            "similar_photos": [
                {"path": examples["path"][k], "label": examples["label"][k], "cosine": float(cosine)}
                for k, cosine in zip(similar_K, cosine_K, strict=True)
            ],
        }
    return found


def _right(good: np.ndarray, seen: Seen, examples: Examples, gallery: Gallery) -> list[ExplainedPhoto]:
    return [
        {
            "path": examples["path"][index],
            "label": examples["label"][index],
            "probability": float(seen[index][1].max()),
            "thumbnail": gallery.photo(examples["row"][index], f"right_{number:03d}"),
            "heatmap": gallery.heatmap(examples["row"][index], seen[index][0], f"right_{number:03d}_heatmap"),
        }
        for number, index in enumerate(good.tolist())
    ]


def _tested(
    checked: np.ndarray, seen: Seen, look: Look, examples: Examples, images: ArrayStore, context: Context
) -> tuple[Deletion, Background]:
    """Let the model answer to copies of photos in which something is hidden or moved."""

    def copies(numbers: np.ndarray) -> np.ndarray:
        return np.stack([copy(*divmod(int(number), len(COPIES))) for number in numbers])

    def copy(photo: int, kind: int) -> np.ndarray:
        index = int(checked[photo])
        rng = np.random.default_rng([context.seed, index, kind])
        return copy_of(images.rows([examples["row"][index]])[0], seen[index][0], COPIES[kind], rng)

    after = look(copies, len(checked) * len(COPIES))[1]
    before_NC = np.stack([seen[index][1] for index in checked.tolist()])
    return verdicts(before_NC, after.reshape(len(checked), len(COPIES), -1))
