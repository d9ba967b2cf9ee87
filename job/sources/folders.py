"""Photos in folders: the name of a folder, or of the file itself, is the label; or a table in the folder has the labels."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path, PurePath
from typing import ClassVar

from job.console.places import refused_at_start
from job.errors import DataUnusable, UsageError
from job.sources.base import Entry, Listing, Reading, split_names
from job.sources.layout import Folder, Tree, class_folders, is_photo
from job.sources.local import IMAGE_EXTENSIONS, Files, LocalFiles, from_text, to_text
from job.sources.opening import read_files
from job.sources.walk import Walk, ignored, is_folder, is_junk_folder
from job.storage.ledger import MARK

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".xlsx", ".csv.gz", ".tsv.gz", ".jsonl.gz")
# Tables that Hugging Face's imagefolder and Roboflow's export put beside photos.
_OWN_TABLES = (*(f"metadata{extension}" for extension in TABLE_EXTENSIONS), "_classes.csv")
# A name that ends in a number, as in cat.0.jpg, dog_12.jpg or "rose (3).jpg": the label is what stands before it.
NUMBERED = r"(?P<label>.*?[^\W\d_])[\W_]*\d+[\W_]*\.\w+$"


def is_table(name: str) -> bool:
    return name.lower().endswith(TABLE_EXTENSIONS)


@dataclass(frozen=True)
class FolderSource:
    """Class folders with photos, directly below the root or below train/, val/ and test/.

    A photo is labelled by the top folder below the root (or the split), however deep it lies. Links are followed while
    they stay inside the root or the link roots, every folder once. Only regular files are ever opened.
    """

    root: Path
    labelled: bool = True
    reading: Reading = field(default_factory=Reading)
    patience_s: ClassVar[float] = 0.0

    @property
    def uri(self) -> str:
        return str(self.root)

    def prepare(self) -> None:
        """Nothing to do."""

    def listing(self) -> Listing:
        """Return the files below the root, with their labels.

        Raises:
            DataUnusable: if nothing has a label, or the folders can be understood in two ways.
            UsageError: if this user cannot list the root or a split folder.
        """
        with refused_at_start(f"--data {self.root}", self.root):
            return list_files(self.files(), self.reading, labelled=self.labelled)

    def files(self) -> LocalFiles:
        return LocalFiles(self.root, self.reading.link_roots if self.reading.follow_links else ())

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        return read_files(self.root, (entry.real_path or entry.path for entry in entries))

    def location(self, entry: Entry) -> str:
        path = from_text(entry.real_path or entry.path)
        return path if path.startswith("/") else f"{self.root}/{path}"


def list_files(files: Files, reading: Reading | None = None, *, labelled: bool) -> Listing:
    """Return the files of a folder with their labels; all files without labels where these are not wanted.

    Folders that the job has made its own are left out. Paths alone do not show them where they are mounted twice.

    Raises:
        UsageError: if the root itself is an output of this job.
        DataUnusable: if nothing has a label, or the folders can be understood in two ways.
    """
    reading = reading or Reading()
    refuse_output(files)
    walk = Walk(files)
    if not labelled:
        walk.below("")
        return Listing(_sorted(walk), (), walk.notes)
    if reading.label_from != "folder":
        return _labelled_by_path(walk, reading)
    if tables := _own_tables(files):
        from job.sources.tables import list_tables  # pyarrow takes its time.

        return list_tables(files, tables, reading, lists_folder=True)
    class_names: set[str] = set()
    for folder in class_folders(walk, reading):
        num_entries, num_outputs = len(walk.entries), len(walk.outputs)
        walk.folder(folder.child, folder.path, folder.label, folder.split)
        new_outputs = len(walk.outputs) - num_outputs
        if not new_outputs or len(walk.entries) - num_entries > new_outputs:  # `runs/` with nothing but outputs is no class.
            class_names.add(folder.label)
    if not class_names:
        raise _unlabelled(files, len(walk.entries))
    return Listing(_sorted(walk), tuple(sorted(class_names)), walk.notes)


def refuse_output(files: Files) -> None:
    if files.is_output(""):
        raise UsageError(
            f"{files.uri} is an output of this job: it holds {MARK}. Give the folder that the photos are in, outside of it."
        )


def _sorted(walk: Walk) -> tuple[Entry, ...]:
    return tuple(sorted(walk.entries, key=attrgetter("path")))


def _labelled_by_path(walk: Walk, reading: Reading) -> Listing:
    """Label each photo by the folder that it lies in, or by its name. Split folders at the top keep their meaning."""
    walk.below("")
    splits = {} if reading.layout == "classes" else split_names({e.path.partition("/")[0] for e in walk.entries})
    pattern = re.compile(reading.label_pattern or NUMBERED)
    entries = []
    for entry in walk.entries:
        top, _, below = entry.path.partition("/")
        split = splits.get(top) if below else None
        if reading.label_from == "parent":
            label = PurePath(below if split else entry.path).parent.name
        else:
            label = named_part(pattern, entry.path, "label")
        if entry.verdict == "ignored" or label:
            entries.append(entry if entry.verdict == "ignored" else entry._replace(label=label, split=split))
        elif reading.label_from == "parent" or not _is_named_like_a_photo(entry.path):
            entries.append(
                ignored(entry.path, "outside every class folder" if reading.label_from == "parent" else "no photo")
            )
        else:
            reason = "its name does not match intake.label_pattern"
            entries.append(entry._replace(split=split, verdict="quarantined", reason=reason))
    entries = _without_unlabelled_splits(entries)
    class_names = {entry.label for entry in entries if entry.label}
    if not class_names:
        raise _unlabelled(walk.files, len(entries))
    origin = "the folders that photos lie in" if reading.label_from == "parent" else "the file names"
    return Listing(tuple(sorted(entries, key=attrgetter("path"))), tuple(sorted(class_names)), walk.notes, origin)


def _without_unlabelled_splits(entries: list[Entry]) -> list[Entry]:
    """Ignore the photos of splits in which no file has a label: such a test set is for predictions."""
    labelled = {entry.split for entry in entries if entry.label}
    reason = "unlabelled: no file of its split folder has a label"
    return [
        ignored(e.path, reason) if e.verdict == "quarantined" and not e.label and e.split and e.split not in labelled else e
        for e in entries
    ]


def named_part(pattern: re.Pattern[str], path: str, group: str) -> str:
    """Return what a named group of a pattern matches; empty where the pattern does not match.

    A pattern with a slash in it is searched in the path below the source, one without is matched with the file name alone.
    """
    found = pattern.search(path) if "/" in pattern.pattern else pattern.match(path.rpartition("/")[2])
    return ((found and found[group]) or "").strip()


def _is_named_like_a_photo(path: str) -> bool:
    name = path.rpartition("/")[2]
    return "." not in name or PurePath(name).suffix.lower() in IMAGE_EXTENSIONS


def _own_tables(files: Files) -> list[tuple[str, str]]:
    """Return the tables of labels that lie beside photos, each with the folder that its paths begin at.

    Empty where there are class folders, which have the labels then.
    """
    tree = Tree(files)
    root = [child for child in files.children("") if not is_junk_folder(child.name)]
    folders = [Folder(child, to_text(child.name)) for child in root if is_folder(child) and not child.name.startswith(".")]
    folders = [folder for folder in folders if not files.is_output(folder.child.path)]
    splits = split_names(folder.name for folder in folders)
    tables = [child.name for child in root if is_table(child.name) and not is_folder(child)]
    in_splits = [
        (f"{folder.path}/{child.name}", f"{folder.path}/")
        for folder in folders
        if folder.name in splits
        for child in tree.children(folder)
        if child.name.lower() in _OWN_TABLES and not is_folder(child)
    ]
    if not tables and not in_splits:
        return []
    if any(tree.folders(folder) for folder in folders if folder.name in splits):
        return []
    if len(tree.with_photos(folder for folder in folders if folder.name not in splits)) > 1:
        return []
    own = [name for name in tables if name.lower() in _OWN_TABLES] or tables
    if len(own) == 1:
        return [(own[0], "")]
    return in_splits


def _unlabelled(files: Files, num_files: int) -> DataUnusable:
    root = list(files.children(""))
    tables = [child.name for child in root if is_table(child.name) and not is_folder(child)]
    lines = [
        f"{files.uri}: unlabelled: there are no class folders in it ({num_files:,} files beside none). "
        "Put the photos of each class into a folder of its own, named like the class, or give a table of labels."
    ]
    lines += [f"A table lies there: --labels {shlex.quote(f'{files.uri}/{to_text(name)}')}" for name in tables[:5]]
    names = [to_text(child.name) for child in root if is_photo(child)]
    labels = Counter(filter(None, (named_part(re.compile(NUMBERED), name, "label") for name in names)))
    if len(labels) > 1 and labels.total() > 0.8 * len(names) and labels.total() > 2 * len(labels):
        listed = ", ".join(f"{label} ({count:,})" for label, count in labels.most_common(4))
        command = f"--data {shlex.quote(files.uri)} --set intake.label_from=name"
        lines += [f"The file names may have the class ({listed}): {command}"]
    return DataUnusable(*lines)
