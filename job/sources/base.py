"""The interface of a source of photos: it lists entries in a fixed order, and reads the bytes of an entry."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from job.sources.local import Files

Split = Literal["train", "val", "test"]

# The names of splits in folders, tables and prepared data sets; letter case is ignored. `test` holds the held-out photos.
SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_CLASSES_SHOWN = 10
_NUMBERED_SPLIT = re.compile(rf"({'|'.join(name for name, split in SPLITS.items() if split != 'train')})[ _-]?\d+")


class Entry(NamedTuple):
    """A file, or a row of a table, that a source lists.

    `path` is relative to the source and valid Unicode, with `/` between its parts; `real_path` is that of the file itself if
    `path` contains a link, and begins with `/` outside of the source. `version` changes with the bytes of the file.
    `verdict` is set if the listing alone decides about the entry, and `reason` says why. Photos of one `group`, such as a
    patient or a camera, stay in one split.

    It is a tuple because making a frozen dataclass takes longer than the system call that looks at the file.
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


def in_words(names: Sequence[str], most: int = 4) -> str:
    """Return the first names, and how many there are more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def some_classes(names: Sequence[str]) -> str:
    """Return the first ten names of classes, and how many there are more. A name with a comma is quoted."""
    return in_words([repr(name) if "," in name else name for name in names], _CLASSES_SHOWN)


@dataclass(frozen=True)
class Listing:
    """All entries of a source, sorted by path, and its classes, also those without photos.

    `notes` are sentences for the user about the source as a whole. `labels_from` and `splits_from` say, in words, where
    labels and splits were read.
    """

    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    labels_from: str = "the class folders"
    splits_from: str = "the split folders"

    def summary(self) -> tuple[str, ...]:
        """Return a few lines that say how the source was understood: classes, splits, ignored files, and the notes."""
        lines = [f"{len(self.class_names):,} classes, from {self.labels_from}: {some_classes(self.class_names)}."]
        splits = Counter(entry.split for entry in self.entries if entry.verdict is None)
        if splits.keys() - {None} == {"train"}:
            lines.append(
                f"Only a training split is given, of {splits['train']:,} files: validation and test are taken out of it."
            )
        elif splits.keys() - {None}:
            shown = {"train": "train", "val": "validation", "test": "test (held out)", None: "in none"}
            counts = ", ".join(f"{name} {splits[split]:,}" for split, name in shown.items() if splits[split])  # type: ignore[index]
            moved = "train" in splits and "test" not in splits
            becomes = " Validation becomes the test set, and a part of train becomes validation." if moved else ""
            lines.append(f"Splits, from {self.splits_from}: {counts} files.{becomes}")
        else:
            lines.append(f"No splits are given: the job divides {splits[None]:,} files into train, validation and test.")
        for verdict in ("ignored", "quarantined"):
            reasons = Counter(re.sub(r"\d+", "N", entry.reason) for entry in self.entries if entry.verdict == verdict)
            if reasons:
                listed = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(3))
                others = f"; {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
                lines.append(f"{verdict.capitalize()}: {reasons.total():,} ({listed}{others}).")
        return (*lines, *self.notes)


def folded(name: str) -> str:
    """Return the name of a class in one spelling. No two classes of a data set have the same one."""
    spelled = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return re.sub(r"^(-?\d+)\.0$", r"\1", spelled)  # pandas writes whole numbers so if a column has empty cells.


def split_names(names: Iterable[str]) -> dict[str, Split]:
    """Return the folder names that mean a split, with that split.

    A name with more words, such as `seg_train`, means a split only if another name has the same words with another split,
    such as `seg_test`. A single `bullet_train` may be a class.
    """
    names = list(names)
    if plain := {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}:
        numbered = {name: _NUMBERED_SPLIT.fullmatch(name.lower()) for name in names}  # For example `test1` beside `train`.
        return plain | {name: SPLITS[found[1]] for name, found in numbered.items() if found}
    families: dict[tuple[str, ...], dict[str, Split]] = defaultdict(dict)
    for name in names:
        words = re.findall(r"[^\W\d_]+|\d+", name.lower())
        for place, word in enumerate(words):
            if word in SPLITS:
                families[tuple(words[:place] + words[place + 1 :])][name] = SPLITS[word]
    complete = [family for family in families.values() if "train" in family.values() and len(set(family.values())) > 1]
    return {name: split for family in complete for name, split in family.items()}


class Source(Protocol):
    """A source of photos. It can be pickled, because decode processes read the photos themselves."""

    @property
    def uri(self) -> str: ...

    @property
    def patience_s(self) -> float:
        """Seconds that reading one entry may take, in addition to the time limit for decoding it."""
        ...

    def prepare(self) -> None:
        """Load the modules that reading needs. Each decode process calls this once, before its memory is limited."""

    def listing(self) -> Listing: ...

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        """Yield the bytes of each entry, in order. An entry that cannot be read gives an OSError in its place."""
        ...

    def location(self, entry: Entry) -> str:
        """Return the path or URI of the file that an entry is read from."""
        ...


class PhotoFolder(Source, Protocol):
    """A source that is a folder or a prefix of a bucket. A table can name the files in it."""

    def files(self) -> Files: ...
