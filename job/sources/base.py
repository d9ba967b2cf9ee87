"""What a source of photos is: it lists entries in a fixed order and reads their bytes. Nothing else knows more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from job.sources.local import Files

Split = Literal["train", "val", "test"]

SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Entry(NamedTuple):
    """One thing that the source lists. A tuple, because a frozen dataclass takes longer to make than its file to look at.

    `path` is relative to the source, parts joined by `/`, always valid Unicode. `version` changes when the bytes may have.
    `verdict` is set where the listing alone decides what becomes of the entry, with `reason` in plain words.
    `real_path` is where the bytes are, where a link stands in `path`.
    """

    path: str
    label: str | None
    split: Split | None
    num_bytes: int
    version: str
    verdict: Literal["ignored", "quarantined"] | None = None
    reason: str = ""
    real_path: str = ""


@dataclass(frozen=True)
class Listing:
    """All entries, sorted by path, and the classes: every class that the source names, with photos or without.

    `notes`: what a user should know about the listing as a whole, in plain words.
    """

    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """Picklable, because decode processes read for themselves."""

    @property
    def uri(self) -> str: ...

    @property
    def patience_s(self) -> float:
        """How long the bytes of an entry may be on their way."""
        ...

    def prepare(self) -> None:
        """Load what reading needs. Called once in each decode process, before its memory is limited."""

    def listing(self) -> Listing: ...

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        """The bytes of each entry, in order; an error in the place of what could not be read."""
        ...

    def location(self, entry: Entry) -> str:
        """The path or URI of the file that an entry is read from."""
        ...


class PhotoFolder(Source, Protocol):
    """A source that is a folder, wherever it lies: a table may name what is in it."""

    def files(self) -> Files: ...
