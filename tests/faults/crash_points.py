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

from job.errors import StorageFailed
from job.pipeline.output import owned
from job.pipeline.publishing import publish
from job.runtime.context import Context
from job.runtime.session import Session
from job.runtime.telemetry import Telemetry
from job.sections import CheckpointConfig
from job.storage.files import digest_of, digest_of_file, digest_of_folder, storage_errors
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
        "min_probability": 0.0,
        "thresholds": {},
        "earlier": None,
        "corrections": None,
        "familiarity": None,
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


def state_of(out: Path) -> str:
    """Return a digest of all names and bytes, temporary files included, but for logs, and who holds the lease."""
    paths = [p for p in sorted(out.rglob("*")) if "logs" not in p.parts]
    return digest_of([[str(p), p.read_bytes().hex() if p.is_file() and p.name != LEASE else p.is_dir()] for p in paths])


def crash_everywhere(folder: Path) -> dict[str, Any]:
    reference = Reference(folder)
    problems, num_stops, num_same = [f"renamed before it was synced: {path}" for path in reference.unsynced], 0, 0
    for number, operation in enumerate(reference.operations):
        for moment in MOMENTS:
            if moment == "during" and not operation.startswith(("write", "pwrite")):
                continue
            # Files are the same before and after a sync, so a process that ends leaves the same.
            if moment == "before" and number and reference.operations[number - 1].startswith("fsync"):
                num_same += 1
                continue
            out, code, said = reference.stopped(number, moment=moment)
            where = f"{moment} {operation} (operation {number})"
            if code != KILLED:
                problems.append(f"{where}: was not stopped ({code} {said})")
            problems += [f"{where}: {fault}" for fault in faults(out) + reference.next_start(out)]
            num_stops += 1
    return {"operations": len(reference.operations), "stops": num_stops, "same": num_same, "problems": problems}


def fill_up_everywhere(folder: Path) -> dict[str, Any]:
    """The disk is full from the k-th operation on that needs room."""
    reference = Reference(folder)
    problems, messages, num_stops = [], set(), 0
    for number, operation in enumerate(reference.operations):
        if not operation.startswith(NEED_ROOM):
            continue
        out, code, said = reference.stopped(number, error=FULL)
        where = f"full at {operation} (operation {number})"
        if code == 0:  # Where a folder that is there already was to be made, or the run was at its end.
            problems += [] if content(out) == reference.content else [f"{where}: said nothing, and left something else"]
        elif code != 1 or not said.startswith(StorageFailed.__name__) or "free there" not in said or str(out) not in said:
            problems.append(f"{where}: ended with {code}: {said}")
        messages |= {said} if said else set()
        problems += [f"{where}: {fault}" for fault in faults(out) + reference.next_start(out)]
        num_stops += 1
    return {"operations": len(reference.operations), "stops": num_stops, "problems": problems, "message": min(messages)}


class Reference:
    """The work that nobody stops: its operations, and what it leaves. All runs that are stopped are held against it."""

    def __init__(self, folder: Path) -> None:
        self._out = folder / "out"
        self._continued: set[str] = set()
        disk = FaultyDisk(folder / "reference")

        def counted() -> None:
            disk.install()
            work(folder / "reference")
            (folder / "operations.json").write_text(json.dumps([disk.operations, disk.unsynced_renames]))

        code, said = in_child(counted)
        assert code == 0, said
        self.operations, self.unsynced = json.loads((folder / "operations.json").read_text())
        self.content = content(folder / "reference")

    def stopped(self, number: int, **fault: Any) -> tuple[Path, int, str]:
        """Do the work from the start, with a fault at one operation. Return where, the exit code, and what it said."""
        shutil.rmtree(self._out, ignore_errors=True)

        def work_until() -> None:
            FaultyDisk(self._out, number, **fault).install()
            work(self._out)

        return self._out, *in_child(work_until)

    def next_start(self, out: Path) -> list[str]:
        """Do the rest of the work. Return what is wrong then. It is done once for each state in which files are left."""
        state = state_of(out)
        if state in self._continued:
            return []
        self._continued.add(state)
        code, said = in_child(lambda: work(out))
        if code != 0:
            return [f"the next start failed: {said}"]
        left = content(out)
        names = [n for n in self.content.keys() | left.keys() if self.content.get(n) != left.get(n)]
        problems = [f"the next start ended otherwise: {names}"] if names else []
        if (out / TEMPORARY).exists() or (out / LEASE).exists():
            problems.append(f"leftovers {[p.name for p in out.rglob('.*')]}")
        return problems


if __name__ == "__main__":
    sys.setswitchinterval(1e-4)
    folder = Path(sys.argv[2]).resolve()
    print(json.dumps({"crash": crash_everywhere, "full": fill_up_everywhere}[sys.argv[1]](folder)))
