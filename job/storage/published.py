"""The content of published.json: which set of results is published, and which one was before it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from job.storage.workdir import Workdir

PUBLISHED = "published.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Published:
    """The content of published.json. `set` and `before` name the published set and the one before it.

    `files`, `before_files` and `attempt` map names to SHA-256, for the two sets and for the folder `attempt/`.
    """

    set: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    before_files: Mapping[str, str] = field(default_factory=dict)
    attempt: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, workdir: Workdir) -> Self:
        """Return what is published. It is empty if the file is missing or damaged."""
        found = workdir.read_sealed(PUBLISHED)
        if found is None or found.pop("schema") != _SCHEMA:
            return cls()
        return cls(**found)

    def save(self, workdir: Workdir) -> None:
        """Write the file. Raises as `Workdir.writing` does."""
        workdir.write_sealed(PUBLISHED, {"schema": _SCHEMA, **asdict(self)})

    @property
    def has_model(self) -> bool:
        """True if a model is published."""
        return "model/model.json" in self.files

    def path(self, workdir: Workdir, name: str) -> Path:
        """Return the path of a file in the published set."""
        return workdir.path(f"versions/{self.set}/{name}")
