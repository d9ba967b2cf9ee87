"""A prepared data set of tensorflow-datasets: photos and labels in shards of TFRecord files.

Each record is read at its own offset and checked against its checksum, without TensorFlow. So a decode process starts fast,
any photo can be read directly, and a damaged record loses only one photo (docs/decisions/0015-tfds.md).
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from job.errors import DataUnusable
from job.sources.base import SPLITS, Entry, Listing, Split
from job.sources.opening import opened, raise_of_the_machine
from job.sources.walk import quarantined

_FRAME_BYTES = 16  # Before a record: its length (8 bytes) and the length's checksum (4). Behind it: its checksum (4).


class Shard(NamedTuple):
    """A TFRecord file of a split, by its name in the folder of the data set."""

    file: str
    num_examples: int


@dataclass(frozen=True)
class NamedSource:
    """A prepared data set of tensorflow-datasets. The path `train/000123` is the example `train[123]` there.

    The version of an entry is `shard:offset:checksum` of its record. It is the same on every machine.
    """

    uri: str
    folder: Path
    shards: Mapping[str, tuple[Shard, ...]]
    image_key: str
    label_key: str | None
    label_names: tuple[str, ...]
    patience_s: ClassVar[float] = 0.0

    def prepare(self) -> None:
        import google_crc32c  # noqa: F401
        from tensorflow_datasets.proto import tf_example_pb2  # noqa: F401

    def listing(self) -> Listing:
        """Return all examples. Every record is read once, because the labels are in the records. Raises: DataUnusable."""
        entries: list[Entry] = []
        for name, shards in self.shards.items():
            split = SPLITS.get(name.lower()) if self.label_key is not None else None
            if split is None and self.label_key is not None:
                count = sum(shard.num_examples for shard in shards)
                reason = f"a split beside train, validation and test, of {count:,} examples"
                entries.append(Entry(f"{name}/", None, None, 0, "", "ignored", reason))
                continue
            try:
                entries += self._entries(name, split)
            except OSError as error:
                fault = f"cannot be read ({error.strerror}), so {self.uri} is not complete"
                raise DataUnusable(f"{error.filename}: {fault}. Delete its folder and prepare it again.") from error
        if {entry.split for entry in entries if entry.verdict is None} == {"train"}:  # Then the job makes the splits.
            entries = [entry._replace(split=None) for entry in entries]
        entries.sort(key=attrgetter("path"))
        labels, splits = "the labels of the data set", "the splits of the data set"
        return Listing(tuple(entries), tuple(sorted(self.label_names)), (), labels, splits)

    def location(self, entry: Entry) -> str:
        return str(self.folder / self._file_of(entry))

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        for name, group in groupby(entries, self._file_of):
            try:
                file = opened(self.folder / name)
            except OSError as error:
                raise_of_the_machine(error, name)
                yield from (error for _ in group)
                continue
            with file:
                for entry in group:
                    yield self._payload(file.fileno(), entry)

    def _file_of(self, entry: Entry) -> str:
        return self.shards[entry.path.rpartition("/")[0]][int(entry.version.partition(":")[0])].file

    def _payload(self, file: int, entry: Entry) -> bytes | OSError:
        _, offset, checksum = entry.version.split(":")
        try:
            record, stored = _read_record(file, int(offset))
            if stored != checksum:
                return OSError(errno.EIO, "the data set is not the one that was listed")
            if _checksum(record) != stored:
                return OSError(errno.EIO, "its record is damaged")
            return self._image(_features(record))
        except OSError as error:
            return error
        except MemoryError:
            return OSError(errno.ENOMEM, "the record is larger than the memory of a decode process")

    def _image(self, features: Any) -> bytes:
        values = features[self.image_key].bytes_list.value
        return bytes(values[0]) if values else b""

    def _entries(self, name: str, split: Split | None) -> Iterator[Entry]:
        digits = max(6, len(str(sum(shard.num_examples for shard in self.shards[name]))))
        first = 0
        for place, shard in enumerate(self.shards[name]):
            for number, (where, record, fault) in enumerate(_records(self.folder / shard.file, shard.num_examples), first):
                path, version = f"{name}/{number:0{digits}d}", f"{place}:{where}"
                yield quarantined(path, None, split, fault) if fault else self._entry(path, split, version, record)
            first += shard.num_examples

    def _entry(self, path: str, split: Split | None, version: str, record: bytes) -> Entry:
        try:
            features = _features(record)
        except OSError as error:
            return quarantined(path, None, split, f"cannot be read: {error.strerror}")
        num_bytes = len(self._image(features))
        if self.label_key is None:
            return Entry(path, None, None, num_bytes, version)
        labels = features[self.label_key].int64_list.value
        if len(labels) == 1 and 0 <= labels[0] < len(self.label_names):
            return Entry(path, self.label_names[labels[0]], split, num_bytes, version)
        said = ", ".join(map(str, labels)) or "empty"
        return quarantined(path, None, split, f"unlabelled: its label is {said}, and classes begin at 0", num_bytes)


def _records(path: Path, count: int) -> Iterator[tuple[str, bytes, str]]:
    """Yield (`offset:checksum`, bytes, fault) for each record. The fault says what is wrong with it, or is empty."""
    offset, fault = 0, ""
    with opened(path) as file:
        for _ in range(count):
            if not fault:  # After a damaged record, the offset of the next one is unknown.
                try:
                    record, checksum = _read_record(file.fileno(), offset)
                except OSError as error:
                    fault = f"cannot be read: {error.strerror}"
            yield ("", b"", fault) if fault else (f"{offset}:{checksum}", record, "")
            offset += _FRAME_BYTES + len(record) if not fault else 0


def _read_record(file: int, offset: int) -> tuple[bytes, str]:
    """Return the record that begins at `offset`, and its stored checksum, not checked yet. Raises: OSError."""
    header = os.pread(file, 12, offset)
    if len(header) < 12:
        raise OSError(errno.EIO, "its shard ends before it")
    length = int.from_bytes(header[:8], "little")
    if _checksum(header[:8]) != header[8:].hex():
        raise OSError(errno.EIO, "its shard is damaged at it or before it")
    if offset + _FRAME_BYTES + length > os.fstat(file).st_size:
        raise OSError(errno.EIO, "its shard ends within it")
    return os.pread(file, length, offset + 12), os.pread(file, 4, offset + 12 + length).hex()


def _checksum(data: bytes) -> str:
    """Return the masked CRC-32C of data in hexadecimal (https://www.tensorflow.org/tutorials/load_data/tfrecord)."""
    import google_crc32c

    crc = google_crc32c.value(data)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(4, "little").hex()


def _features(record: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise OSError(errno.EIO, "its record is damaged") from error
