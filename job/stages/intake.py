"""intake: list the source, decode every file once, write the image store and the table of what was found.

It is the only reader of untrusted bytes, and it never writes to the source.
"""

import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from job.config import IntakeConfig
from job.data.examples import Examples
from job.decoding.decode import SCHEMA, DecodeRules, can_read_heic
from job.decoding.deep import FULL_BIT_DEPTH, MIN_BIT_DEPTH, needed_bit_depth
from job.decoding.processes import Limits, Record, ShardTask, decode_shards, is_outdated, is_passing, lacks_plugin
from job.errors import DataUnusable
from job.runtime.cgroups import usable_cores
from job.runtime.context import Context
from job.sources.base import Entry, Listing, Source
from job.storage.files import digest_of, own_mark
from job.storage.workdir import Workdir
from job.stores.arrays import ROWS_PER_SHARD, ArrayStore, Shard, StoreWriter
from job.stores.cache import Cache
from job.stores.exchange import Exchange, open_store

TABLE = "stages/intake/table.parquet"
KNOWN = "stages/intake/known.parquet"
SUMMARY = "stages/intake/intake.json"
# The values in the table for a file that was not decoded.
_BLANK = {"status": "", "reason": "", "format": "", "mode": "", "sha256": "", "width": 0, "height": 0, "phash": 0}
_BLANK |= {"brightness": 0.0, "contrast": 0.0, "has_exif": False}
_COMMITS_AHEAD = 4
_LACKS_PLUGIN = " lacks plugin"


@dataclass(frozen=True)
class Intake:
    """The table of all files, and the image store (uint8, N x size x size x 3).

    `examples["row"]` is the row of a photo in the store. The values of 16-bit photos were scaled by `bit_depth`.
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

    Each worker decodes its part of the photos. The chief then decodes the photos that are still missing.

    Raises:
        DataUnusable: if class names differ only by letter case, spaces or Unicode form, or there is only one class.
        StorageFailed: if the source cannot be read, or the output cannot be written.
        Stopped: if a stop is requested.
    """
    _check_class_names(listing)
    shards = _Shards(config, source, [e for e in listing.entries if e.verdict is None], context)
    with Exchange(context.cache, [shards.folder]) as exchange:
        bit_depth = shards.complete(exchange)
        if not context.peers.is_chief:
            return None
        name = context.cache.name(shards.finish().index_file)
    examples = _table(listing, shards.records)
    context.workdir.write_bytes(TABLE, examples.to_parquet())
    _remember(context.workdir, _known(listing, examples))
    context.workdir.write_json(SUMMARY, {"images": name} | ({} if bit_depth == FULL_BIT_DEPTH else {"bit_depth": bit_depth}))
    found = Intake(examples, context.cache, name, bit_depth)
    for note in found.notes:
        context.telemetry.line(note)
    return found


@dataclass(frozen=True)
class _Decoded:
    """A shard, and the bit depth that its 16-bit photos were scaled by."""

    shard: Shard
    bit_depth: int

    @cached_property
    def peaks(self) -> list[int]:
        """The largest value of each 16-bit photo in the shard."""
        return [record["peak"] for record in self.shard.extra if "peak" in record]


