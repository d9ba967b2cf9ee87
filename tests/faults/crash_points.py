"""Stops a run of the storage layer at each of its operations in turn, and looks at what is left. Starts without TensorFlow.

    python -m tests.faults.crash_points crash|full FOLDER

What runs is everything by which a job lasts: claim, lease, leftovers, records, a store of shards, checkpoints, a set of
model, metrics, predictions and page that is published, and sweep, done twice with other content. After each stop the same
is started again and must come to the end with the same bytes; and whoever reads in between must find every file whole.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from job.config import CheckpointConfig
from job.errors import StorageFailed
from job.pipeline.output import owned
from job.pipeline.publishing import publish
from job.runtime.context import Context
from job.runtime.session import Session
from job.runtime.telemetry import Telemetry
from job.storage.files import digest_of_file, digest_of_folder, storage_errors
from job.storage.lease import NAME as LEASE
from job.storage.ledger import MARK, TEMPORARY
from job.storage.published import Published
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore, StoreWriter
from job.stores.sweeping import sweep, unwanted
from job.train.checkpoint import Checkpoints, TrainState
from tests.faults.disk import FULL, KILLED, FaultyDisk, in_child

MOMENTS = ("before", "during")  # What is there after an operation is what is there before the next one.
NEED_ROOM = ("write", "pwrite", "create", "mkdir", "fsync", "replace", "link", "exchange", "truncate")
MODEL_FILES = ("weights", "variables/part", "model.json")
DONE = ("split", "evaluate", "export", "report")


def work(out: Path) -> None:
    """Two rounds of what a job does with the disk; each stage of a round is skipped where its record stands."""
    context = Context(Workdir(out), Telemetry(out / "logs"), saving=CheckpointConfig(every_s=0))
    rounds(context)
    context.telemetry.close()


def rounds(context: Context) -> None:
    """The same in any directory, a bucket as well."""
    workdir = context.workdir
    with owned(context, Session()):
        for number in (1, 2):
            if (workdir.read_json("stages/end.json") or {}).get("round", 0) >= number:
                continue
            workdir.write_json("run.json", {"round": number})
            workdir.remove("stages/end.json")
            _store(context, number)
            weights = _train(context, number)
            _stages(workdir, number, weights)
            publish(workdir, DONE)
            workdir.write_json("stages/end.json", {"round": number})
            context.telemetry.event("round", number=number)
        publish(workdir, DONE)
        with workdir.held():
            sweep(unwanted(context.cache.root, [_store(context, 2).index_file]))


def _store(context: Context, number: int) -> ArrayStore:
    writer = StoreWriter(context.cache.path(f"features-{number}"), (4,), "float32", context.cache.temporary)
    keys = [[f"{number}-{k}-{row}" for row in range(5)] for k in range(2)]
    writer.refresh()
    for k, part in enumerate(keys):
        if not writer.has(part).all():
            writer.write(part, np.full((5, 4), 10 * number + k, np.float32))
    return writer.finish([*keys[0], *keys[1]])


def _train(context: Context, number: int) -> np.ndarray:
    with Checkpoints(context, "fine_tune", {"round": str(number)}) as checkpoints:
        saved = checkpoints.newest()
        weights = saved.arrays["weights"] if saved else np.zeros(3)
        for step in range(saved.step if saved else 0, 3):
            weights = weights * 3 + number + step
            checkpoints.save(TrainState(step + 1, {"weights": weights}))
    return weights


def _stages(workdir: Workdir, number: int, weights: np.ndarray) -> None:
    """Leave what stages leave: the model in a folder that is made as a whole, the rest in single files."""
    with workdir.writing_folder("stages/export/model") as folder, storage_errors(folder):
        _fill(folder, number)
    numbers = {
        "shipped": "head",
        "metric": "accuracy",
        "class_names": [],
        "per_class": [],
        "confusion": [],
        "earlier": None,
        "seeds": None,
        "head": {"round": number, "weights": weights.tolist()},
    }
    workdir.write_json("stages/evaluate/evaluation.json", {**numbers, "fine_tuned": None})
    workdir.write_bytes("stages/evaluate/predictions.parquet", b"predictions %d" % number)
    workdir.write_bytes("stages/split/examples.parquet", b"examples %d" % number)
    workdir.write_bytes("stages/report/report.html", b"<html>%d</html>" % number * 500)


def _fill(folder: Path, number: int) -> None:
    for name in MODEL_FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"round": number}) * 100)


def faults(out: Path) -> list[str]:
    """What a reader would find that is not whole, or does not belong together."""
    found = []
    workdir = Workdir(out)
    for name in ("run.json", "metrics.json", "stages/end.json", "published.json"):
        if (out / name).exists() and workdir.read_json(name) is None:
            found.append(f"{name} cannot be read")
    for page in (out / "report.html", out / "stages/report/report.html"):
        if page.exists() and len(page.read_bytes()) != 14 * 500:
            found.append(f"{page} is cut")
    found += [f"{model} is a mix" for model in out.glob("versions/*/model") if len(_texts(model)) != 1]
    if (out / "model").exists() and len(_texts(out / "model")) != 1:
        found.append("model is a mix")
    published = Published.load(workdir)
    whole = {name: digest_of_file(path) for name in published.files if (path := published.path(workdir, name)).exists()}
    if whole != published.files:
        found.append("what is published is not whole")
    if (out / "model").exists() and not published.set:
        found.append("there is a model, and nothing is published")
    ended = workdir.read_json("stages/end.json")
    if ended and json.loads(published.path(workdir, "metrics.json").read_text())["head"]["round"] != ended["round"]:
        found.append("the record stands and what is published is of another round")
    for folder in (out / "checkpoints" / "fine_tune").glob("[0-9]*"):
        if digest_of_folder(folder) != folder.name.partition("-")[2]:
            found.append(f"checkpoint {folder.name[:10]} is not whole")
    for record in (out / "cache").glob("*/*.json"):
        if record.name.startswith("index-") and not ArrayStore.is_intact(record):
            found.append(f"the store {record.parent.name} has an index and is not whole")
    return found


def _texts(model: Path) -> set[str]:
    return {(model / name).read_text() if (model / name).exists() else "missing" for name in MODEL_FILES}


def content(out: Path) -> dict[str, Any]:
    """All bytes under final names, but for logs, the lease and the mark."""
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and "logs" not in p.parts and p.name not in (LEASE, MARK)
    }


def crash_everywhere(folder: Path) -> dict[str, Any]:
    reference = folder / "reference"
    disk = FaultyDisk(reference)

    def counted() -> None:
        disk.install()
        work(reference)
        (folder / "operations.json").write_text(json.dumps([disk.operations, disk.unsynced_renames]))

    code, said = in_child(counted)
    assert code == 0, said
    operations, unsynced = json.loads((folder / "operations.json").read_text())
    expected, problems, num_stops = content(reference), [f"renamed before it was synced: {path}" for path in unsynced], 0
    num_same = 0
    for number, operation in enumerate(operations):
        for moment in MOMENTS:
            if moment == "during" and not operation.startswith(("write", "pwrite")):
                continue
            # Files are the same before and after a sync, so a process that ends leaves the same.
            if moment == "before" and number and operations[number - 1].startswith("fsync"):
                num_same += 1
                continue
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)

            def stopped(out: Path = out, number: int = number, moment: str = moment) -> None:
                FaultyDisk(out, number, moment).install()
                work(out)

            where = f"{moment} {operation} (operation {number})"
            code, said = in_child(stopped)
            if code != KILLED:
                problems.append(f"{where}: was not stopped ({code} {said})")
            problems += [f"{where}: {fault}" for fault in faults(out)]
            code, said = in_child(lambda out=out: work(out))  # type: ignore[misc]
            if code != 0:
                problems.append(f"{where}: the next start failed: {said}")
            elif content(out) != expected:
                names = [n for n in expected.keys() | content(out).keys() if expected.get(n) != content(out).get(n)]
                problems.append(f"{where}: the next start ended otherwise: {names}")
            if (out / TEMPORARY).exists() or (out / LEASE).exists():
                problems.append(f"{where}: leftovers {[p.name for p in out.rglob('.*')]}")
            num_stops += 1
    return {"operations": len(operations), "stops": num_stops, "same": num_same, "problems": problems}


def fill_up_everywhere(folder: Path) -> dict[str, Any]:
    """The disk is full from the k-th operation on that needs room."""
    reference = folder / "reference"
    disk = FaultyDisk(reference)

    def counted() -> None:
        disk.install()
        work(reference)
        (folder / "operations.json").write_text(json.dumps(disk.operations))

    code, said = in_child(counted)
    assert code == 0, said
    operations = json.loads((folder / "operations.json").read_text())
    expected, problems, messages, num_stops = content(reference), [], set(), 0
    for number, operation in enumerate(operations):
        if not operation.startswith(
            ("write", "pwrite", "create", "mkdir", "fsync", "replace", "link", "exchange", "truncate")
        ):
            continue
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)

        def full(out: Path = out, number: int = number) -> None:
            FaultyDisk(out, number, error=FULL).install()
            work(out)

        code, said = in_child(full)
        where = f"full at {operation} (operation {number})"
        if code == 0:  # Where a folder that is there already was to be made, or the run was at its end.
            problems += [] if content(out) == expected else [f"{where}: said nothing, and left something else"]
        elif code != 1 or not said.startswith(StorageFailed.__name__) or "free there" not in said or str(out) not in said:
            problems.append(f"{where}: ended with {code}: {said}")
        messages |= {said} if said else set()
        problems += [f"{where}: {fault}" for fault in faults(out)]
        code, said = in_child(lambda out=out: work(out))  # type: ignore[misc]
        if code != 0 or content(out) != expected:
            problems.append(f"{where}: the next start failed or ended otherwise: {said}")
        num_stops += 1
    return {"operations": len(operations), "stops": num_stops, "problems": problems, "message": min(messages)}


if __name__ == "__main__":
    sys.setswitchinterval(1e-4)
    folder = Path(sys.argv[2]).resolve()
    print(json.dumps({"crash": crash_everywhere, "full": fill_up_everywhere}[sys.argv[1]](folder)))
