"""JSON files that hold a digest of themselves, so that a file with a changed bit counts as one that was never written."""

from collections.abc import Mapping
from typing import Any

from job.storage.files import digest_of
from job.storage.workdir import Workdir

_DIGEST = "sha256"


def read_sealed(workdir: Workdir, name: str) -> Any:
    """Return the JSON object that `write_sealed` wrote; None where it is missing or not what was written."""
    content = workdir.read_json(name)
    if not isinstance(content, dict):
        return None
    digest = content.pop(_DIGEST, None)
    return content if digest == digest_of(content) else None


def write_sealed(workdir: Workdir, name: str, content: Mapping[str, object]) -> None:
    """Write a JSON object, with a digest of itself under "sha256"."""
    workdir.write_json(name, {**content, _DIGEST: digest_of(content)})
