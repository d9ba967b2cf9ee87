"""published.json: which set of results is in service, and which one was before it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from job.storage.sealed import read_sealed, write_sealed
from job.storage.workdir import Workdir

PUBLISHED = "published.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Published:
    """The content of published.json. `files`, `before` and `attempt` map names to SHA-256, those of the set in service, of
    the one before it, and of `attempt/`."""

    set: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    before_files: Mapping[str, str] = field(default_factory=dict)
    attempt: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, workdir: Workdir) -> Self:
        """Return what is published; nothing where the file is missing or damaged."""
        found = read_sealed(workdir, PUBLISHED)
        if found is None or found.pop("schema") != _SCHEMA:
            return cls()
        return cls(**found)

    def save(self, workdir: Workdir) -> None:
        """Write the file. Raises as `Workdir.writing` does."""
        write_sealed(workdir, PUBLISHED, {"schema": _SCHEMA, **asdict(self)})

    @property
    def has_model(self) -> bool:
        """Whether there is a model in service."""
        return "model/model.json" in self.files

    def path(self, workdir: Workdir, name: str) -> Path:
        """Return where a file of the set in service lies whole."""
        return workdir.path(f"versions/{self.set}/{name}")
