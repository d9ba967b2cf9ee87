"""Label photos with an exported model. It reads what intake reads: the canonical decoder and the array signature."""

import json
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from job.cgroups import usable_cores
from job.context import Context
from job.data.decode import DecodeRules
from job.data.sources import Entry, open_source
from job.data.stores import ROWS_PER_SHARD, StoreWriter
from job.data.workers import Limits, ShardTask, decode_shards
from job.errors import DataUnusable, JobError, UsageError, of_code
from job.storage.copies import local_folder, scratch
from job.storage.files import digest_of_file
from job.storage.objects import is_remote, join, open_objects, split_object
from job.storage.workdir import Workdir
from job.train.cluster import import_tensorflow

_BEST = 3
_DECODE_TIMEOUT_S, _WORKER_MEMORY_MB = 30.0, 2048


def predict(model: str, data: str, out: str, *, tfds_dir: str | None, batch_size: int, context: Context) -> str:
    """Write one row for each photo found: path, label, probability, `top_3`, and `error` where it could not be read.

    Returns a line that says what was done.

    Raises:
        UsageError: where `model` is no exported model or not a whole one, or `out` is neither .parquet nor .csv, or lies in
            a bucket that is not there or that these credentials may not see; before any photo is read.
        DataUnusable: where there is not a single photo.
        StorageFailed: where the bucket does not take the answer, which is kept on this machine then.
    """
    if not out.endswith((".parquet", ".csv")):
        raise UsageError(f"--out {out}: give a name that ends in .parquet or .csv.")
    if is_remote(out):
        _is_there(out)  # For its errors, which else would come when the work is done.
    model_folder = _model_folder(model)
    card = Workdir(model_folder).read_json("model.json") if model_folder else None
    if model_folder is None or card is None:
        raise UsageError(f"--model {model}: there is no model.json in it; give the model/ folder of a run.")
    _check_files(model, model_folder, card)
    source = open_source(data, labelled=False, tfds_dir=tfds_dir)
    entries = [e for e in source.listing().entries if e.verdict != "ignored"]
    context.stop.next_time = "Nothing was written: the same command begins again."
    rules = DecodeRules(card["image_size"], card["resize"], **card["decoder"])
    signature = _load(model_folder)
    rows: dict[str, dict[str, Any]] = {e.path: {"path": e.path, "error": e.reason} for e in entries if e.verdict}
    readable = [e for e in entries if e.verdict is None]
    shards = [readable[k : k + ROWS_PER_SHARD] for k in range(0, len(readable), ROWS_PER_SHARD)]
    with (
        tempfile.TemporaryDirectory() as folder,
        context.telemetry.progress("predict", len(readable), "photos") as progress,
    ):
        writer = StoreWriter(Path(folder), (rules.image_size, rules.image_size, 3), "uint8")
        tasks = (ShardTask(str(k), tuple(shard), writer.open_shard(len(shard))) for k, shard in enumerate(shards))
        limits = Limits(min(usable_cores(), max(1, len(shards))), _DECODE_TIMEOUT_S, _WORKER_MEMORY_MB)
        for task in decode_shards(tasks, source, rules, limits, context):
            file = writer.array_path(writer.commit(task.key, task.file, task.num_rows))
            pixels = np.load(file, mmap_mode="r")
            probabilities = [signature(pixels[k : k + batch_size]) for k in range(0, len(pixels), batch_size)]
            rows |= _rows(task, np.concatenate(probabilities) if probabilities else np.empty((0, 0)), card["class_names"])
            file.unlink()
            progress.advance(len(task.entries))
    rows = {path: row for path, row in rows.items() if row}
    if not rows:
        raise DataUnusable(f"--data {data}: there are no photos in it.")
    _write(out, [rows[path] for path in sorted(rows)], context)
    failed = sum(bool(row["error"]) for row in rows.values())
    return f"{len(rows) - failed:,} photos labelled, {failed:,} could not be read: {out}"


