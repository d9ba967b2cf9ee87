"""Publishing: the files that users take away from a run, as one set that changes as a whole.

A set is `model/`, `metrics.json`, `predictions.parquet`, `comparison.parquet`, `report.html`, `examples.parquet` and
`label_issues.csv`, or those of them that a run has. It is stored in `versions/SET/`. A set is published when
`published.json`, which names it with its digests, is replaced, in one step. The files at the root of the output are copies,
made afterwards. If that is interrupted, the next start finishes it. The set before the published one is kept until the next
publication.

A published model stays until another one is complete. A run without a model (the gate was not met, the data cannot be used,
or it was told to stop early) then leaves its files in `attempt/`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from itertools import count
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import pyarrow.parquet as pq

from job.data.examples import split_digests
from job.errors import StorageFailed
from job.pipeline.manifest import manifest
from job.pipeline.records import Records, read_run
from job.pipeline.table import STAGES
from job.reporting import times
from job.reporting.summaries import ComparedWithEarlier, Evaluated, MeasuredFamiliarity, ModelScores, Shipped
from job.runtime.context import Context
from job.storage.files import (
    copy_file,
    digest_of,
    digest_of_file,
    everything_below,
    free_bytes,
    in_units,
    link_or_copy,
    on_one_disk,
    storage_errors,
    to_json,
)
from job.storage.published import Published
from job.storage.workdir import Workdir
from job.text.numbers import counted, percent

if TYPE_CHECKING:  # They import SciPy, which takes as long as all else that a start imports.
    from job.measure.flips import Corrected
    from job.measure.occlusion import Background, Deletion
    from job.measure.seeds import Seeds
    from job.measure.thresholds import Thresholds

ATTEMPT = "attempt"
_EDITED = "label_issues.csv"  # Users may edit it, and their edits are kept.
_Sources = Mapping[str, Path | bytes]  # A file or its content, by name in a set.


class Metrics(TypedDict):
    """The content of metrics.json. `shipped` names the model that was exported. `run_id` is that of run.json.

    `deletion` and `background` are the tests of the stage heatmaps, if it has run.
    """

    schema: int
    run_id: NotRequired[str]
    shipped: Shipped
    metric: str
    class_names: list[str]
    head: ModelScores
    fine_tuned: ModelScores | None
    seeds: Seeds | None
    per_class: list[dict[str, object]]
    confusion: list[list[int]]
    min_probability: float
    thresholds: Thresholds
    earlier: ComparedWithEarlier | None
    corrections: Corrected | None
    familiarity: MeasuredFamiliarity | None
    deletion: NotRequired[Deletion | None]
    background: NotRequired[Background | None]
    timings: times.Records
    throughput: dict[str, float]
    share: dict[str, float]


def publish(workdir: Workdir, done: Collection[str]) -> None:
    """Publish the files of the stages in `done`, which are up to date.

    Raises:
        StorageFailed, TryAgainLater: if the set could not be written. The one before stays published.
        UsageError: if a file that the job did not make is in the way of a copy. The set is published all the same.
    """
    sources, before = _sources(workdir, done), Published.load(workdir)
    digests = {name: _digest(source) for name, source in sources.items()}
    if "model/model.json" in sources and (run := read_run(workdir)):
        files = {name.removeprefix("model/"): digest for name, digest in digests.items() if name.startswith("model/")}
        splits = split_digests(workdir.path("stages/audit/examples.parquet"))
        sources["model/manifest.json"] = to_json(manifest(run, files, splits))
        digests["model/manifest.json"] = _digest(sources["model/manifest.json"])
    if {"evaluate", "export", "report"} <= set(done) or not before.has_model:
        _publish_set(workdir, sources, digests, before)
        finish(workdir)
        left = [name.removeprefix(f"{ATTEMPT}/") for name in workdir.ledger.below(ATTEMPT)]
        _remove_copies(workdir, {name: before.attempt.get(name, "") for name in left}, f"{ATTEMPT}/")
    else:
        finish(workdir)
        if digests != before.attempt:
            replace(before, attempt=digests).save(workdir)
        _place(workdir, sources, digests, before.attempt, f"{ATTEMPT}/")
        _remove_copies(workdir, {n: d for n, d in before.attempt.items() if n not in digests}, f"{ATTEMPT}/")
    workdir.commit()


def keep_room(context: Context, num_parameters: int, num_formats: int) -> None:
    """Check before the work that the disk has room for the model, and keep the stores from taking that room.

    The model is in `stages/`, in the set and at the root of the output, each time in all formats, with four bytes for each
    parameter. If the file system has links, the first two share their bytes.

    Raises:
        StorageFailed: if the disk does not have so much room.
    """
    root, needed = context.workdir.root, 3 * num_formats * 4 * num_parameters
    if needed > free_bytes(root):
        raise StorageFailed(
            f"The model of this run needs {in_units(needed)} under {root}, where {in_units(free_bytes(root))} are free. "
            "Free some space, or give an --out on another disk."
        )
    if on_one_disk(root, context.cache.root):
        context.cache.kept_free_bytes = needed


def finish(workdir: Workdir) -> None:
    """Make the files at the root of an output copies of the published set again. Raises as `publish` does.

    A published.json that is missing or damaged is written again from the sets in `versions/`. A damaged set is made again
    from the copies, or by the next publication from the stages.
    """
    now = Published.load(workdir)
    mended = _mended(workdir, now)
    if mended != now:
        now = mended
        now.save(workdir)
    old = {name: digest for name, digest in now.before_files.items() if name not in now.files}
    sources = {name: now.path(workdir, name) for name in now.files}
    _place(workdir, sources, now.files, now.before_files)
    _remove_copies(workdir, old)


def _mended(workdir: Workdir, now: Published) -> Published:
    """Return what is published, repaired if published.json or a set that it names is missing or damaged."""
    if not now.set:
        return _found(workdir, now)
    names = {f"versions/{now.set}/{name}": digest for name, digest in now.files.items()}
    are_copied = workdir.digests(tuple(now.files)) == now.files
    if (are_copied and all(workdir.exists(name) for name in names)) or workdir.digests(tuple(names)) == names:
        return now
    if not are_copied:
        return _found(workdir, replace(now, set="", files={}, before="", before_files={}))
    with workdir.writing_folder(f"versions/{now.set}") as folder, storage_errors(folder):
        for name in now.files:
            _fill(folder / name, workdir.path(name), copy_file)
    return now


def _found(workdir: Workdir, now: Published) -> Published:
    """Return `now` with the newest undamaged set in `versions/` published. A set is named by a digest of its files."""
    whole: list[tuple[float, str, dict[str, str]]] = []
    for name in {file.split("/")[1] for file in workdir.ledger.below("versions")}:
        folder = f"versions/{name}"
        files = {file.removeprefix(f"{folder}/"): digest for file, digest in workdir.digests((folder,)).items()}
        if name == _name(files):
            whole.append((workdir.path(folder).stat().st_mtime, name, files))
    newest = sorted(whole, key=lambda found: found[:2])[-2:]
    if not newest:
        return now
    now = replace(now, set=newest[-1][1], files=newest[-1][2])
    return replace(now, before=newest[0][1], before_files=newest[0][2]) if len(newest) > 1 else now


def _name(files: Mapping[str, str]) -> str:
    return digest_of(files)[:16]


def place(workdir: Workdir) -> str:
    """Return the prefix of the last run's files: `attempt/` if an older model stays published, else empty."""
    return f"{ATTEMPT}/" if Published.load(workdir).attempt else ""


