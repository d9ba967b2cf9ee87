"""Photos in class folders, with or without split folders above them: how a tree of files becomes labelled entries."""

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path, PurePath
from typing import ClassVar

from job.console.places import refused_at_start
from job.errors import DataUnusable, UsageError
from job.sources.base import SPLIT_FOLDERS, Entry, Listing, Split
from job.sources.local import IMAGE_EXTENSIONS, Child, Files, LocalFiles, from_text, to_text
from job.sources.opening import raise_of_the_machine, read_files
from job.storage.ledger import MARK

_JUNK = re.compile(
    r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini|\.gitkeep|\.keep|\.gitignore|\.gitattributes|README(\..*)?|LICEN[SC]E(\..*)?",
    re.IGNORECASE,
)
_JUNK_FOLDERS = frozenset({".ipynb_checkpoints", "@eaDir", "__MACOSX", ".git"})


@dataclass(frozen=True)
class FolderSource:
    """Class folders with photos, directly below the root or below train/, val/ and test/.

    A photo is labelled by the top folder below the root (or the split), however deep it lies. Links are followed while
    they stay inside the root, every folder once. Only regular files are ever opened.
    """

    root: Path
    labelled: bool = True
    patience_s: ClassVar[float] = 0.0

    @property
    def uri(self) -> str:
        return str(self.root)

    def prepare(self) -> None:
        """Nothing to do."""

    def listing(self) -> Listing:
        """
        Raises:
            DataUnusable: where there is no class folder, so that nothing is labelled.
            UsageError: where this user may not look into the root, or into a split folder.
        """
        with refused_at_start(f"--data {self.root}", self.root):
            return list_files(self.files(), labelled=self.labelled)

    def files(self) -> LocalFiles:
        return LocalFiles(self.root)

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        return read_files(self.root, (entry.real_path or entry.path for entry in entries))

    def location(self, entry: Entry) -> str:
        return f"{self.root}/{from_text(entry.real_path or entry.path)}"


def list_files(files: Files, *, labelled: bool) -> Listing:
    """Class folders with photos, below the root or below its split folders; all files where labels are not wanted.

    Folders that the job has made its own are left out. Paths alone do not show them where they are mounted twice.

    Raises:
        UsageError: where the root itself is an output of this job.
        DataUnusable: where there is no class folder, so that nothing is labelled.
    """
    if files.is_output(""):
        raise UsageError(
            f"{files.uri} is an output of this job: it holds {MARK}. Give the folder that the photos are in, outside of it."
        )
    walk = _Walk(files)
    class_names: set[str] = set()
    if not labelled:
        walk.folder("", "", None, None)
    for folder, split, path in _class_folders(walk) if labelled else ():
        label, num_entries, num_outputs = path.rpartition("/")[2], len(walk.entries), len(walk.outputs)
        walk.class_folder(folder, path, label, split)
        new_outputs = len(walk.outputs) - num_outputs
        if not new_outputs or len(walk.entries) - num_entries > new_outputs:  # `runs/` with nothing but outputs is no class.
            class_names.add(label)
    if labelled and not class_names:
        raise DataUnusable(
            f"{files.uri}: unlabelled: there are no class folders in it ({len(walk.entries):,} files beside none). "
            "Put the photos of each class into a folder of its own, named like the class, or give a table of labels."
        )
    outputs = ", ".join(sorted(walk.outputs))
    notes = (f"Outputs of this job, which were not looked into: {outputs}.",) if outputs else ()
    return Listing(tuple(sorted(walk.entries, key=attrgetter("path"))), tuple(sorted(class_names)), notes)


