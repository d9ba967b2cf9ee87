"""The work of a decode process: it decodes shard after shard, and tells the main process about each photo."""

import io
import os
import resource
import time
import traceback
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from job.decoding import headers
from job.decoding.decode import decode
from job.decoding.rules import BadPhoto, DecodeRules, Facts
from job.decoding.wire import MAX_LINE_BYTES, NewsLine, RecordLine, plain, tell
from job.errors import JobError, code_of
from job.runtime.stop import ignore_signals
from job.sources.base import Entry, Source
from job.sources.local import IMAGE_EXTENSIONS
from job.stores.arrays import HEADER_BYTES

Record = dict[str, Any]

_MAX_TRACEBACK = MAX_LINE_BYTES // 8  # In JSON a character takes up to six bytes, and a line has other fields.
_MAX_REASON = 2000


def work(
    tasks: Connection, news: Connection, records: Connection, source: Source, rules: DecodeRules, memory_mb: int
) -> None:
    """Decode shard after shard until the main process closes the pipe. This is the main function of a decode process."""
    ignore_signals()
    row_bytes = rules.image_size**2 * 3
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # libtiff prints warnings about files. The record has the reason in plain words.
    try:
        source.prepare()
        _limit_memory(memory_mb)
        tell(news, NewsLine(kind="ready"))
        while True:
            entries, start, row, path, stored = tasks.recv()
            with open(path, "r+b", buffering=0) as file:
                for entry, payload in zip(entries[start:], source.read(entries[start:]), strict=True):
                    record, pixels = _examine(entry, payload, rules, stored)
                    if pixels is not None:
                        _write_all(file, pixels, HEADER_BYTES + row * row_bytes)
                        row += 1
                    tell(records, RecordLine(**record))
            tell(news, NewsLine(kind="done", cpu_s=time.process_time()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except JobError as error:
        tell(news, NewsLine(kind="error", code=code_of(error), text=str(error)))
    except OSError as error:
        tell(news, NewsLine(kind="storage", text=error.strerror or str(error)))
    except Exception:  # This is a bug: if the photo is at fault, `decode` raises BadPhoto.
        tell(news, NewsLine(kind="bug", text=plain(traceback.format_exc()[-_MAX_TRACEBACK:])))


def _limit_memory(memory_mb: int) -> None:
    """Limit the memory that this process may take to `memory_mb` MiB more than it has now."""
    statm = Path("/proc/self/statm")
    in_use = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    wanted, most = in_use + memory_mb * 2**20, resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def _write_all(file: io.FileIO, pixels: memoryview, offset: int) -> None:
    while pixels:
        written = os.pwrite(file.fileno(), pixels, offset)
        pixels, offset = pixels[written:], offset + written


def _examine(
    entry: Entry, payload: bytes | OSError, rules: DecodeRules, stored: frozenset[str]
) -> tuple[Record, memoryview | None]:
    if isinstance(payload, OSError):
        return record_of(entry, "quarantined", f"cannot be read: {payload.strerror}"), None
    digest = sha256(payload).hexdigest()
    if digest in stored:
        return record_of(entry, "stored", "", None, len(payload), digest), None
    try:
        photo = decode(payload, rules)
    except BadPhoto as error:
        suffix = Path(entry.path).suffix.lower()
        status = "quarantined" if error.is_image or suffix in IMAGE_EXTENSIONS or not suffix else "ignored"
        reason, facts = error.reason, error.facts
        if suffix == ".dcm" and reason == headers.UNKNOWN:  # Old scanners write DICOM without the bytes that identify it.
            reason, facts = headers.DICOM, Facts("DICOM")
        return record_of(entry, status, reason, facts, len(payload), digest), None
    status = "converted" if photo.converted else "used"
    reason = "; ".join(filter(None, (photo.converted, photo.notes)))
    return record_of(entry, status, reason, photo.facts, len(payload), digest), photo.pixels_HWC.data.cast("B")


def record_of(
    entry: Entry, status: str, reason: str, facts: Facts | None = None, num_bytes: int | None = None, digest: str = ""
) -> Record:
    size = entry.num_bytes if num_bytes is None else num_bytes
    return {
        "status": status,
        "reason": plain(reason[:_MAX_REASON]),
        "num_bytes": size,
        "sha256": digest,
        **{name: fact for name, fact in vars(facts or Facts()).items() if fact is not None},
    }
