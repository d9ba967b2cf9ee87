"""intake: list the source, decode every photo that is not stored yet, and write the table of what was found.

It is the only reader of untrusted bytes, and it never writes to the source.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from job.data.examples import Examples
from job.data.known import TABLE, Known
from job.decoding.deep import FULL_BIT_DEPTH
from job.decoding.photos import PhotoStore, bit_depth_of, has_pixels
from job.decoding.processes import Limits, ShardTask, decode_shards, is_passing, lacks_plugin
from job.decoding.rules import DecodeRules
from job.decoding.worker import Record
from job.errors import DataUnusable
from job.runtime.cgroups import usable_cores
from job.runtime.context import Context
from job.runtime.peers import told
from job.sections import IntakeConfig
from job.sources.base import Entry, Listing, Source, folded
from job.stores.arrays import ArrayStore
from job.stores.cache import Cache
from job.stores.exchange import Exchange, open_store

SUMMARY = "stages/intake/intake.json"
# The values in the table for a file that was not decoded.
_BLANK = {"status": "", "reason": "", "format": "", "mode": "", "sha256": "", "width": 0, "height": 0, "phash": 0}
_BLANK |= {"brightness": 0.0, "contrast": 0.0, "has_exif": False}
_COMMITS_AHEAD = 4
# Small tasks let all processes end at about the same time, and leave small shards.
_MIN_TASK_PHOTOS, _TASKS_PER_PROCESS, _MAX_SMALL_TASKS = 32, 4, 32


@dataclass(frozen=True)
class Intake:
    """The table of all files, and the image store (uint8, N x size x size x 3).

    `examples["row"]` is the row of a photo in the store. Rows are sorted by the SHA-256 of the files, so that nothing
    depends on the order in which photos were added. The values of 16-bit photos were scaled by `bit_depth`.
    """

    examples: Examples
    cache: Cache
    store_name: str
    bit_depth: int

    @classmethod
    def load(cls, context: Context) -> Self:
        summary = context.workdir.read_json(SUMMARY)
        examples = Examples.load(context.workdir.path(TABLE))
        return cls(examples, context.cache, summary["images"], summary.get("bit_depth", FULL_BIT_DEPTH))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about the data set as a whole."""
        if self.bit_depth == FULL_BIT_DEPTH:
            return ()
        return (
            f"16-bit photos are scaled as {self.bit_depth}-bit ones: {2**self.bit_depth - 1:,} is white. "
            "intake.bit_depth sets another depth.",
        )

    @property
    def images(self) -> ArrayStore:
        return open_store(self.cache, self.store_name)


def intake(config: IntakeConfig, *, source: Source, listing: Listing, context: Context) -> Intake | None:
    """Decode the photos of a listing, and return the result on the chief, None on the other workers.

    Each worker decodes its part of the missing photos. The chief then decodes the photos that are still missing.

    Raises:
        DataUnusable: if class names differ only by letter case, spaces, Unicode form or a final .0, or there is one class.
        StorageFailed: if the source cannot be read, or the output cannot be written.
        Stopped: if a stop is requested.
    """
    _check_class_names(listing)
    photos = _Photos(config, source, [e for e in listing.entries if e.verdict is None], context)
    if photos.store.follows_version_5:
        context.telemetry.line(
            "Version 0.5 or an earlier one has decoded these photos for a cache of another layout: once more."
        )
    with Exchange(context.cache, [photos.store.folder]) as exchange:
        bit_depth = photos.complete(exchange)
        if not context.peers.is_chief:
            return None
        records = photos.records()
        in_order = [records[k] for k in _by_content(records)] + [r for r in records if not has_pixels(r)]
        name = context.cache.name(photos.store.finish(in_order, bit_depth).index_file)
    examples = _table(listing, records)
    context.workdir.write_bytes(TABLE, examples.to_parquet())
    context.workdir.write_json(SUMMARY, {"images": name} | ({} if bit_depth == FULL_BIT_DEPTH else {"bit_depth": bit_depth}))
    found = Intake(examples, context.cache, name, bit_depth)
    for note in found.notes:
        context.telemetry.line(note)
    return found