def _model_folder(model: str) -> Path | None:
    """The folder, whole and on this machine; None for a prefix that holds no model, whatever else lies below it."""
    if is_remote(model):
        return local_folder(model) if _is_there(join(model, "model.json")) else None
    return Path(model).resolve()  # A run may switch the link to another model in between.


def _is_there(uri: str) -> bool:
    """Whether there is such an object. Raises: UsageError, where there is not even the bucket, or no permission."""
    folder, name = split_object(uri)
    objects = open_objects(folder)
    if objects.find(name):
        return True
    next(objects.list(name), None)  # A bucket that is missing is told from an object that is missing only here.
    return False


def _check_files(model: str, model_folder: Path, card: dict[str, Any]) -> None:
    """A model with one file of another, or with a changed byte, would answer all the same."""
    changed = [
        name
        for name, digest in card["sha256"].items()
        if not (model_folder / name).is_file() or digest_of_file(model_folder / name) != digest
    ]
    if changed:
        raise UsageError(
            f"--model {model}: not what was exported together with its model.json: {', '.join(changed)}. "
            "Copy the whole folder again, or run the job again."
        )


def _load(model_folder: Path) -> Any:
    tf = import_tensorflow()
    model = tf.saved_model.load(str(model_folder))
    signature = model.signatures["pixels"]

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        result: np.ndarray = signature(pixels=tf.constant(pixels))["probabilities"].numpy()
        return result

    probabilities.model = model  # type: ignore[attr-defined]  # The signature does not keep its variables alive.
    return probabilities


def _rows(task: ShardTask, probabilities: np.ndarray, class_names: list[str]) -> dict[str, dict[str, Any]]:
    """Rows by path; empty for files that are neither photos nor called so."""
    found: dict[str, dict[str, Any]] = {}
    good = iter(probabilities)
    for entry, record in zip(task.entries, task.records, strict=True):
        if record["status"] in ("used", "converted"):
            found[entry.path] = _row(entry, next(good), class_names)
        else:
            found[entry.path] = {} if record["status"] == "ignored" else {"path": entry.path, "error": record["reason"]}
    return found


def _row(entry: Entry, probabilities_C: np.ndarray, class_names: list[str]) -> dict[str, Any]:
    best = np.argsort(-probabilities_C, kind="stable")[:_BEST]
    top = {class_names[k]: round(float(probabilities_C[k]), 6) for k in best}
    label = class_names[best[0]]
    return {"path": entry.path, "label": label, "probability": float(probabilities_C[best[0]]), "top_3": top, "error": ""}


def _write(out: str, rows: list[dict[str, Any]], context: Context) -> None:
    table = pa.table(
        {
            "path": [row["path"] for row in rows],
            "label": pa.array([row.get("label") for row in rows], pa.string()),
            "probability": pa.array([row.get("probability") for row in rows], pa.float64()),
            "top_3": pa.array(
                [json.dumps(row["top_3"], ensure_ascii=False) if "top_3" in row else None for row in rows], pa.string()
            ),
            "error": [row["error"] for row in rows],
        }
    )
    if is_remote(out):
        folder, name = split_object(out)
        kept = scratch(out) / name
        _write_file(table, kept)
        context.stop.next_time = f"The photos are labelled; the answer is in {kept}."
        try:
            open_objects(folder).write(name, kept)
        except JobError as error:
            raise of_code(error.exit_code, f"{error}\n{context.stop.next_time}") from error
        kept.unlink()
    else:
        _write_file(table, Path(out).resolve())


def _write_file(table: pa.Table, final: Path) -> None:
    with Workdir(final.parent).writing(final.name) as path, path.open("wb") as file:
        _write_table(table, file, final.name)


def _write_table(table: pa.Table, file: BinaryIO, name: str) -> None:
    if name.endswith(".csv"):
        pyarrow.csv.write_csv(table, file)
    else:
        pyarrow.parquet.write_table(table, file)
