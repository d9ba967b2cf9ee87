"""Photos in folders: the name of a folder, or of the file itself, is the label; or a table in the folder has the labels."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePath
from typing import ClassVar

from job.console.places import refused_at_start
from job.errors import UsageError
from job.sections import IntakeConfig
from job.sources.base import Entry, Listing, split_names
from job.sources.layout import class_folders
from job.sources.local import Files, LocalFiles, from_text, may_be_a_photo, to_text
from job.sources.opening import read_files
from job.sources.tree import ROOT, TABLE_EXTENSIONS, Tree
from job.sources.unlabelled import NUMBERED, named_part, tables_of_labels, unlabelled
from job.sources.walk import Walk, ignored
from job.storage.ledger import MARK

# Tables that Hugging Face's imagefolder and Roboflow's export put beside photos.
_OWN_TABLES = (*(f"metadata{extension}" for extension in TABLE_EXTENSIONS), "_classes.csv")


@dataclass(frozen=True)
class FolderSource:
    """Class folders with photos, directly below the root or below train/, val/ and test/.

    The label of a photo is the name of the folder below the root (or the split), even if there are more folders in between.
    Links are followed if they lead to places below the root or the link roots. Only regular files are opened.
    """

    root: Path
    labelled: bool = True
    settings: IntakeConfig = IntakeConfig()
    patience_s: ClassVar[float] = 0.0

    @property
    def uri(self) -> str:
        return str(self.root)

    def prepare(self) -> None:
        """Load nothing: reading local files needs no further modules."""

    def listing(self) -> Listing:
        """Return the files below the root, with their labels. Raises as `list_files` does."""
        with refused_at_start(f"--data {self.root}", self.root):
            return list_files(self.files(), self.settings, labelled=self.labelled)

    def files(self) -> LocalFiles:
        return LocalFiles(self.root, self.settings.link_roots if self.settings.follow_links else ())

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        return read_files(self.root, (entry.real_path or entry.path for entry in entries))

    def location(self, entry: Entry) -> str:
        path = from_text(entry.real_path or entry.path)
        return path if path.startswith("/") else f"{self.root}/{path}"


@dataclass(frozen=True)
class FileSource(FolderSource):
    """One file in a folder, for predictions."""

    name: str = ""

    @property
    def uri(self) -> str:
        return f"{self.root}/{self.name}"

    def listing(self) -> Listing:
        """Return the file as the only entry. Raises: UsageError, if it cannot be found."""
        found = self.files().find(to_text(self.name))
        if isinstance(found, str):
            raise UsageError(f"--data {self.uri}: {found}.")
        entry = Entry(to_text(found.path), None, None, found.num_bytes, found.version, real_path=found.real_path)
        return Listing((entry,), ())


def list_files(files: Files, settings: IntakeConfig = IntakeConfig(), *, labelled: bool) -> Listing:
    """Return the files of a folder with their labels. Without `labelled`, return all files without labels.

    Outputs of this job are left out. They are known by their mark, because one folder can be mounted at two paths.

    Raises:
        UsageError: if the root is an output of this job, or this user cannot list it or a split folder.
        DataUnusable: if nothing has a label, or the folders can be understood in two ways.
    """
    if files.is_output(""):
        raise UsageError(
            f"{files.uri} is an output of this job: it holds {MARK}. Give the folder that the photos are in, outside of it."
        )
    walk = Walk(files)
    if not labelled:
        walk.below("")
        return Listing(_sorted(walk), (), walk.notes)
    if settings.label_from != "folder":
        return _labelled_by_path(walk, settings)
    if tables := _own_tables(Tree(files)):
        from job.sources.tables import list_tables  # It imports pyarrow, which is slow.

        return list_tables(files, tables, settings, lists_folder=True)
    class_names: set[str] = set()
    for folder in class_folders(walk, settings):
        num_entries, num_outputs = len(walk.entries), len(walk.outputs)
        walk.folder(folder.child, folder.path, folder.label, folder.split)
        new_outputs = len(walk.outputs) - num_outputs
        if not new_outputs or len(walk.entries) - num_entries > new_outputs:  # A folder with only outputs is no class.
            class_names.add(folder.label)
    if not class_names:
        raise unlabelled(Tree(files), len(walk.entries))
    return Listing(_sorted(walk), tuple(sorted(class_names)), walk.notes)


def _sorted(walk: Walk) -> tuple[Entry, ...]:
    return tuple(sorted(walk.entries, key=attrgetter("path")))


def _labelled_by_path(walk: Walk, settings: IntakeConfig) -> Listing:
    """Return the files, labelled by the folder that they are in or by their name. Split folders at the top still count."""
    walk.below("")
    splits = {} if settings.layout == "classes" else split_names({e.path.partition("/")[0] for e in walk.entries})
    pattern = re.compile(settings.label_pattern or NUMBERED)
    entries = []
    for entry in walk.entries:
        top, _, below = entry.path.partition("/")
        split = splits.get(top) if below else None
        if settings.label_from == "parent":
            label = PurePath(below if split else entry.path).parent.name
        else:
            label = named_part(pattern, entry.path, "label")
        if entry.verdict == "ignored" or label:
            entries.append(entry if entry.verdict == "ignored" else entry._replace(label=label, split=split))
        elif settings.label_from == "parent":
            entries.append(ignored(entry.path, "outside every class folder"))
        elif not may_be_a_photo(entry.path.rpartition("/")[2]):
            entries.append(ignored(entry.path, "no photo"))
        else:
            reason = "its name does not match intake.label_pattern"
            entries.append(entry._replace(split=split, verdict="quarantined", reason=reason))
    entries = _without_unlabelled_splits(entries)
    class_names = {entry.label for entry in entries if entry.label}
    if not class_names:
        raise unlabelled(Tree(walk.files), len(entries))
    origin = "the folders that photos lie in" if settings.label_from == "parent" else "the file names"
    return Listing(tuple(sorted(entries, key=attrgetter("path"))), tuple(sorted(class_names)), walk.notes, origin)


def _without_unlabelled_splits(entries: list[Entry]) -> list[Entry]:
    """Ignore the photos of splits in which no file has a label. Such a test set is meant for predictions."""
    labelled = {entry.split for entry in entries if entry.label}
    reason = "unlabelled: no file of its split folder has a label"
    return [
        ignored(e.path, reason) if e.verdict == "quarantined" and not e.label and e.split and e.split not in labelled else e
        for e in entries
    ]


def _own_tables(tree: Tree) -> list[tuple[str, str]]:
    """Return the tables of labels beside the photos, each with the folder at which its paths begin.

    If there are class folders, return no tables, because the folders have the labels.
    """
    folders = tree.folders(ROOT)
    splits = split_names(folder.name for folder in folders)
    tables = tables_of_labels(tree, ROOT)
    in_splits = [
        (f"{folder.path}/{to_text(name)}", f"{folder.path}/")
        for folder in folders
        if folder.name in splits
        for name in tree.tables(folder)
        if name.lower() in _OWN_TABLES
    ]
    if not tables and not in_splits:
        return []
    own = [name for name in tables if name.lower() in _OWN_TABLES]
    most_folders = 1 if own or in_splits else 0  # The photos may be in train/images/, beside train/metadata.csv.
    if any(len(tree.full_folders(folder)) > most_folders for folder in folders if folder.name in splits):
        return []
    full = tree.with_photos(folder for folder in folders if folder.name not in splits)
    if len(full) > 1 or (full and not own and not tree.has_photos(tree.core(full[0]))):
        return []
    if len(own or tables) == 1:
        return [(to_text((own or tables)[0]), "")]
    return in_splits