def metrics(workdir: Workdir, numbers: Evaluated, done: Collection[str]) -> Metrics:
    """Return the content of metrics.json: the numbers of evaluate, with the times of the stages that are up to date."""
    records = Records(workdir).timings(name for name in STAGES if name in done)
    found = Metrics(
        schema=1,
        shipped=numbers["shipped"],
        metric=numbers["metric"],
        class_names=numbers["class_names"],
        head=numbers["head"],
        fine_tuned=numbers["fine_tuned"],
        seeds=numbers["seeds"],
        per_class=numbers["per_class"],
        confusion=numbers["confusion"],
        min_probability=numbers["min_probability"],
        thresholds=numbers["thresholds"],
        earlier=numbers["earlier"],
        corrections=numbers["corrections"],
        familiarity=numbers["familiarity"],
        timings=records,
        throughput=times.throughput(records),
        share=times.shares(records),
    )
    if "heatmaps" in done:
        tests = workdir.read_json("stages/heatmaps/heatmaps.json")
        found["deletion"], found["background"] = tests["deletion"], tests["background"]
    if (described := read_run(workdir)) and "run_id" in described:
        found["run_id"] = described["run_id"]
    return found


def new_model(workdir: Workdir) -> str:
    """Return a line about the model that this run published, with the digest for `predict --model-sha256`."""
    published = Published.load(workdir)
    if not published.has_model or published.attempt:
        return ""
    return f"Model: {workdir.shown('model')}, SHA-256 of its model.json: {published.files['model/model.json']}"


