"""The training photos of the run that made a model, for finding those that are most similar to a photo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from job.config import Config
from job.data.examples import Examples
from job.errors import UsageError
from job.measure.similar import most_similar
from job.pipeline.output import existing_workdir
from job.pipeline.records import Records, read_run
from job.pipeline.table import STAGES
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.serving.folder import ExportedModel
from job.stages.extract import SUMMARY, Extraction
from job.storage.bucket.objects import is_remote, split_object
from job.storage.files import digest_of_file
from job.stores.arrays import ArrayStore

_EXAMPLES, _EXPORTED = "stages/audit/examples.parquet", "stages/export/model/saved_model.pb"
_READ = (_EXAMPLES, _EXPORTED, SUMMARY, "run.json", *(f"stages/{name}.json" for name in STAGES))


@dataclass(frozen=True)
class TrainingPhotos:
    """The paths of N training photos, their rows in the feature store, and the model that gives such features."""

    paths_N: np.ndarray
    rows_N: np.ndarray
    features: ArrayStore
    exported: ExportedModel

    def neighbours(self, pixels_NHWC: np.ndarray, count: int) -> list[dict[str, float]]:
        """Return for each photo the paths of the most similar training photos, with their cosine similarities."""
        positions, cosines = most_similar(self.features, self.rows_N, self.exported.features(pixels_NHWC), count)
        return [
            dict(zip(self.paths_N[best].tolist(), np.round(of, 4).tolist(), strict=True))
            for best, of in zip(positions, cosines.astype(float), strict=True)
        ]


@contextmanager
def training_photos(exported: ExportedModel, telemetry: Telemetry) -> Iterator[TrainingPhotos]:
    """Give the training photos of a model, from the output of its run, in which it must lie.

    Raises:
        UsageError: if the model gives no features or lies elsewhere, or if the features in its run are gone, or of a later
            run with other settings.
    """
    place = exported.place
    if not exported.gives("features"):
        raise UsageError(
            f"--neighbours: {place} gives no features by which photos could be compared. Run the job again with "
            "evaluate.familiarity = frozen, which is the default since version 0.13."
        )
    try:
        out = split_object(place)[0] if is_remote(place) else str(Path(place).resolve().parent)
        workdir = existing_workdir(out)
    except UsageError as error:
        raise UsageError(
            f"--neighbours: {place} does not lie in the output of its run, which has the features of the training photos. "
            "Give the --out of the run as --model."
        ) from error
    with workdir.glance(*_READ) as seen:
        run, file = read_run(seen), seen.path(_EXPORTED)
        made = Records(seen).made_with(run["settings_of_stages"]) if run else []
        same = file.is_file() and digest_of_file(file) == exported.card.sha256.get("saved_model.pb")
        if run is None or "export" not in made or not same:
            raise UsageError(
                f"--neighbours: {out} holds results of another run than the one that made this model. Run the job on it "
                "again."
            )
        context = Context(seen, telemetry, caching=Config.model_validate(run["config"]).cache)
        try:
            examples, features = Examples.load(seen.path(_EXAMPLES)), Extraction.load(context).features.plain
            is_intact = ArrayStore.is_intact(features.index_file)
        except (OSError, ValueError, KeyError, TypeError):  # The last one if extract.json is missing or damaged.
            is_intact = False
        if not is_intact:
            photos = run["config"]["heatmaps"]["photos"]
            other = photos - 1 if photos else 1  # Heatmaps need the features, and the model does not depend on heatmaps.
            raise UsageError(
                f"--neighbours: the features of the training photos are not in {context.cache.root} any more. Run the job "
                f"on {out} again with --set heatmaps.photos={other}: it computes them again and trains nothing."
            )
        train = examples.of("train")
        yield TrainingPhotos(examples["path"][train], examples["row"][train], features, exported)
