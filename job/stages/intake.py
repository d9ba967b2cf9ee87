"""intake: list the source, decode every file once, write the image store and the table of what was found.

It is the only reader of untrusted bytes, and it never writes to the source.
"""

import io
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from job.config import IntakeConfig
from job.data.examples import Examples
from job.decoding.decode import SCHEMA, DecodeRules
from job.decoding.processes import Limits, Record, ShardTask, decode_shards, is_passing
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
# What the table holds where a file was not decoded.
_BLANK = {"status": "", "reason": "", "format": "", "mode": "", "sha256": "", "width": 0, "height": 0, "phash": 0}
_BLANK |= {"brightness": 0.0, "contrast": 0.0, "has_exif": False}
_COMMITS_AHEAD = 4


@dataclass(frozen=True)
class Intake:
    """Every file found, and the image store (uint8, N x size x size x 3) that `examples["row"]` points into."""

    examples: Examples
    cache: Cache
    store_name: str

    @classmethod
    def load(cls, context: Context) -> Self:
        return cls(Examples.load(context.workdir.path(TABLE)), context.cache, context.workdir.read_json(SUMMARY)["images"])

    @property
    def images(self) -> ArrayStore:
        return open_store(self.cache, self.store_name)


def intake(config: IntakeConfig, *, source: Source, listing: Listing, context: Context) -> Intake | None:
    """Each worker decodes its part of the photos; the chief what then still is missing. None for the others.

    Raises:
        DataUnusable: where class names cannot be told apart, or there is only one.
        StorageFailed, Stopped.
    """
    _check_class_names(listing)
    rules = DecodeRules(**{name: getattr(config, name) for name in DecodeRules.__dataclass_fields__})
    entries = [e for e in listing.entries if e.verdict is None]
    shards = {
        digest_of([[e.path, e.num_bytes, e.version] for e in shard]): tuple(shard)
        for shard in (entries[k : k + ROWS_PER_SHARD] for k in range(0, len(entries), ROWS_PER_SHARD))
    }
    folder = f"images-{digest_of([SCHEMA, source.uri, asdict(rules)])[:16]}"
    row_shape = (config.image_size, config.image_size, 3)
    writer = StoreWriter(context.cache.path(folder), row_shape, "uint8", context.cache.temporary)
    with Exchange(context.cache, [folder]) as exchange:
        exchange.fetch(folder, shards)
        found: dict[str, Shard] = {key: shard for key in shards if (shard := writer.committed(key))}
        num_missing = sum(len(shards[key]) for key in shards if key not in found)
        context.telemetry.found_finished(len(entries) - num_missing)
        context.cache.reserve(len(entries) * writer.row_bytes, num_missing * writer.row_bytes)
        own = context.peers.own([key for key in shards if key not in found])
        found |= _decode(config, {key: shards[key] for key in own}, source, rules, writer, context)
        exchange.flush()
        context.peers.meet()
        if not context.peers.is_chief:
            return None
        exchange.fetch(folder, shards.keys() - found.keys())
        found |= {key: shard for key in shards if key not in found and (shard := writer.committed(key))}
        found |= _decode(config, {k: v for k, v in shards.items() if k not in found}, source, rules, writer, context)
        name = context.cache.name(writer.finish([found[key].key for key in shards]).index_file)
    examples = _table(listing, [record for key in shards for record in found[key].extra])
    context.workdir.write_bytes(TABLE, examples.to_parquet())
    entries_and_digests = zip(listing.entries, examples["sha256"], strict=True)
    _remember(context.workdir, {e.path: (e.num_bytes, e.version, d) for e, d in entries_and_digests if e.verdict is None})
    context.workdir.write_json(SUMMARY, {"images": name})
    return Intake(examples, context.cache, name)


def source_digest(source: Source, listing: Listing, workdir: Workdir) -> str:
    """Return a digest of the content of the source. A file of the same size and version keeps its digest.

    Reads only files that changed since they were read last, by an intake or here, where the owner of the directory remembers
    it for the next run. Empty where no earlier intake knows these paths.
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
        [e.path, e.label, e.split, e.verdict, e.reason, known[e.path][2] if e.path in known else ""] for e in listing.entries
    ]
    return digest_of([listing.class_names, rows])


def _decode(
    config: IntakeConfig,
    shards: Mapping[str, tuple[Entry, ...]],
    source: Source,
    rules: DecodeRules,
    writer: StoreWriter,
    context: Context,
) -> dict[str, Shard]:
    """Each shard with its records, by what it is made from.

    A shard with a refusal that another try may not repeat gets a key that nobody will look for.
    """
    found: dict[str, Shard] = {}
    if not shards:
        return found
    tasks = (ShardTask(key, entries, writer.open_shard(len(entries))) for key, entries in shards.items())
    workers = usable_cores() if config.workers == "auto" else config.workers
    limits = Limits(min(workers, len(shards)), config.decode_timeout_s, config.worker_memory_mb)
    cpu_s_before = context.telemetry.cpu_s_elsewhere
    commits: deque[tuple[str, Future[Shard]]] = deque()
    with (
        context.telemetry.progress("decode", sum(map(len, shards.values())), "photos") as progress,
        # A thread, because a worker that is done must not wait until another one's shard is on the disk.
        ThreadPoolExecutor(1) as thread,
    ):
        for task in decode_shards(tasks, source, rules, limits, context):
            key = digest_of([task.key, own_mark()]) if any(map(is_passing, task.records)) else task.key
            commits.append((task.key, thread.submit(writer.commit, key, task.file, task.num_rows, task.records)))
            progress.advance(len(task.records))
            while commits and (commits[0][1].done() or len(commits) > _COMMITS_AHEAD):
                made_from, commit = commits.popleft()
                found[made_from] = commit.result()
        found |= {made_from: commit.result() for made_from, commit in commits}
    # Processes decode side by side: what each of them took if all did the same, of the cores that there are.
    decode_cpu_s = context.telemetry.cpu_s_elsewhere - cpu_s_before
    context.telemetry.add_spent("decode", decode_cpu_s / min(limits.num_workers, usable_cores()))
    return found


def _table(listing: Listing, records: list[Record]) -> Examples:
    """One row for each entry of the listing; `records` are those of the entries without a verdict, in order."""
    entries, decoded = listing.entries, iter(records)
    rows = [next(decoded) if e.verdict is None else {"status": e.verdict, "reason": e.reason} for e in entries]
    columns: dict[str, list[object]] = {name: [r.get(name, blank) for r in rows] for name, blank in _BLANK.items()}
    columns |= {"path": [e.path for e in entries], "label": [e.label for e in entries]}
    columns |= {"given_split": [e.split for e in entries]}
    columns["num_bytes"] = [r.get("num_bytes", e.num_bytes) for r, e in zip(rows, entries, strict=True)]
    has_pixels = np.isin(np.asarray(columns["status"]), ("used", "converted"))
    columns["row"] = np.where(has_pixels, np.cumsum(has_pixels) - 1, -1).tolist()
    return Examples.from_columns(columns, listing.class_names)


def _remember(workdir: Workdir, known: Mapping[str, tuple[int, str, str]]) -> None:
    """Size, version and SHA-256 of the file at each path; the last is empty where it could not be read."""
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
                f"The classes {seen[folded]!r} and {name!r} differ only by case, blanks or Unicode form. "
                "Rename one of them, or put their photos together."
            )
        seen[folded] = name
    if len(listing.class_names) < 2:
        raise DataUnusable(f"There is one class, {listing.class_names[0]!r}: a classifier needs two or more.")