class _Shards:
    """The shards of a data set while all workers decode them. A key says which photos a shard holds."""

    def __init__(self, config: IntakeConfig, source: Source, entries: Sequence[Entry], context: Context) -> None:
        self._config, self._source, self._context = config, source, context
        self._entries = {
            digest_of([[e.path, e.num_bytes, e.version] for e in shard]): tuple(shard)
            for shard in (entries[k : k + ROWS_PER_SHARD] for k in range(0, len(entries), ROWS_PER_SHARD))
        }
        self._found: dict[str, _Decoded] = {}  # By the keys of `_entries`.
        rules = asdict(DecodeRules.of(config, FULL_BIT_DEPTH))
        del rules["bit_depth"]  # Only shards with 16-bit photos depend on it, and their names contain it.
        self.folder = f"images-{digest_of([SCHEMA, source.uri, rules])[:16]}"
        row_shape = (config.image_size, config.image_size, 3)
        self._writer = StoreWriter(context.cache.path(self.folder), row_shape, "uint8", context.cache.temporary)

    @property
    def records(self) -> list[Record]:
        """The record of each photo, in order."""
        return [record for key in self._entries for record in self._found[key].shard.extra]

    @property
    def peaks(self) -> list[int]:
        """The largest value of each 16-bit photo that is known."""
        return [peak for decoded in self._found.values() for peak in decoded.peaks]

    @property
    def _bit_depth(self) -> int:
        """The bit depth that the configuration sets, or else the smallest one that holds all values known so far."""
        if self._config.bit_depth != "auto":
            return self._config.bit_depth
        return needed_bit_depth(max(self.peaks, default=0))

    def finish(self) -> ArrayStore:
        """Write the index of the store. Call it after every shard is decoded."""
        return self._writer.finish([self._found[key].shard.key for key in self._entries])

    def complete(self, exchange: Exchange) -> int:
        """Decode the missing shards, and return the bit depth of the data set. Afterwards the chief has every shard.

        The bit depth is known only after all photos are decoded. Then each worker decodes those of its shards again that
        have 16-bit photos and were scaled by another depth. The names of these shards contain the depth. So the store
        depends only on the depth, and not on the first guess or on the shards of earlier runs.
        """
        peers = self._context.peers
        missing = self._look_up(exchange)
        self._context.telemetry.found_finished(self._num_photos(self._entries) - self._num_photos(missing))
        self._share(peers.own(missing), self._bit_depth, exchange)
        is_whole = not self._unfinished(self._bit_depth)
        bit_depth = peers.same(None if is_whole else self._bit_depth)  # The chief has seen all photos.
        if bit_depth is not None:
            own = set(peers.own(list(self._entries))) & self._found.keys()
            again = [key for key in self._unfinished(bit_depth) if key in own]
            self._share(again, bit_depth, exchange, wanted=bit_depth)
        return self._bit_depth

    def _unfinished(self, bit_depth: int | None = None) -> list[str]:
        """Return the keys without a shard; and if a depth is given, those whose 16-bit photos were scaled by another one."""
        return [
            key
            for key in self._entries
            if (found := self._found.get(key)) is None
            or (bit_depth is not None and found.peaks and found.bit_depth != bit_depth)
        ]

    def _look_up(self, exchange: Exchange, bit_depth: int | None = None) -> list[str]:
        """Use stored shards for the unfinished keys, also those of other workers. Return the keys that stay unfinished."""
        self._take_stored(bit_depth)
        if unfinished := self._unfinished(bit_depth):
            exchange.fetch(self.folder, [name for key in unfinished for name, _ in _names(key, bit_depth)])
            self._take_stored(bit_depth)
        return self._unfinished(bit_depth)

    def _take_stored(self, bit_depth: int | None) -> None:
        for key in self._unfinished(bit_depth):
            for name, scaled_by in _names(key, bit_depth):
                shard = self._writer.committed(name)
                if shard and not any(map(is_outdated, shard.extra)):
                    self._found[key] = _Decoded(shard, scaled_by)
                    break

    def _share(self, own: Sequence[str], bit_depth: int, exchange: Exchange, wanted: int | None = None) -> None:
        """Decode this worker's part. On the chief, then decode what is still missing.

        With `wanted`, shards of another bit depth count as missing.
        """
        row_bytes = self._writer.row_bytes
        num_missing = self._num_photos(self._unfinished(wanted))
        self._context.cache.reserve(self._num_photos(self._entries) * row_bytes, num_missing * row_bytes)
        self._decode(own, bit_depth)
        exchange.flush()
        self._context.peers.meet()
        if self._context.peers.is_chief:
            self._decode(self._look_up(exchange, wanted), bit_depth)

    def _decode(self, keys: Sequence[str], bit_depth: int) -> None:
        """Decode shards. If another try may give another result for a photo, the name of its shard is random.

        No later run looks for a random name, so such a photo is decoded again.
        """
        if not keys:
            return
        config, telemetry = self._config, self._context.telemetry
        tasks = (ShardTask(key, self._entries[key], self._writer.open_shard(len(self._entries[key]))) for key in keys)
        workers = usable_cores() if config.workers == "auto" else config.workers
        limits = Limits(min(workers, len(keys)), config.decode_timeout_s, config.worker_memory_mb)
        rules = DecodeRules.of(config, bit_depth)
        cpu_s_before = telemetry.decoders_cpu_s
        commits: deque[tuple[str, Future[Shard]]] = deque()
        with (
            telemetry.progress("decode", self._num_photos(keys), "photos") as progress,
            # Shards are committed in a thread, so that no decode process waits until the shard of another is on the disk.
            ThreadPoolExecutor(1) as thread,
        ):
            for task in decode_shards(tasks, self._source, rules, limits, telemetry, self._context.stop):
                name = _name(task.key, task.records, bit_depth)
                name = digest_of([name, own_mark()]) if any(map(is_passing, task.records)) else name
                commits.append((task.key, thread.submit(self._writer.commit, name, task.file, task.num_rows, task.records)))
                progress.advance(len(task.records))
                while commits and (commits[0][1].done() or len(commits) > _COMMITS_AHEAD):
                    key, commit = commits.popleft()
                    self._found[key] = _Decoded(commit.result(), bit_depth)
            self._found |= {key: _Decoded(commit.result(), bit_depth) for key, commit in commits}
        # The processes decode in parallel, so their CPU time is divided by the number of cores that they used.
        decode_cpu_s = telemetry.decoders_cpu_s - cpu_s_before
        telemetry.add_spent("decode", decode_cpu_s / min(limits.num_workers, usable_cores()))

    def _num_photos(self, keys: Iterable[str]) -> int:
        return sum(len(self._entries[key]) for key in keys)


def _name(key: str, records: Iterable[Record], bit_depth: int) -> str:
    """Return the name under which a shard is stored: its key, or a digest of the key and what its photos also depend on.

    16-bit photos depend on the bit depth. HEIC photos that were decoded depend on the plugin.
    """
    has_deep = any("peak" in record for record in records)
    has_heic = any(record["format"] == "HEIC" and not lacks_plugin(record["status"], record["reason"]) for record in records)
    return _named(key, bit_depth if has_deep else None, has_heic)


