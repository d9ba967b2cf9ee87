"""JSON files that contain a digest of themselves, so that a damaged file counts as missing."""

from collections.abc import Mapping
from typing import Any

from job.storage.files import digest_of
from job.storage.workdir import Workdir

_DIGEST = "sha256"


def read_sealed(workdir: Workdir, name: str) -> Any:
    """Return the JSON object that `write_sealed` wrote; None if it is missing or damaged."""
    content = workdir.read_json(name)
    if not isinstance(content, dict):
        return None
    digest = content.pop(_DIGEST, None)
    return content if digest == digest_of(content) else None


def write_sealed(workdir: Workdir, name: str, content: Mapping[str, object]) -> None:
    """Write a JSON object with a digest of itself under the key "sha256". Raises as `Workdir.writing` does."""
    workdir.write_json(name, {**content, _DIGEST: digest_of(content)})
