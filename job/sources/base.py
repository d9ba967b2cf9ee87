"""What a source of photos is: it lists entries in a fixed order and reads their bytes. Nothing else knows more."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, Self

from job.sources.local import Files

if TYPE_CHECKING:
    from job.config import IntakeConfig

Split = Literal["train", "val", "test"]

# The names of splits in folders, tables and prepared data sets, in any case. `test` holds the held-out photos.
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_CLASSES_SHOWN = 10


@dataclass(frozen=True)
class Reading:
    """The settings of [intake] that say where labels and splits stand, and which links are followed."""

    layout: Literal["auto", "classes", "splits"] = "auto"
    label_from: Literal["folder", "parent", "name"] = "folder"
    label_pattern: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    test_values: tuple[str, ...] = ()
    val_values: tuple[str, ...] = ()
    allow_joined_labels: bool = False
    follow_links: bool = False
    link_roots: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: "IntakeConfig") -> Self:
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


class Entry(NamedTuple):
    """One thing that the source lists. A tuple, because a frozen dataclass takes longer to make than its file to look at.

    `path` is relative to the source, parts joined by `/`, always valid Unicode. `version` changes when the bytes may have.
    `verdict` is set where the listing alone decides what becomes of the entry, with `reason` in plain words.
    `real_path` is where the bytes are, where a link stands in `path`; it begins with `/` outside of the source.
    `group`: what was taken together (a patient, a camera), which never crosses splits.
    """

    path: str
    label: str | None
    split: Split | None
    num_bytes: int
    version: str
    verdict: Literal["ignored", "quarantined"] | None = None
    reason: str = ""
    real_path: str = ""
    group: str = ""


@dataclass(frozen=True)
class Listing:
    """All entries, sorted by path, and the classes: every class that the source names, with photos or without.

    `notes`: sentences for the user about the listing as a whole. `labels_from` and `splits_from` say where these stand.
    """

    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    labels_from: str = "the class folders"
    splits_from: str = "the split folders"

    def summary(self) -> tuple[str, ...]:
        """Return what was understood, in a few lines: classes, splits, what was left out, and the notes."""
        names = ", ".join(repr(n) if "," in n else n for n in self.class_names[:_CLASSES_SHOWN])
        more = len(self.class_names) - _CLASSES_SHOWN
        classes = f"{len(self.class_names):,} classes, from {self.labels_from}: {names}"
        lines = [f"{classes} and {more:,} more." if more > 0 else f"{classes}."]
        splits = Counter(entry.split for entry in self.entries if entry.verdict is None)
        if splits.keys() - {None} == {"train"}:
            lines.append(
                f"Only a training split is given, of {splits['train']:,} files: validation and test are taken out of it."
            )
        elif splits.keys() - {None}:
            shown = {"train": "train", "val": "validation", "test": "test (held out)", None: "in none"}
            counts = ", ".join(f"{name} {splits[split]:,}" for split, name in shown.items() if splits[split])  # type: ignore[index]
            lines.append(f"Splits, from {self.splits_from}: {counts} files.")
        else:
            lines.append(f"No splits are given: the job divides {splits[None]:,} files into train, validation and test.")
        for verdict in ("ignored", "quarantined"):
            reasons = Counter(re.sub(r"\d+", "N", entry.reason) for entry in self.entries if entry.verdict == verdict)
            if reasons:
                listed = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(3))
                others = f"; {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
                lines.append(f"{verdict.capitalize()}: {reasons.total():,} ({listed}{others}).")
        return (*lines, *self.notes)


def split_names(names: Iterable[str]) -> dict[str, Split]:
    """Return the splits that these names of folders stand for, by name.

    A name with words around it, such as `seg_train` or `training_set`, counts where another name has the same words around
    another split: a class may be called `bullet_train`.
    """
    names = list(names)
    if plain := {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}:
        return plain
    families: dict[tuple[str, ...], dict[str, Split]] = defaultdict(dict)
    for name in names:
        words = re.findall(r"[^\W\d_]+|\d+", name.lower())
        for place, word in enumerate(words):
            if word in SPLITS:
                families[tuple(words[:place] + words[place + 1 :])][name] = SPLITS[word]
    complete = [family for family in families.values() if "train" in family.values() and len(set(family.values())) > 1]
    return {name: split for family in complete for name, split in family.items()}


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