def _names(key: str, bit_depth: int | None) -> Iterator[tuple[str, int]]:
    """Yield each name under which a shard may be stored, with its bit depth; for all depths if none is given."""
    depths = range(FULL_BIT_DEPTH, MIN_BIT_DEPTH - 1, -1) if bit_depth is None else (bit_depth,)
    for depth in (None, *depths):
        for has_heic in (False, True):
            yield _named(key, depth, has_heic), depth or FULL_BIT_DEPTH


def _named(key: str, bit_depth: int | None, has_heic: bool) -> str:
    return digest_of([key, bit_depth, has_heic]) if bit_depth or has_heic else key


def source_digest(source: Source, listing: Listing, workdir: Workdir) -> str:
    """Return a digest of the content of the source; empty if no earlier intake knows the same paths.

    Only files whose size or version has changed since they were last read are read again. If this run holds the lease, their
    new digests are remembered for the next run.
    """
    known = _recall(workdir)
    looked_at = [e for e in listing.entries if e.verdict is None]
    if known.keys() != {e.path for e in looked_at}:
        return ""
    changed = [e for e in looked_at if known[e.path][:2] != (e.num_bytes, e.version) or not known[e.path][2]]
    fresh = {
        e.path: (e.num_bytes, e.version, sha256(payload).hexdigest())
        for e, payload in zip(changed, source.read(changed), strict=True)
        if isinstance(payload, bytes)
    }
    known |= fresh
    if fresh and workdir.lease:
        _remember(workdir, known)
    rows = [
        [e.path, e.label, e.split, e.verdict, e.reason, _content(known[e.path][2]) if e.path in known else "", e.group]
        for e in listing.entries
    ]
    return digest_of([listing.class_names, rows])


def _table(listing: Listing, records: list[Record]) -> Examples:
    """Return the table, with a row for each entry. `records` are those of the entries without a verdict, in order."""
    entries, decoded = listing.entries, iter(records)
    rows = [next(decoded) if e.verdict is None else {"status": e.verdict, "reason": e.reason} for e in entries]
    columns: dict[str, list[object]] = {name: [r.get(name, blank) for r in rows] for name, blank in _BLANK.items()}
    columns |= {"path": [e.path for e in entries], "label": [e.label for e in entries]}
    columns |= {"given_split": [e.split for e in entries], "given_group": [e.group for e in entries]}
    columns["num_bytes"] = [r.get("num_bytes", e.num_bytes) for r, e in zip(rows, entries, strict=True)]
    has_pixels = np.isin(np.asarray(columns["status"]), ("used", "converted"))
    columns["row"] = np.where(has_pixels, np.cumsum(has_pixels) - 1, -1).tolist()
    return Examples.from_columns(columns, listing.class_names)


def _known(listing: Listing, examples: Examples) -> dict[str, tuple[int, str, str]]:
    """Return what `_remember` writes, by the path of the file."""
    columns = (examples[name] for name in ("sha256", "status", "reason"))
    return {
        e.path: (e.num_bytes, e.version, digest + _LACKS_PLUGIN if lacks_plugin(status, reason) else digest)
        for e, digest, status, reason in zip(listing.entries, *columns, strict=True)
        if e.verdict is None
    }


def _content(digest: str) -> str:
    """Return the digest that stands for the content of a file. Installing the plugin that the file needs changes it."""
    return digest.removesuffix(_LACKS_PLUGIN) if digest.endswith(_LACKS_PLUGIN) and can_read_heic() else digest


def _remember(workdir: Workdir, known: Mapping[str, tuple[int, str, str]]) -> None:
    """Write size, version and SHA-256 of the file at each path.

    The SHA-256 is empty if the file could not be read, and has the suffix `_LACKS_PLUGIN` if its plugin was not installed.
    """
    table = pa.table(
        {
            "path": list(known),
            "num_bytes": [size for size, _, _ in known.values()],
            "version": [version for _, version, _ in known.values()],
            "sha256": [digest for _, _, digest in known.values()],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    workdir.write_bytes(KNOWN, buffer.getvalue())


def _recall(workdir: Workdir) -> dict[str, tuple[int, str, str]]:
    try:
        columns = pq.read_table(workdir.path(KNOWN)).to_pydict()
    except (OSError, pa.ArrowInvalid):
        return {}
    return {
        path: (size, version, digest)
        for path, size, version, digest in zip(
            *(columns[n] for n in ("path", "num_bytes", "version", "sha256")), strict=True
        )
    }


def _check_class_names(listing: Listing) -> None:
    import unicodedata

    seen: dict[str, str] = {}
    for name in listing.class_names:
        folded = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if folded in seen:
            raise DataUnusable(
                f"The classes {seen[folded]!r} and {name!r} differ only by case, spaces or Unicode form. "
                "Rename one of them, or give their photos the same class."
            )
        seen[folded] = name
    if len(listing.class_names) < 2:
        raise DataUnusable(f"There is one class, {listing.class_names[0]!r}: a classifier needs two or more.")
