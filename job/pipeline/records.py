"""Records of finished stages: the files of each stage, what they were made from, and whether that is still valid."""

from collections.abc import Iterable, Mapping
from typing import cast

from job.pipeline.table import STAGES
from job.reporting.summaries import Run
from job.reporting.times import Timing
from job.storage.files import digest_of
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore
from job.stores.cache import Cache
from job.stores.exchange import complete, is_listed, sweep_bucket
from job.stores.sweeping import sweep, unwanted, wanted

_RUN = "run.json"


class Record(Timing):
    """The content of stages/NAME.json. `key`, `outputs` and `stores` map names to digests."""

    stage: str
    schema: int
    key: dict[str, str]
    outputs: dict[str, str]
    stores: dict[str, str]


def read_run(workdir: Workdir) -> Run | None:
    """Return the description of the run in run.json; None if it is missing or damaged."""
    return workdir.read_sealed(_RUN)


def write_run(workdir: Workdir, described: Run) -> None:
    """Write run.json."""
    workdir.write_sealed(_RUN, described)


class Records:
    """The records of the stages of one output directory, and the stores in the cache that they name.

    A record is written last. A stage that was interrupted has none, and a damaged record counts as none.
    """

    def __init__(self, workdir: Workdir, cache: Cache | None = None) -> None:
        self._workdir, self._cache = workdir, cache
        self._intact: set[str] = set()  # Stores that were checked already, which takes a while.

    def __getitem__(self, stage: str) -> Record | None:
        """Return the record of a stage; None if the stage is not finished."""
        return self._workdir.read_sealed(_name(stage))

    def write(self, stage: str, record: Record) -> None:
        """Write the record of a finished stage."""
        self._workdir.write_sealed(_name(stage), record)

    def remove(self, stage: str) -> None:
        """Remove the record of a stage, which then counts as not finished."""
        self._workdir.remove(_name(stage))

    def exists(self, stage: str) -> bool:
        """Return whether there is a record of a stage, even a damaged one."""
        return self._workdir.exists(_name(stage))

    def outcome(self, stage: str) -> str | None:
        """Return a digest of everything that a stage left; None if it is not finished."""
        record = self[stage]
        return _outcome(record) if record else None

    def why_stale(self, stage: str, key: Mapping[str, str]) -> str:
        """Return why a stage has to run; empty if it does not. `key` has the digests of what it would be made from now."""
        record = self[stage]
        if record is None:
            return "it has not been finished before"
        if record.get("schema") != STAGES[stage].schema:
            return "its code has changed"
        changed = [what for what in key if record.get("key", {}).get(what) != key[what]]
        if changed or record["key"].keys() != key.keys():
            return f"{changed[0] if changed else 'what it depends on'} changed"
        outputs = self._workdir.digests(STAGES[stage].outputs)
        damaged = [path for path, digest in record["outputs"].items() if outputs.get(path) != digest]
        return f"{damaged[0]} is missing or damaged" if damaged else ""

    def stores_intact(self, stage: str) -> bool:
        """Return whether every store of a stage is there and undamaged."""
        record = self[stage]
        if record is None:
            return False
        for store in set(record["stores"]) - self._intact:
            if not self._is_intact(store):
                return False
            self._intact.add(store)
        return True

    def _is_intact(self, store: str) -> bool:
        assert self._cache is not None
        if self._workdir.lease is None and self._cache.objects:
            return is_listed(self._cache, store)  # A dry run does not download stores, which may be large.
        complete(self._cache, store)
        return ArrayStore.is_intact(self._cache.path(store))

    def sweep(self) -> None:
        """Remove stores that no record names, unless other runs share the cache."""
        cache = self._cache
        if cache is None or not cache.may_be_swept:
            return
        names = {store for stage in STAGES if (record := self[stage]) for store in record["stores"]}
        indexes = [cache.path(name) for name in names]
        there = [index for index in indexes if index.exists()]
        with self._workdir.held():
            sweep(unwanted(cache.root, there))
        if there == indexes and (kept := wanted(indexes)) is not None:
            sweep_bucket(cache, kept)

    def timings(self, stages: Iterable[str]) -> dict[str, Timing]:
        """Return the times of those of these stages that are finished, in this order, for `job.reporting.times`."""
        records = {stage: self[stage] for stage in stages}
        kept = ("wall_s", "cpu_s", "count", "spent_s", "done")
        return {s: cast(Timing, {what: r.get(what) for what in kept if what in r}) for s, r in records.items() if r}

    def made_with(self, settings: Mapping[str, str]) -> list[str]:
        """Return the stages that were made with these settings, and only from such stages. `settings` has digests by stage.

        Other stages are left from an earlier run, because the last run stopped before them.
        """
        names: list[str] = []
        for name, stage in STAGES.items():
            record = self[name]
            before = {b for b in stage.after if record and b in record["key"]}
            if record and record["key"]["its settings"] == settings[name] and before <= set(names):
                names.append(name)
        return names

    def contradictions(self, stages: Iterable[str]) -> list[str]:
        """Return a line for each contradiction between the records and the files.

        That is a file that differs from what its stage left, a stage that was made from another outcome than the one that is
        there now, or a stage of another version of the job.
        """
        found = []
        records = {name: record for name in stages if (record := self[name])}
        for name, record in records.items():
            if record["schema"] != STAGES[name].schema:
                found.append(f"{name}: made by another version of the job")
            now = self._workdir.digests(STAGES[name].outputs)
            for path in sorted(record["outputs"].keys() | now.keys()):
                then, is_now = record["outputs"].get(path), now.get(path)
                if then != is_now:
                    found.append(f"{path}: {name} left {_short(then)}, there is {_short(is_now)}")
            for before in STAGES[name].after:
                used, left = record["key"].get(before), _outcome(records[before]) if before in records else None
                if used and used != left:
                    found.append(f"{name}: made from {before} {_short(used)}, there is {_short(left)}")
        return found


def _name(stage: str) -> str:
    return f"stages/{stage}.json"


def _outcome(record: Record) -> str:
    return digest_of([record["outputs"], record["stores"]])


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "nothing"