def in_service(workdir: Workdir) -> str:
    """Return a line about the older model that stays published if this run has none, with its accuracy."""
    published = Published.load(workdir)
    if not published.has_model or not published.attempt:
        return ""
    line = f"The earlier model stays published: {workdir.shown('model')}"
    table = published.path(workdir, "predictions.parquet")
    if not table.exists():
        return f"{line}."
    then = pq.read_table(table, columns=["label", "predicted"])
    num_correct = sum(map(eq, then["label"].to_pylist(), then["predicted"].to_pylist()))
    accuracy = percent(num_correct / len(then))
    return f"{line}, accuracy {accuracy} on {counted(len(then), 'held-out photo', 'held-out photos')} of its run."


def _sources(workdir: Workdir, done: Collection[str]) -> dict[str, Path | bytes]:
    """Return the files to publish, by name in a set: a file of a stage, or the content of a file."""
    found: dict[str, Path | bytes] = {}
    for stage in (stage for name, stage in STAGES.items() if name in done):
        for name, place in stage.public.items():
            path = workdir.path(place)
            below = [file for file in everything_below(path) if file.is_file()]
            found |= {f"{name}/{file.relative_to(path).as_posix()}": file for file in below}
            if not below and path.exists():
                found[name] = path
    if "evaluate" in done:
        found["metrics.json"] = to_json(metrics(workdir, workdir.read_json("stages/evaluate/evaluation.json"), done))
    return found


def _publish_set(workdir: Workdir, sources: _Sources, digests: Mapping[str, str], before: Published) -> None:
    """Put a set into `versions/` and name it in published.json."""
    name = _name(digests)
    if workdir.digests((f"versions/{name}",)) != {f"versions/{name}/{file}": digest for file, digest in digests.items()}:
        with workdir.writing_folder(f"versions/{name}") as folder, storage_errors(folder):
            for file, source in sources.items():
                _fill(folder / file, source, link_or_copy)
    is_same = name == before.set
    now = replace(before, attempt={}) if is_same else Published(name, digests, before.set, before.files)
    if now != before:
        now.save(workdir)
        workdir.commit()  # In a bucket, too, the set must be published before the copies change.
    sets = {file.split("/")[1] for file in workdir.ledger.below("versions")}
    workdir.remove(*(f"versions/{old}" for old in sets - {now.set, now.before}))


def _place(
    workdir: Workdir, sources: _Sources, digests: Mapping[str, str], before: Mapping[str, str], prefix: str = ""
) -> None:
    """Copy files to their names below `prefix`. Files that are the same already are left alone.

    `before` has the digests of the copies that the last publication made, by which an edited table is recognised.
    """
    there = {name.removeprefix(prefix): d for name, d in workdir.digests(tuple(prefix + name for name in digests)).items()}
    changed = [name for name in sources if there.get(name) != digests[name]]
    is_edited = there.get(_EDITED) not in (None, before.get(_EDITED))
    for name in changed:
        if name == _EDITED and is_edited:
            _set_aside(workdir.path(prefix + name))
        if not name.startswith("model/"):
            with workdir.writing(prefix + name) as path:
                _fill(path, sources[name], copy_file)
    if any(name.startswith("model/") for name in changed):
        with workdir.writing_folder(f"{prefix}model") as folder, storage_errors(folder):
            for name in (name for name in sources if name.startswith("model/")):
                _fill(folder / name.removeprefix("model/"), sources[name], copy_file)


def _remove_copies(workdir: Workdir, files: Mapping[str, str], prefix: str = "") -> None:
    """Remove copies of files that are no longer in a set. An edited table is renamed instead."""
    edited = workdir.path(prefix + _EDITED)
    if _EDITED in files and edited.is_file() and digest_of_file(edited) != files[_EDITED]:
        _set_aside(edited)
    workdir.remove(*(prefix + name for name in files))


def _set_aside(edited: Path) -> None:
    """Rename an edited table to a name that is free."""
    names = (edited.with_name(f"{edited.stem}.edited{'' if k == 1 else f'-{k}'}{edited.suffix}") for k in count(1))
    with storage_errors(edited):
        edited.rename(next(name for name in names if not os.path.lexists(name)))


def _fill(path: Path, source: Path | bytes, copy: Callable[[Path, Path], None]) -> None:
    if isinstance(source, bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source)
    else:
        copy(source, path)


def _digest(source: Path | bytes) -> str:
    return sha256(source).hexdigest() if isinstance(source, bytes) else digest_of_file(source)
