"""Prediction with an exported model. It accepts the same photos as intake, because it uses the same decoder."""

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from job.decoding.processes import Limits, ShardTask, decode_shards
from job.errors import DataUnusable, UsageError
from job.runtime.cgroups import usable_cores
from job.runtime.stop import StopRequest
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig
from job.serving import answers
from job.serving import folder as model_folder
from job.serving.answers import Row
from job.serving.folder import ExportedModel
from job.serving.training_photos import TrainingPhotos, training_photos
from job.sources.base import Entry, Source
from job.sources.open import open_source
from job.stores.arrays import HEADER_BYTES, StoreWriter
from job.text.numbers import counted

if TYPE_CHECKING:
    from job.serving.explanations import Explanations

_BEST, _PHOTOS_AT_ONCE = 3, 256
_DECODE_TIMEOUT_S, _WORKER_MEMORY_MB = 30.0, 2048


@dataclass(frozen=True)
class Wanted:
    """The things to tell about photos besides their labels.

    `probabilities`: a column `probability:NAME` for each class. `accepted_only`: photos whose answer is not accepted are
    left out. `neighbours`: a column `neighbours` with so many of the most similar training photos of the model's run, and
    their cosine similarities (JSON). `explain`: heatmaps of the first `explain_photos` photos, written to this place (see
    `job.serving.explanations`).
    """

    probabilities: bool = False
    accepted_only: bool = False
    neighbours: int = 0
    explain: str | None = None
    explain_photos: int = 200


def predict(
    model: str,
    data: str,
    out: str,
    wanted: Wanted,
    *,
    tfds_dir: str | None,
    batch_size: int,
    telemetry: Telemetry,
    stop: StopRequest,
    model_sha256: str | None = None,
    overwrite: bool = False,
) -> pa.Table:
    """Label photos with an exported model. Write and return a table with one row per photo, as `job.predict` describes it.

    Raises:
        UsageError: if `model` is not an exported model, is incomplete, does not match `model_sha256`, or cannot give what is
            `wanted`; or if `out` or the place of heatmaps must not be written (see `answers.place`). No photo has been read
            then.
        DataUnusable: if there are no photos.
        StorageFailed: if the table cannot be written. It is then kept in scratch space.
    """
    place = answers.place(out, overwrite=overwrite, model=model, data=data)
    explanations = _explanations(wanted, model, out)
    source = open_source(data, labelled=False, settings=IntakeConfig(tfds_dir=tfds_dir))
    exported = model_folder.load(model, model_sha256, telemetry.line)
    if wanted.accepted_only and not exported.gives("accepted"):
        raise UsageError(
            f"--accepted-only: {model} does not say which answers it accepts; models of version 0.13 and later do. Run the "
            "job again, or leave out --accepted-only."
        )
    with training_photos(exported, telemetry) if wanted.neighbours else nullcontext() as training:
        listing = source.listing()
        for note in listing.notes:
            telemetry.line(note)
        entries = [e for e in listing.entries if e.verdict != "ignored"]
        readable = [e for e in entries if e.verdict is None]
        place.refuse_inputs(source, readable)
        if explanations:
            explanations.begin([e.path for e in readable], model, model_sha256, exported.card, telemetry)
        with stop.during(next_time="Nothing was written: the same command begins again."):
            rows: dict[str, Row | None] = {e.path: {"path": e.path, "error": e.reason} for e in entries if e.verdict}
            labeller = _Labeller(exported, batch_size, wanted, training, explanations)
            rows |= _labelled(readable, source, labeller, telemetry, stop)
            found = [row for _, row in sorted(rows.items()) if row]
            if not found:
                raise DataUnusable(f"--data {data}: there are no photos in it. Give a folder or table with photos.")
            if wanted.accepted_only:
                found = _accepted(found, telemetry)
            class_names = exported.card.class_names if wanted.probabilities else ()
            table = place.write(found, stop, class_names, with_neighbours=wanted.neighbours > 0)
            if explanations:
                explanations.write()
            return table


