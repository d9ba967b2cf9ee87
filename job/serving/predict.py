"""Prediction with an exported model. It accepts the same photos as intake, because it uses the same decoder."""

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

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

_BEST, _PHOTOS_AT_ONCE = 3, 256
_DECODE_TIMEOUT_S, _WORKER_MEMORY_MB = 30.0, 2048


def predict(
    model: str,
    data: str,
    out: str,
    *,
    tfds_dir: str | None,
    batch_size: int,
    telemetry: Telemetry,
    stop: StopRequest,
    model_sha256: str | None = None,
    overwrite: bool = False,
    probabilities: bool = False,
    accepted_only: bool = False,
    neighbours: int = 0,
) -> pa.Table:
    """Label photos with an exported model. Write and return a table with one row per photo.

    Its columns are path, label, probability, familiarity, accepted, `top_3` (JSON), and `error` if the photo could not be
    read. An older model leaves familiarity and accepted empty. With `accepted_only`, photos whose answer is not accepted are
    left out. With `neighbours`, a column `neighbours` follows: so many of the most similar training photos of the model's
    run, with their cosine similarities (JSON). With `probabilities`, a column `probability:NAME` for each class follows.

    The model's graph runs with all rights of this process. `model_sha256`, the SHA-256 of model.json, makes sure that it is
    the graph that was exported. With `overwrite`, `out` may replace a file that predict did not write.

    Raises:
        UsageError: if `model` is not an exported model, is incomplete, does not match `model_sha256`, or cannot give what
            `accepted_only` and `neighbours` need; or if `out` must not be written (see `answers.place`). No photo has been
            read then.
        DataUnusable: if there are no photos.
        StorageFailed: if the table cannot be written. It is then kept in scratch space.
    """
    place = answers.place(out, overwrite=overwrite, model=model, data=data)
    source = open_source(data, labelled=False, settings=IntakeConfig(tfds_dir=tfds_dir))
    exported = model_folder.load(model, model_sha256, telemetry.line)
    if accepted_only and not exported.gives("accepted"):
        raise UsageError(
            f"--accepted-only: {model} does not say which answers it accepts; models of version 0.13 and later do. Run the "
            "job again, or leave out --accepted-only."
        )
    with training_photos(exported, telemetry) if neighbours else nullcontext() as training:
        listing = source.listing()
        for note in listing.notes:
            telemetry.line(note)
        entries = [e for e in listing.entries if e.verdict != "ignored"]
        readable = [e for e in entries if e.verdict is None]
        place.refuse_inputs(source, readable)
        with stop.during(next_time="Nothing was written: the same command begins again."):
            rows: dict[str, Row | None] = {e.path: {"path": e.path, "error": e.reason} for e in entries if e.verdict}
            labeller = _Labeller(exported, batch_size, probabilities, training, neighbours)
            rows |= _labelled(readable, source, labeller, telemetry, stop)
            answered = [rows[path] for path in sorted(rows)]
            found = [row for row in answered if row]
            if not found:
                raise DataUnusable(f"--data {data}: there are no photos in it. Give a folder or table with photos.")
            if accepted_only:
                found = _accepted(found, telemetry)
            class_names = exported.card.class_names if probabilities else ()
            return place.write(found, stop, class_names, with_neighbours=neighbours > 0)


def _accepted(rows: list[Row], telemetry: Telemetry) -> list[Row]:
    """Leave out the rows with an answer that is not accepted, and tell how many these are."""
    kept = [row for row in rows if row.get("accepted", True)]
    left_out = counted(len(rows) - len(kept), "photo", "photos")
    telemetry.line(f"Left out because the answer is not accepted: {left_out} of {len(rows):,}.")
    return kept


@dataclass(frozen=True)
class _Labeller:
    """A model, and what to say about each photo: with `keeps_all` the probabilities of all classes, and its neighbours."""

    exported: ExportedModel
    batch_size: int
    keeps_all: bool
    training: TrainingPhotos | None
    num_neighbours: int

    def rows(self, paths: list[str], pixels_NHWC: np.ndarray) -> Iterator[Row]:
        """Yield the row of each photo. `pixels_NHWC` are uint8."""
        for k in range(0, len(paths), self.batch_size):
            batch, part = pixels_NHWC[k : k + self.batch_size], paths[k : k + self.batch_size]
            found = self.exported.answers(batch)
            neighbours = self.training.neighbours(batch, self.num_neighbours) if self.training else None
            for n, path in enumerate(part):
                row = self._row(path, found["probabilities"][n])
                if "accepted" in found:
                    row["accepted"] = bool(found["accepted"][n])
                if "familiarity" in found:
                    row["familiarity"] = float(found["familiarity"][n])
                if neighbours:
                    row["neighbours"] = neighbours[n]
                yield row

    def _row(self, path: str, probabilities_C: np.ndarray) -> Row:
        class_names = self.exported.card.class_names
        best = np.argsort(-probabilities_C, kind="stable")[:_BEST]
        top = {class_names[k]: round(float(probabilities_C[k]), 6) for k in best}
        most = float(probabilities_C[best[0]])
        row: Row = {"path": path, "label": class_names[best[0]], "probability": most, "top_3": top, "error": ""}
        return {**row, "probabilities_C": probabilities_C} if self.keeps_all else row


def _labelled(
    entries: list[Entry], source: Source, labeller: _Labeller, telemetry: Telemetry, stop: StopRequest
) -> dict[str, Row | None]:
    """Return the row of each entry by its path; None for files that are not photos and do not have a photo's name."""
    rows: dict[str, Row | None] = {}
    rules = labeller.exported.card.rules
    shards = [entries[k : k + _PHOTOS_AT_ONCE] for k in range(0, len(entries), _PHOTOS_AT_ONCE)]
    with (
        tempfile.TemporaryDirectory() as folder,
        telemetry.progress("predict", len(entries), "photos") as progress,
    ):
        writer = StoreWriter(Path(folder), (rules.image_size, rules.image_size, 3), "uint8")
        tasks = (ShardTask(str(k), tuple(shard), writer.open_shard(len(shard))) for k, shard in enumerate(shards))
        limits = Limits(min(usable_cores(), max(1, len(shards))), _DECODE_TIMEOUT_S, _WORKER_MEMORY_MB)
        for task in decode_shards(tasks, source, rules, limits, telemetry, stop):
            values = np.fromfile(task.file, np.uint8, task.num_rows * writer.row_bytes, offset=HEADER_BYTES)
            rows |= _rows(task, values.reshape(-1, *writer.row_shape), labeller)
            task.file.unlink()
            progress.advance(len(task.entries))
    return rows


def _rows(task: ShardTask, pixels_NHWC: np.ndarray, labeller: _Labeller) -> dict[str, Row | None]:
    """Return the row of each photo of a shard by its path; None for files that are ignored."""
    found: dict[str, Row | None] = {}
    good = []
    for entry, record in zip(task.entries, task.records, strict=True):
        if record["status"] in ("used", "converted"):
            good.append(entry.path)
        else:
            found[entry.path] = None if record["status"] == "ignored" else {"path": entry.path, "error": record["reason"]}
    return found | {row["path"]: row for row in labeller.rows(good, pixels_NHWC)}
