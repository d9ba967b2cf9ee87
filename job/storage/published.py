"""published.json: which set of results is in service, and which one was before it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from job.storage.ledger import is_inside
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
        found = workdir.read_json(PUBLISHED)
        try:
            named = {name: found[name] for name in cls.__dataclass_fields__}
            files = [name for part in ("files", "before_files", "attempt") for name in named[part]]
            sets = all(isinstance(named[name], str) for name in ("set", "before"))
            if found["schema"] == _SCHEMA and sets and all(map(is_inside, files)):
                return cls(**named)
        except (TypeError, KeyError, AttributeError):
            pass
        return cls()

    @property
    def has_model(self) -> bool:
        """Whether there is a model in service."""
        return "model/model.json" in self.files

    def path(self, workdir: Workdir, name: str) -> Path:
        """Return where a file of the set in service lies whole."""
        return workdir.path(f"versions/{self.set}/{name}")

    def content(self) -> dict[str, object]:
        """Return what is to be written to the file."""
        return {"schema": _SCHEMA, **asdict(self)}
