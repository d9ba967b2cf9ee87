"""Prediction with an exported model. It accepts the same photos as intake, because it uses the same decoder."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from job.decoding.processes import Limits, ShardTask, decode_shards
from job.errors import DataUnusable
from job.runtime.cgroups import usable_cores
from job.runtime.stop import StopRequest
from job.runtime.telemetry import Telemetry
from job.sections import IntakeConfig
from job.serving import answers
from job.serving import folder as model_folder
from job.serving.answers import Row
from job.serving.folder import ExportedModel
from job.sources.base import Entry, Source
from job.sources.open import open_source
from job.stores.arrays import HEADER_BYTES, StoreWriter

if TYPE_CHECKING:
    from job.serving.explanations import Explanations

_BEST, _PHOTOS_AT_ONCE = 3, 256
_DECODED = ("used", "converted")
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
    explain: str | None = None,
    explain_photos: int = 200,
) -> pa.Table:
    """Label photos with an exported model. Write and return a table with one row per photo.

    Its columns are path, label, probability, `top_3` (JSON), and `error` if the photo could not be read. With
    `probabilities`, a column `probability:NAME` for each class follows. With `explain`, heatmaps of the first
    `explain_photos` photos are written to that place: see `job.serving.explanations`.

    The model's graph runs with all rights of this process. `model_sha256`, the SHA-256 of model.json, makes sure that it is
    the graph that was exported. With `overwrite`, `out` may replace a file that predict did not write.

    Raises:
        UsageError: if `model` is not an exported model, is incomplete, or does not match `model_sha256`; or if `out` must
            not be written (see `answers.place`). No photo has been read then.
        DataUnusable: if there are no photos.
        StorageFailed: if the table cannot be written. It is then kept in scratch space.
    """
    place = answers.place(out, overwrite=overwrite, model=model, data=data)
    explanations = None
    if explain:
        from job.serving.explanations import Explanations

        explanations = Explanations(explain, explain_photos, model=model, out=out)
    source = open_source(data, labelled=False, settings=IntakeConfig(tfds_dir=tfds_dir))
    exported = model_folder.load(model, model_sha256, telemetry.line)
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
        rows |= _labelled(readable, source, exported, batch_size, telemetry, stop, probabilities, explanations)
        answered = {path: row for path, row in rows.items() if row}
        if not answered:
            raise DataUnusable(f"--data {data}: there are no photos in it. Give a folder or table with photos.")
        class_names = exported.card.class_names if probabilities else ()
        table = place.write([answered[path] for path in sorted(answered)], stop, class_names)
        if explanations:
            explanations.write()
        return table


def _labelled(
    entries: list[Entry],
    source: Source,
    exported: ExportedModel,
    batch_size: int,
    telemetry: Telemetry,
    stop: StopRequest,
    keeps_all: bool,
    explanations: "Explanations | None",
) -> dict[str, Row | None]:
    """Return the row of each entry by its path; None for files that are not photos and do not have a photo's name.

    With `keeps_all`, rows have the probabilities of all classes.
    """
    rows: dict[str, Row | None] = {}
    rules = exported.card.rules
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
            pixels = values.reshape(-1, *writer.row_shape)
            probabilities = [exported.probabilities(pixels[k : k + batch_size]) for k in range(0, len(pixels), batch_size)]
            rows |= _rows(task, np.concatenate(probabilities or [np.empty((0, 0))]), exported.card.class_names, keeps_all)
            if explanations:
                pairs = zip(task.entries, task.records, strict=True)
                explanations.add([entry.path for entry, record in pairs if record["status"] in _DECODED], pixels)
            task.file.unlink()
            progress.advance(len(task.entries))
    return rows


def _rows(task: ShardTask, probabilities: np.ndarray, class_names: list[str], keeps_all: bool) -> dict[str, Row | None]:
    """Return the row of each photo of a shard by its path; None for files that are ignored."""
    found: dict[str, Row | None] = {}
    good = iter(probabilities)
    for entry, record in zip(task.entries, task.records, strict=True):
        if record["status"] in _DECODED:
            found[entry.path] = _row(entry, next(good), class_names, keeps_all)
        else:
            found[entry.path] = None if record["status"] == "ignored" else {"path": entry.path, "error": record["reason"]}
    return found


def _row(entry: Entry, probabilities_C: np.ndarray, class_names: list[str], keeps_all: bool) -> Row:
    best = np.argsort(-probabilities_C, kind="stable")[:_BEST]
    top = {class_names[k]: round(float(probabilities_C[k]), 6) for k in best}
    label = class_names[best[0]]
    most = float(probabilities_C[best[0]])
    row: Row = {"path": entry.path, "label": label, "probability": most, "top_3": top, "error": ""}
    return {**row, "probabilities_C": probabilities_C} if keeps_all else row
