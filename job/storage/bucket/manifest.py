"""The manifest of an output directory in a bucket: the files that belong to it, and the objects to remove."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from job.errors import StorageFailed
from job.storage import claim
from job.storage.bucket.objects import join
from job.storage.ledger import is_inside

NAME = ".manifest.json"
_SCHEMA = 2


@dataclass(frozen=True)
class File:
    """A file: the version, SHA-256 and size in bytes of its object. The SHA-256 is empty if it is not known."""

    version: str
    sha256: str
    num_bytes: int


def encode(owner: str, files: Mapping[str, File], removed: Mapping[str, str]) -> bytes:
    """Return the text of a manifest.

    `owner` is the token of a lease. `removed` has the versions of objects that are to be removed, by name.
    """
    described = {name: vars(file) for name, file in sorted(files.items())}
    return json.dumps({"schema": _SCHEMA, "owner": owner, "files": described, "removed": removed}, indent=1).encode()


def decode(text: bytes, uri: str) -> tuple[dict[str, File], dict[str, str]]:
    """Return the files of a manifest, and the objects to remove with their versions.

    Raises:
        UsageError: if version 0.1 has written it.
        StorageFailed: if this version cannot read it.
    """
    try:
        manifest: Any = json.loads(text)
        if manifest["schema"] == 1:
            raise claim.of_version_1(uri)
        if manifest["schema"] != _SCHEMA:
            raise ValueError
        return {n: File(**file) for n, file in manifest["files"].items() if is_inside(n)}, dict(manifest["removed"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageFailed(
            f"{join(uri, NAME)}: this is not a manifest that this version can read. Give another --out."
        ) from error
