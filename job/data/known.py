"""The table of known files: the SHA-256 of the bytes behind each path, size and version, so that nothing is read for it.

The table lies in the cache, in a file for each source. So a run with another output directory reads no file again. If it is
missing, paths and digests come from the table of the last intake, and each file is read once to compare it.
"""

import io
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from job.decoding.decode import can_read_heic
from job.decoding.processes import lacks_plugin
from job.runtime.context import Context
from job.sources.base import Entry, Listing, Source
from job.storage.files import digest_of
from job.stores.cache import Cache

TABLE = "stages/intake/table.parquet"
_LACKS_PLUGIN = " lacks plugin"


class File(NamedTuple):
    """Size in bytes and version of a file when it was read, and the SHA-256 of its bytes (empty if reading failed).

    The SHA-256 has the suffix `_LACKS_PLUGIN` if the plugin that the file needs was not installed.
    """

    num_bytes: int
    version: str
    sha256: str


@dataclass
class Known:
    """The files of a source, by path."""

    cache: Cache
    uri: str
    files: dict[str, File] = field(default_factory=dict)

    @classmethod
    def load(cls, cache: Cache, uri: str) -> Self:
        return cls(cache, uri, _files(cache.read(_name(uri))))

    def save(self) -> None:
        """Write the table to the cache. Raises: StorageFailed."""
        columns = list(zip(*self.files.values(), strict=True)) or [(), (), ()]
        table = pa.table({"path": list(self.files), **dict(zip(File._fields, map(list, columns), strict=True))})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self.cache.write(_name(self.uri), buffer.getvalue())

    def sha256(self, entry: Entry) -> str:
        """Return the SHA-256 of a file's bytes; empty if it has to be read for that."""
        found = self.files.get(entry.path)
        return found.sha256.removesuffix(_LACKS_PLUGIN) if found and found[:2] == (entry.num_bytes, entry.version) else ""

    def put(self, entry: Entry, digest: str, *, lacks_its_plugin: bool | None = None) -> None:
        """Remember the SHA-256 of a file's bytes, and whether its plugin was missing. None: as before for the same bytes."""
        before = self.files.get(entry.path)
        marked = before is not None and before.sha256 == digest + _LACKS_PLUGIN
        marked = marked if lacks_its_plugin is None else lacks_its_plugin
        self.files[entry.path] = File(entry.num_bytes, entry.version, digest + _LACKS_PLUGIN if marked else digest)


def source_digest(source: Source, listing: Listing, context: Context) -> str:
    """Return a digest of the content of the source; empty if a path is new since the last intake.

    Only files whose size or version has changed since they were last read are read again. If this run holds the lease, their
    new digests are remembered for the next run.
    """
    known = Known.load(context.cache, source.uri)
    looked_at = [e for e in listing.entries if e.verdict is None]
    if not all(e.path in known.files for e in looked_at):
        known.files = {**_of_last_intake(context), **known.files}
    if not all(e.path in known.files for e in looked_at):
        return ""
    changed = [e for e in looked_at if not known.sha256(e)]
    for entry, payload in zip(changed, source.read(changed), strict=True):
        if isinstance(payload, bytes):
            known.put(entry, sha256(payload).hexdigest())
    if changed and context.workdir.lease:
        known.save()
    contents = {e.path: _content(known.files[e.path].sha256) for e in looked_at}
    rows = [[e.path, e.label, e.split, e.verdict, e.reason, contents.get(e.path, ""), e.group] for e in listing.entries]
    return digest_of([listing.class_names, rows])


def _of_last_intake(context: Context) -> dict[str, File]:
    """Return the files in the table of the last intake, without their versions."""
    try:
        columns = pq.read_table(context.workdir.path(TABLE), columns=["path", "num_bytes", "sha256", "status", "reason"])
    except (OSError, pa.ArrowInvalid):
        return {}
    return {
        row["path"]: File(
            row["num_bytes"], "", row["sha256"] + (_LACKS_PLUGIN if lacks_plugin(row["status"], row["reason"]) else "")
        )
        for row in columns.to_pylist()
    }


def _content(digest: str) -> str:
    """Return the digest that stands for the content of a file. Installing the plugin that the file needs changes it."""
    return digest.removesuffix(_LACKS_PLUGIN) if digest.endswith(_LACKS_PLUGIN) and can_read_heic() else digest


def _name(uri: str) -> str:
    return f"files-{digest_of(uri)[:16]}/known.parquet"


def _files(content: bytes | None) -> dict[str, File]:
    try:
        columns = pq.read_table(io.BytesIO(content or b"")).to_pydict()
        return {
            path: File(*values) for path, *values in zip(columns["path"], *(columns[n] for n in File._fields), strict=True)
        }
    except (OSError, pa.ArrowInvalid, KeyError):
        return {}