@dataclass
class _Walk:
    """Goes down into folders and gathers an entry for each file. `outputs` are the paths of folders left out."""

    files: Files
    entries: list[Entry] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def is_output(self, folder: Child, path: str) -> bool:
        """Whether the job has made a folder its own. Then it becomes an entry, and nothing in it does."""
        found = self.files.is_output(folder.path)
        if found:
            self.outputs.append(path)
            self.entries.append(_ignored(f"{path}/", "an output of this job: nothing in it is looked at"))
        return found

    def followed(self, child: Child) -> Child | str:
        """Return the file or folder that a child is, with links followed; or what is wrong with the link."""
        return self.files.follow(child) if child.is_symlink() else child

    def class_folder(self, folder: Child, path: str, label: str, split: Split | None) -> None:
        followed = self.followed(folder)
        if isinstance(followed, str):
            self.entries.append(_quarantined(path, label, split, followed))
        else:
            self.folder(followed.path, path + "/", label, split)

    def folder(self, folder: str, prefix: str, label: str | None, split: Split | None) -> None:
        seen: set[object] = set()
        waiting = [(folder, prefix)]  # No recursion: folders may lie deeper than Python's stack.
        while waiting:
            folder, prefix = waiting.pop()
            try:
                identity = self.files.identity(folder)
                if identity in seen:
                    continue
                seen.add(identity)
                children = self.files.children(folder)
            except OSError as error:
                if not prefix:  # Of the source itself: nothing is known about it then.
                    raise
                raise_of_the_machine(error, folder)
                reason = f"cannot be listed, so how many photos are in it is unknown: {error.strerror}"
                self.entries.append(_quarantined(prefix.rstrip("/"), label, split, reason))
                continue
            waiting += reversed([(child.path, path + "/") for child, path in self._files(children, prefix, label, split)])

    def _files(
        self, children: Sequence[Child], prefix: str, label: str | None, split: Split | None
    ) -> Iterator[tuple[Child, str]]:
        """An entry for each file; what is given back are the folders beside them, with their paths."""
        for child in children:
            path = prefix + to_text(child.name)
            found = self.followed(child)
            if isinstance(found, str):
                self.entries.append(_quarantined(path, label, split, found))
            elif not found.is_dir():
                self.entries.append(self._file(found, path, label, split))
            elif child.name in _JUNK_FOLDERS:
                self.entries.append(_junk_folder(path))
            elif not self.is_output(found, path):
                if PurePath(child.name).suffix.lower() in IMAGE_EXTENSIONS:
                    self.entries.append(_ignored(path, "a folder named like a photo"))
                yield found, path

    def _file(self, file: Child, path: str, label: str | None, split: Split | None) -> Entry:
        if _JUNK.fullmatch(file.name):
            return _ignored(path, "a file that systems and people leave beside photos")
        try:
            status = self.files.status(file)
        except OSError as error:
            return _quarantined(path, label, split, f"cannot be read: {error.strerror}")
        if not status:
            return _ignored(path, "not a regular file")
        return Entry(path, label, split, *status, real_path=self.files.real_path(file, path))


def _class_folders(walk: _Walk) -> Iterator[tuple[Child, Split | None, str]]:
    """Each class folder with its split and its path; what lies beside them becomes an entry."""
    folders = _folders_beside_files("", "", walk)
    splits = [f for f in folders if f.name.lower() in SPLIT_FOLDERS and any(map(_is_folder, walk.files.children(f.path)))]
    if not splits:
        yield from ((folder, None, to_text(folder.name)) for folder in folders)
        return
    for folder in folders:
        path = to_text(folder.name)
        followed = walk.followed(folder)
        if folder not in splits:
            walk.entries.append(_ignored(path, "a folder beside the split folders"))
        elif isinstance(followed, str):
            walk.entries.append(_quarantined(path, None, None, followed))
        else:
            split = SPLIT_FOLDERS[folder.name.lower()]
            classes = _folders_beside_files(followed.path, path + "/", walk)
            yield from ((c, split, f"{path}/{to_text(c.name)}") for c in classes)


def _folders_beside_files(folder: str, prefix: str, walk: _Walk) -> list[Child]:
    folders = []
    for child in walk.files.children(folder):
        path = prefix + to_text(child.name)
        if child.name in _JUNK_FOLDERS or (child.name[:1] in ("", ".") and _is_folder(child)):
            walk.entries.append(_junk_folder(path))
        elif not _is_folder(child):
            followed = walk.followed(child)
            walk.entries.append(_ignored(path, followed if isinstance(followed, str) else "outside every class folder"))
        elif not walk.is_output(child, path):
            folders.append(child)
    return folders


def _is_folder(child: Child) -> bool:
    """Return whether a child is a folder, also behind a link. A link that leads back to itself is none. Raises: OSError."""
    try:
        return child.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _junk_folder(path: str) -> Entry:
    """One entry for the whole of it: what lies in it is nobody's photo."""
    return _ignored(f"{path}/", "a folder that systems leave beside photos")


def _ignored(path: str, reason: str) -> Entry:
    return Entry(path, None, None, 0, "", "ignored", reason)


def _quarantined(path: str, label: str | None, split: Split | None, reason: str) -> Entry:
    return Entry(path, label, split, 0, "", "quarantined", reason)
