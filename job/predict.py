"""Label photos with an exported model. It reads what intake reads: the canonical decoder and the array signature."""

import json
import re
import tempfile
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from job.cgroups import usable_cores
from job.context import Context
from job.data.decode import DecodeRules
from job.data.sources import Entry, Source, open_source
from job.data.stores import ROWS_PER_SHARD, StoreWriter
from job.data.workers import Limits, ShardTask, decode_shards
from job.errors import DataUnusable, JobError, UsageError
from job.storage.copies import local_folder, scratch
from job.storage.files import digest_of_file
from job.storage.objects import is_remote, join, open_objects, split_object
from job.storage.workdir import Workdir
from job.train.cluster import import_tensorflow
from job.untrusted import guarded

_BEST = 3
_DECODE_TIMEOUT_S, _WORKER_MEMORY_MB = 30.0, 2048


def predict(
    model: str,
    data: str,
    out: str,
    *,
    tfds_dir: str | None,
    batch_size: int,
    context: Context,
    model_sha256: str | None = None,
) -> str:
    """Write one row for each photo found: path, label, probability, `top_3`, and `error` where it could not be read.

    The model's graph runs with all rights of this process. With `model_sha256`, the SHA-256 of model.json, it is the graph
    that was exported: model.json names every other file by its digest. Returns a line that says what was done.

    Raises:
        UsageError: where `model` is no exported model, not a whole one or another one, or `out` is neither .parquet nor
            .csv, or lies in a bucket that is not there or that these credentials may not see; before any photo is read.
        DataUnusable: where there is not a single photo.
        StorageFailed: where the bucket does not take the answer, which is kept on this machine then.
    """
    if not out.endswith((".parquet", ".csv")):
        raise UsageError(f"--out {out}: give a name that ends in .parquet or .csv.")
    if is_remote(out):
        _is_there(out)  # For its errors, which else would come when the work is done.
    model_folder, card = _whole_model(model, model_sha256)
    source = open_source(data, labelled=False, tfds_dir=tfds_dir)
    entries = [e for e in source.listing().entries if e.verdict != "ignored"]
    context.stop.next_time = "Nothing was written: the same command begins again."
    signature = _load(model, model_folder, card)
    rows: dict[str, dict[str, Any]] = {e.path: {"path": e.path, "error": e.reason} for e in entries if e.verdict}
    rows |= _labelled([e for e in entries if e.verdict is None], source, signature, card, batch_size, context)
    rows = {path: row for path, row in rows.items() if row}
    if not rows:
        raise DataUnusable(f"--data {data}: there are no photos in it.")
    _write(out, [rows[path] for path in sorted(rows)], context)
    failed = sum(bool(row["error"]) for row in rows.values())
    return f"{len(rows) - failed:,} photos labelled, {failed:,} could not be read: {out}"


def _labelled(
    entries: list[Entry], source: Source, signature: Any, card: dict[str, Any], batch_size: int, context: Context
) -> dict[str, dict[str, Any]]:
    """Rows by path, as `_rows` gives them, of all entries."""
    rows: dict[str, dict[str, Any]] = {}
    rules = DecodeRules(card["image_size"], card["resize"], **card["decoder"])
    shards = [entries[k : k + ROWS_PER_SHARD] for k in range(0, len(entries), ROWS_PER_SHARD)]
    with (
        tempfile.TemporaryDirectory() as folder,
        context.telemetry.progress("predict", len(entries), "photos") as progress,
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
    return rows


def _whole_model(model: str, sha256: str | None) -> tuple[Path, dict[str, Any]]:
    """The folder of a model on this machine and its model.json, when its files have been held against that."""
    folder = _model_folder(model)
    card = Workdir(folder).read_json("model.json") if folder else None
    if folder is None or card is None:
        raise UsageError(f"--model {model}: there is no model.json in it; give the model/ folder of a run.")
    if sha256 is not None:
        _check_identity(model, folder, card, sha256)
    _check_files(model, folder, card)
    return folder, card


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


def _check_identity(model: str, model_folder: Path, card: dict[str, Any], expected: str) -> None:
    """Refuse another model than the expected one, and one with files that were not exported with it."""
    if not re.fullmatch("[0-9a-f]{64}", expected.lower()):
        raise UsageError(f"--model-sha256 {expected}: give the 64 hexadecimal digits that the run printed at its end.")
    found = digest_of_file(model_folder / "model.json")
    if found != expected.lower():
        raise UsageError(
            f"--model {model}: the SHA-256 of its model.json is {found}, not {expected}. "
            "Give the model that you mean, or the digest that its run printed at the end."
        )
    files = {
        path.relative_to(model_folder).as_posix()
        for path in model_folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    if foreign := sorted(files - card["sha256"].keys() - {"model.json"}):
        raise UsageError(
            f"--model {model}: files that its model.json does not name: {', '.join(foreign[:5])}. "
            "Copy the model/ folder of the run again, into a new folder."
        )


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


def _load(model: str, model_folder: Path, card: dict[str, Any]) -> Any:
    tf = import_tensorflow()
    loaded = tf.saved_model.load(str(model_folder))
    signature = loaded.signatures["pixels"]
    takes = signature.structured_input_signature[1]["pixels"].shape.as_list()
    if takes[1:] != [card["image_size"], card["image_size"], 3]:
        fault = f"photos of {card['image_size']} px, and its graph takes {takes[1:]}"
        raise UsageError(f"--model {model}: its model.json says {fault}. Copy the whole folder again.")
    blank = tf.zeros((1, *takes[1:]), tf.uint8)
    names = [name.decode("utf-8", "replace") for name in signature(pixels=blank)["class_names"][0].numpy()]
    if names != card["class_names"]:  # No digest covers model.json itself.
        differing = [pair for pair in zip_longest(card["class_names"], names) if pair[0] != pair[1]]
        fault = f"{differing[0][0]!r} where its graph has {differing[0][1]!r}"
        raise UsageError(f"--model {model}: the class names of its model.json have {fault}. Copy the whole folder again.")

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        result: np.ndarray = signature(pixels=tf.constant(pixels))["probabilities"].numpy()
        return result

    probabilities.model = loaded  # type: ignore[attr-defined]  # The signature does not keep its variables alive.
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
            raise type(error)(*error.args, context.stop.next_time) from error
        kept.unlink()
    else:
        _write_file(table, Path(out).resolve())


def _write_file(table: pa.Table, final: Path) -> None:
    with Workdir(final.parent).writing(final.name) as path, path.open("wb") as file:
        _write_table(table, file, final.name)


def _write_table(table: pa.Table, file: BinaryIO, name: str) -> None:
    if name.endswith(".csv"):
        for k, column in enumerate(table.columns):
            if pa.types.is_string(column.type):
                texts = [None if text is None else guarded(text) for text in column.to_pylist()]
                table = table.set_column(k, table.column_names[k], pa.array(texts, pa.string()))
        pyarrow.csv.write_csv(table, file)
    else:
        pyarrow.parquet.write_table(table, file)