def _explanations(wanted: Wanted, model: str, out: str) -> "Explanations | None":
    if wanted.explain is None:
        return None
    from job.serving.explanations import Explanations  # It imports TensorFlow with Keras.

    return Explanations(wanted.explain, wanted.explain_photos, model=model, out=out)


def _accepted(rows: list[Row], telemetry: Telemetry) -> list[Row]:
    """Leave out the rows with an answer that is not accepted, and tell how many these are."""
    kept = [row for row in rows if row.get("accepted", True)]
    left_out = counted(len(rows) - len(kept), "photo", "photos")
    telemetry.line(f"Left out because the answer is not accepted: {left_out} of {len(rows):,}.")
    return kept


@dataclass(frozen=True)
class _Labeller:
    """A model, and what else tells something about photos."""

    exported: ExportedModel
    batch_size: int
    wanted: Wanted
    training: TrainingPhotos | None
    explanations: "Explanations | None"

    def rows(self, paths: list[str], pixels_NHWC: np.ndarray) -> Iterator[Row]:
        """Yield the row of each photo. `pixels_NHWC` are uint8."""
        if self.explanations:
            self.explanations.add(paths, pixels_NHWC)
        class_names = self.exported.card.class_names
        for k in range(0, len(paths), self.batch_size):
            batch, part = pixels_NHWC[k : k + self.batch_size], paths[k : k + self.batch_size]
            found = self.exported.answers(batch)
            neighbours = self.training.neighbours(batch, self.wanted.neighbours) if self.training else None
            for n, (path, probabilities_C) in enumerate(zip(part, found["probabilities"], strict=True)):
                best = np.argsort(-probabilities_C, kind="stable")[:_BEST]
                top = {class_names[c]: round(float(probabilities_C[c]), 6) for c in best}
                most = float(probabilities_C[best[0]])
                row: Row = {"path": path, "label": class_names[best[0]], "probability": most, "top_3": top, "error": ""}
                if self.wanted.probabilities:
                    row["probabilities_C"] = probabilities_C
                if "accepted" in found:
                    row["accepted"] = bool(found["accepted"][n])
                if "familiarity" in found:
                    row["familiarity"] = float(found["familiarity"][n])
                if neighbours:
                    row["neighbours"] = neighbours[n]
                yield row


def _labelled(
    entries: list[Entry], source: Source, labeller: _Labeller, telemetry: Telemetry, stop: StopRequest
) -> dict[str, Row | None]:
    """Return the row of each entry by its path; None for files that are not photos and do not have a photo's name."""
    rows: dict[str, Row | None] = {}
    rules = labeller.exported.card.rules
    shards = [entries[k : k + _PHOTOS_AT_ONCE] for k in range(0, len(entries), _PHOTOS_AT_ONCE)]
    with tempfile.TemporaryDirectory() as folder, telemetry.progress("predict", len(entries), "photos") as progress:
        writer = StoreWriter(Path(folder), (rules.image_size, rules.image_size, 3), "uint8")
        tasks = (ShardTask(str(k), tuple(shard), writer.open_shard(len(shard))) for k, shard in enumerate(shards))
        limits = Limits(min(usable_cores(), max(1, len(shards))), _DECODE_TIMEOUT_S, _WORKER_MEMORY_MB)
        for task in decode_shards(tasks, source, rules, limits, telemetry, stop):
            values = np.fromfile(task.file, np.uint8, task.num_rows * writer.row_bytes, offset=HEADER_BYTES)
            good = []
            for path, record in zip((entry.path for entry in task.entries), task.records, strict=True):
                if record["status"] in ("used", "converted"):
                    good.append(path)
                else:
                    rows[path] = None if record["status"] == "ignored" else {"path": path, "error": record["reason"]}
            rows |= {row["path"]: row for row in labeller.rows(good, values.reshape(-1, *writer.row_shape))}
            task.file.unlink()
            progress.advance(len(task.entries))
    return rows
