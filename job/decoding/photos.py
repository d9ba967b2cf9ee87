"""The store of decoded photos. What the decoder has found in a file is kept under the SHA-256 of the file's bytes.

Two things change the pixels of some photos, so their keys contain it: 16-bit photos depend on the bit depth of the data set,
and HEIC photos on the plugin. Files that were refused have a record and no pixels.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict

from job.decoding.decode import SCHEMA, can_read_heic
from job.decoding.deep import FULL_BIT_DEPTH, MIN_BIT_DEPTH, needed_bit_depth
from job.decoding.processes import ShardTask, is_outdated, is_passing, lacks_plugin
from job.decoding.rules import DecodeRules
from job.decoding.worker import Record
from job.sections import IntakeConfig
from job.sources.base import Entry
from job.storage.files import digest_of
from job.stores.arrays import ArrayStore, Shard, StoreWriter
from job.stores.cache import Cache


class PhotoStore:
    """The photos that were decoded with these settings, of all sources and runs that share the cache.

    `folder` is its name in the cache. A shard's `extra` lists the files that were read for it, so the digests of files that
    another worker, or a killed run, has read are known, too.
    """

    def __init__(self, config: IntakeConfig, source_uri: str, cache: Cache) -> None:
        rules = asdict(DecodeRules.of(config, FULL_BIT_DEPTH))
        del rules["bit_depth"]
        self.folder = f"images-{digest_of([SCHEMA, rules])[:16]}"
        self._source, self._cache = digest_of(source_uri), cache
        self._of_version_5 = cache.path(f"images-{digest_of([SCHEMA, source_uri, rules])[:16]}")
        shape = (config.image_size, config.image_size, 3)
        self.writer = StoreWriter(cache.path(self.folder), shape, "uint8", cache.temporary)

    def refresh(self) -> Iterator[tuple[Entry, str]]:
        """Look for new shards. Yield the files of this source that were read for them, with the SHA-256 of their bytes."""
        for shard in self.writer.refresh():
            for path, num_bytes, version, digest in self._files(shard):
                yield Entry(path, None, None, num_bytes, version), digest

    @property
    def follows_version_5(self) -> bool:
        """True if version 0.5 or an earlier one has decoded this source, and nothing is decoded here yet."""
        return self._of_version_5.exists() and next(self.writer.notes(), None) is None

    def found(self, digest: str) -> tuple[str, Record] | None:
        """Return a key and the record of the file with this SHA-256; None if it has to be decoded."""
        for key in _keys(digest):
            if (record := self.writer.note(key)) is not None and not is_outdated(record):
                return key, record
        return None

    def key(self, record: Record, bit_depth: int) -> str:
        """Return the key under which the pixels of a photo are stored."""
        deep = bit_depth if "peak" in record else None
        heic = record["format"] == "HEIC" and not lacks_plugin(record["status"], record["reason"])
        return _key(record["sha256"], deep, heic)

    def has(self, records: Sequence[Record], bit_depth: int) -> list[bool]:
        """Return for each record whether an undamaged shard has it, and the pixels of this depth if it has any."""
        keys = [self.key(record, bit_depth) for record in records]
        has_row = self.writer.has(keys)
        found = zip(records, keys, has_row, strict=True)
        return [bool(row) if has_pixels(record) else self.writer.note(key) is not None for record, key, row in found]

    def by_size(self) -> dict[int, set[str]]:
        """Return the SHA-256 of all files that need not be decoded again, by their sizes in bytes."""
        sizes: dict[int, set[str]] = defaultdict(set)
        for record in self.writer.notes():
            if not is_outdated(record):
                sizes[record["num_bytes"]].add(record["sha256"])
        return sizes

    def commit(self, task: ShardTask, bit_depth: int) -> None:
        """Keep the decoded photos of a task. What another try may find different is not kept."""
        decoded = [r for r in task.records if r["status"] != "stored"]
        keys = [self.key(r, bit_depth) for r in decoded if has_pixels(r)]
        notes = {self.key(r, bit_depth): r for r in decoded if r["sha256"] and not is_passing(r)}
        read = [(e, r["sha256"]) for e, r in zip(task.entries, task.records, strict=True) if r["sha256"]]
        files = [[entry.path, entry.num_bytes, entry.version, digest] for entry, digest in read]
        self.writer.commit(task.file, keys, notes, {"source": self._source, "files": files})

    def finish(self, records: Sequence[Record], bit_depth: int) -> ArrayStore:
        """Write the index of the store of these photos, in this order. The records of refused files belong to it, too."""
        keys = [self.key(r, bit_depth) for r in records]
        rows = [key for key, r in zip(keys, records, strict=True) if has_pixels(r)]
        noted = [key for key in keys if self.writer.note(key) is not None]
        return self.writer.finish(rows, noted=noted, compacts=self._cache.may_be_swept)

    def is_wanted(self, shard: Shard, digests: Collection[str], files: Collection[tuple[str, int, str]]) -> bool:
        """Return whether a shard has a photo with one of these digests, or the digest of one of these files."""
        if any(record["sha256"] in digests for record in shard.notes.values()):
            return True
        return any((path, num_bytes, version) in files for path, num_bytes, version, _ in self._files(shard))

    def _files(self, shard: Shard) -> Sequence[tuple[str, int, str, str]]:
        read = shard.extra or {}  # A merged shard has none: what was read is in the table of known files by then.
        return read["files"] if read.get("source") == self._source else ()


def has_pixels(record: Record) -> bool:
    """Return whether a record is that of a photo which was decoded."""
    return record["status"] in ("used", "converted")


def bit_depth_of(config: IntakeConfig, records: Sequence[Record]) -> int:
    """Return the bit depth that the configuration sets, or else the smallest one that holds the values of all photos."""
    if config.bit_depth != "auto":
        return config.bit_depth
    return needed_bit_depth(max((record["peak"] for record in records if "peak" in record), default=0))


def _keys(digest: str) -> Iterator[str]:
    """Yield each key under which something may be stored for a file."""
    if not digest:
        return
    for heic in (False, True) if can_read_heic() else (False,):
        for depth in (None, *range(FULL_BIT_DEPTH, MIN_BIT_DEPTH - 1, -1)):
            yield _key(digest, depth, heic)


def _key(digest: str, bit_depth: int | None, has_heic: bool) -> str:
    return digest_of([digest, bit_depth, has_heic]) if bit_depth or has_heic else digest
