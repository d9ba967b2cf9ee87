"""Completion records: what a run knows of the stages that it has finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from job.config import digest_of
from job.storage.sealed import read_sealed, write_sealed
from job.storage.workdir import Workdir

if TYPE_CHECKING:
    from job.pipeline import Stage


_RUN = "run.json"


def record_name(stage: str) -> str:
    """Where a stage's completion record lies."""
    return f"stages/{stage}.json"


def read_record(workdir: Workdir, stage: str) -> dict[str, Any] | None:
    """The completion record of a stage; None where the stage is not finished or its record is damaged."""
    return read_sealed(workdir, record_name(stage))


def write_record(workdir: Workdir, stage: str, record: Mapping[str, Any]) -> None:
    """Say that a stage is finished, and with what."""
    write_sealed(workdir, record_name(stage), record)


def read_run(workdir: Workdir) -> dict[str, Any] | None:
    """The description of the run in run.json; None where it is missing or damaged."""
    return read_sealed(workdir, _RUN)


def write_run(workdir: Workdir, described: Mapping[str, Any]) -> None:
    """Write run.json."""
    write_sealed(workdir, _RUN, described)


def outcome(record: Mapping[str, Any]) -> str:
    """A digest of all that a stage left."""
    return digest_of([record["outputs"], record["stores"]])


def timings(workdir: Workdir, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What `job.times` reads, of each of these stages whose record stands, in this order."""
    records = {name: read_record(workdir, name) for name in stages}
    kept = ("wall_s", "cpu_s", "count", "spent_s", "done")
    return {name: {what: r[what] for what in kept if what in r} for name, r in records.items() if r}


def made_with(workdir: Workdir, stages: Mapping[str, Stage], settings: Mapping[str, str]) -> list[str]:
    """The stages whose records stand and were made with these settings, given as digests by stage, and from such stages
    alone. Others are of an earlier run, which a run that stopped early left as they were."""
    names: list[str] = []
    for name, stage in stages.items():
        record = read_record(workdir, name)
        before = {b for b in stage.after if record and b in record["key"]}
        if record and record["key"]["its settings"] == settings[name] and before <= set(names):
            names.append(name)
    return names


def contradictions(workdir: Workdir, stages: Mapping[str, Stage]) -> list[str]:
    """Return what of these stages does not belong together, a line each: files that are not what a stage left, and stages
    that were made from something else than what is there now."""
    found = []
    records = {name: record for name in stages if (record := read_record(workdir, name))}
    for name, record in records.items():
        now = workdir.digests(stages[name].outputs)
        for path in sorted(record["outputs"].keys() | now.keys()):
            then, is_now = record["outputs"].get(path), now.get(path)
            if then != is_now:
                found.append(f"{path}: {name} left {_short(then)}, there is {_short(is_now)}")
        for before in stages[name].after:
            used, left = record["key"].get(before), outcome(records[before]) if before in records else None
            if used and used != left:
                found.append(f"{name}: made from {before} {_short(used)}, there is {_short(left)}")
    return found


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "nothing"