class _Photos:
    """The photos of a data set while all workers decode those that are missing in the store."""

    def __init__(self, config: IntakeConfig, source: Source, entries: Sequence[Entry], context: Context) -> None:
        self._config, self._source, self._entries, self._context = config, source, entries, context
        self._number = {e.path: k for k, e in enumerate(entries)}
        self.store = PhotoStore(config, source.uri, context.cache)
        self.known = Known.load(context.cache, source.uri)
        self._passing: dict[int, Record] = {}  # Refusals that another try may not repeat, by the numbers of their entries.
        self._refresh()

    def complete(self, exchange: Exchange) -> int:
        """Decode the missing photos, and return the bit depth of the data set. Afterwards the chief has every photo.

        The bit depth is known only after all photos were decoded once. Then 16-bit photos that were scaled by another depth
        are decoded again. So the result depends only on the depth, and not on the first guess.
        """
        peers, telemetry = self._context.peers, self._context.telemetry
        if peers.is_chief:
            self._fetch(exchange)
        missing = told(peers, self._missing() if peers.is_chief else [])
        telemetry.found_finished(len(self._entries) - len(missing))
        while missing:
            self._share(missing, peers.same(self._bit_depth), exchange)
            missing = told(peers, self._missing() if peers.is_chief else [])
        return self._bit_depth

    def records(self) -> list[Record]:
        """Return the record of each entry, and remember what was read. Call it on the chief, after `complete`."""
        bit_depth, records = self._bit_depth, []
        for number, entry in enumerate(self._entries):
            found = self._record(number)
            assert found is not None
            record = self.store.writer.note(self.store.key(found, bit_depth)) or found
            lacking = lacks_plugin(record["status"], record["reason"])
            self.known.put(entry, record["sha256"], lacks_its_plugin=lacking)
            records.append(record)
        self.known.save()
        return records

    @property
    def _bit_depth(self) -> int:
        """The bit depth that fits the photos that were found so far."""
        return bit_depth_of(self._config, [r for r in map(self._record, range(len(self._entries))) if r])

    def _record(self, number: int) -> Record | None:
        """Return the record of an entry, of any bit depth; None if the photo has to be read or decoded."""
        if number in self._passing:
            return self._passing[number]
        found = self.store.found(self.known.sha256(self._entries[number]))
        return found[1] if found else None

    def _missing(self, bit_depth: int | None = None) -> list[int]:
        """Return the numbers of the entries without a record, or without pixels of this depth (default: the right one)."""
        looked_at = [k for k in range(len(self._entries)) if k not in self._passing]
        found = {k: r for k in looked_at if (r := self._record(k))}
        is_there = dict(zip(found, self.store.has(list(found.values()), bit_depth or self._bit_depth), strict=True))
        return [k for k in looked_at if not is_there.get(k)]

    def _share(self, missing: list[int], bit_depth: int, exchange: Exchange) -> None:
        """Decode this worker's part of the missing photos. On the chief, then decode those that did not arrive."""
        context, row_bytes = self._context, self.store.writer.row_bytes
        context.cache.reserve(len(self._entries) * row_bytes, len(missing) * row_bytes)
        self._decode(context.peers.own(missing), bit_depth)
        exchange.flush()
        context.peers.meet()
        if context.peers.is_chief and context.peers.count > 1:
            self._refresh()
            self._fetch(exchange)
            self._decode(self._missing(bit_depth), bit_depth)

    def _refresh(self) -> None:
        """Take over what other workers and earlier runs have decoded."""
        for entry, digest in self.store.refresh():
            number = self._number.get(entry.path)
            if number is not None and self._entries[number][3:5] == entry[3:5]:  # The same size and version.
                self.known.put(self._entries[number], digest)

    def _fetch(self, exchange: Exchange) -> None:
        """Download the shards with missing photos that the bucket has."""
        lacking = [self._entries[k] for k in self._missing()] if self._context.cache.objects else []
        if lacking:
            digests = {self.known.sha256(e) for e in lacking} - {""}
            files = {(e.path, e.num_bytes, e.version) for e in lacking}
            exchange.fetch(self.store.folder, lambda shard: self.store.is_wanted(shard, digests, files))
            self._refresh()

    def _decode(self, numbers: Sequence[int], bit_depth: int) -> None:
        """Decode photos into new shards. Photos that turn out to be in the store are only read."""
        if not numbers:
            return
        config, telemetry = self._config, self._context.telemetry
        processes = usable_cores() if config.workers == "auto" else config.workers
        num_tasks = min(_TASKS_PER_PROCESS * processes, max(processes, _MAX_SMALL_TASKS))
        size = min(self.store.writer.max_rows, max(_MIN_TASK_PHOTOS, -(-len(numbers) // num_tasks)))
        parts = {str(k): numbers[k : k + size] for k in range(0, len(numbers), size)}
        limits = Limits(min(processes, len(parts)), config.decode_timeout_s, config.worker_memory_mb)
        rules = DecodeRules.of(config, bit_depth)
        cpu_s_before = telemetry.decoders_cpu_s
        commits: deque[Future[None]] = deque()
        with (
            telemetry.progress("decode", len(numbers), "photos") as progress,
            # Shards are committed in a thread, so that no decode process waits until the shard of another is on the disk.
            ThreadPoolExecutor(1) as thread,
        ):
            for task in decode_shards(self._tasks(parts), self._source, rules, limits, telemetry, self._context.stop):
                self._take(task, parts[task.key])
                commits.append(thread.submit(self.store.commit, task, bit_depth))
                progress.advance(len(task.records))
                while commits and (commits[0].done() or len(commits) > _COMMITS_AHEAD):
                    commits.popleft().result()
            for commit in commits:
                commit.result()
        # The processes decode in parallel, so their CPU time is divided by the number of cores that they used.
        decode_cpu_s = telemetry.decoders_cpu_s - cpu_s_before
        telemetry.add_spent("decode", decode_cpu_s / min(limits.num_workers, usable_cores()))

    def _tasks(self, parts: Mapping[str, Sequence[int]]) -> Iterator[ShardTask]:
        by_size = self.store.by_size()
        for key, numbers in parts.items():
            entries = tuple(self._entries[k] for k in numbers)
            unread = {e.num_bytes for e in entries if not self.known.sha256(e)}
            stored = set().union(*(by_size.get(num_bytes, ()) for num_bytes in unread))
            stored -= {self.known.sha256(e) for e in entries}  # These photos are known, and something of them is missing.
            yield ShardTask(key, entries, self.store.writer.open_shard(len(entries)), frozenset(stored))

    def _take(self, task: ShardTask, numbers: Sequence[int]) -> None:
        for number, record in zip(numbers, task.records, strict=True):
            self.known.put(self._entries[number], record["sha256"])
            if is_passing(record):
                self._passing[number] = record
            else:
                self._passing.pop(number, None)
        num_stored = sum(record["status"] == "stored" for record in task.records)
        self._context.telemetry.found_finished(num_stored)


def _table(listing: Listing, records: Sequence[Record]) -> Examples:
    """Return the table, with a row for each entry. `records` are those of the entries without a verdict, in order."""
    entries, decoded = listing.entries, iter(records)
    rows = [next(decoded) if e.verdict is None else {"status": e.verdict, "reason": e.reason} for e in entries]
    columns: dict[str, list[object]] = {name: [r.get(name, blank) for r in rows] for name, blank in _BLANK.items()}
    columns |= {"path": [e.path for e in entries], "label": [e.label for e in entries]}
    columns |= {"given_split": [e.split for e in entries], "given_group": [e.group for e in entries]}
    columns["num_bytes"] = [r.get("num_bytes", e.num_bytes) for r, e in zip(rows, entries, strict=True)]
    order = _by_content(rows)
    numbers = np.full(len(rows), -1)
    numbers[order] = np.arange(len(order))
    columns["row"] = numbers.tolist()
    return Examples.from_columns(columns, listing.class_names)


def _by_content(records: Sequence[Record]) -> list[int]:
    """Return the positions of the photos with pixels, sorted by the SHA-256 of their bytes, then by position."""
    return sorted((k for k, r in enumerate(records) if has_pixels(r)), key=lambda k: (records[k]["sha256"], k))


def _check_class_names(listing: Listing) -> None:
    seen: dict[str, str] = {}
    for name in listing.class_names:
        if folded(name) in seen:
            raise DataUnusable(
                f"The classes {seen[folded(name)]!r} and {name!r} differ only by case, spaces, Unicode form or a final .0. "
                "Rename one of them, or give their photos the same class."
            )
        seen[folded(name)] = name
    if len(listing.class_names) < 2:
        raise DataUnusable(
            f"There is one class, {listing.class_names[0]!r}: a classifier needs two or more. Put the photos of each class "
            "into a folder of its own, or give a table of labels: --labels FILE."
        )
