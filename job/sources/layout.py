"""The meaning of the folders of a source: which of them are splits, and which are classes.

Where the source is surely not what `--data` should name, or can be understood in two ways, it is refused with the commands
to choose from. `intake.layout` decides without a guess: `classes` takes every folder at the top for a class, `splits` takes
every folder that is named like a split for one.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from job.errors import DataUnusable
from job.sources.base import SPLITS, Reading, Split, split_names
from job.sources.local import IMAGE_EXTENSIONS, Child, Files, to_text
from job.sources.opening import raise_of_the_machine
from job.sources.walk import Walk, ignored, is_folder, is_junk, is_junk_folder, quarantined

_PICTURES = frozenset({"images", "image", "imgs", "img", "jpegimages", "photos"})
_ANNOTATIONS = frozenset({"labels", "label", "annotations", "annotation", "bboxes", "masks", "mask", "imagesets"})
_NUMBERS = re.compile(r"[\d._-]+")


class ClassFolder(NamedTuple):
    """A folder whose photos are of one class, with its path below the source."""

    child: Child
    path: str
    label: str
    split: Split | None


class Folder(NamedTuple):
    """A folder with its path below the source as text."""

    child: Child
    path: str

    @property
    def name(self) -> str:
        return to_text(self.child.name)


@dataclass(frozen=True)
class Tree:
    """Looks into folders, and gathers nothing."""

    files: Files

    def folders(self, folder: Folder) -> list[Folder]:
        """Return the folders in a folder that may hold photos."""
        return [
            Folder(child, f"{folder.path}/{to_text(child.name)}")
            for child in self.children(folder)
            if not child.name.startswith(".") and not is_junk_folder(child.name) and is_folder(child)
            if not self.files.is_output(child.path)
        ]

    def has_photos(self, folder: Folder) -> bool:
        """Return whether a folder itself holds files that are named like photos, or have no extension."""
        return any(is_photo(child) for child in self.children(folder))

    def photos_below(self, folder: Folder) -> bool:
        """Return whether a folder, or any folder below it, holds photos."""
        waiting, seen = [folder], set()
        while waiting:
            folder = waiting.pop()
            if self.has_photos(folder):
                return True
            identity = self.files.identity(folder.child.path)
            if identity not in seen:  # A link may lead back to a folder above it.
                seen.add(identity)
                waiting += self.folders(folder)
        return False

    def with_photos(self, folders: Iterable[Folder]) -> list[Folder]:
        return [folder for folder in folders if self.photos_below(folder)]

    def children(self, folder: Folder) -> Sequence[Child]:
        """Return what is in a folder; nothing where it cannot be listed, which the walk will say."""
        followed = self.files.follow(folder.child) if folder.child.is_symlink() else folder.child
        if isinstance(followed, str):
            return ()
        try:
            return self.files.children(followed.path)
        except OSError as error:
            raise_of_the_machine(error, followed.path)
            return ()


def is_photo(child: Child) -> bool:
    _, dot, extension = child.name.rpartition(".")
    return (not dot or f".{extension.lower()}" in IMAGE_EXTENSIONS) and not is_junk(child.name) and not is_folder(child)


def class_folders(walk: Walk, reading: Reading) -> list[ClassFolder]:
    """Return the class folders of a source; what lies beside them becomes an entry of the walk.

    Raises:
        DataUnusable: if `--data` seems to name the wrong folder, or the folders can be understood in two ways.
        OSError: if the root or a split folder cannot be listed.
    """
    top = [Folder(child, to_text(child.name)) for child in walk.folders_beside_files("", "")]
    named = {} if reading.layout == "classes" else split_names(folder.name for folder in top)
    for folder in top:
        if folder.name in named and not folder.child.is_symlink():
            walk.files.children(folder.child.path)  # A split that cannot be listed is no small loss.
    return _Layout(walk, Tree(walk.files), reading.layout == "auto", top, named).class_folders()


@dataclass
class _Layout:
    walk: Walk
    tree: Tree
    guesses: bool
    top: list[Folder]
    named: dict[str, Split]

    @cached_property
    def siblings(self) -> list[Folder]:
        """The folders with photos whose names are no splits."""
        return self.tree.with_photos(folder for folder in self.top if folder.name not in self.named)

    def class_folders(self) -> list[ClassFolder]:
        """Return the class folders, with the splits that are above them, or in each of them."""
        splits = [folder for folder in self.top if folder.name in self.named and not self._is_class(folder)]
        classes = [folder for folder in self.top if folder not in splits]
        full = [folder for folder in splits if self._holders(folder)]
        for folder in splits:
            if folder not in full:
                self._unlabelled(folder)
        if not full:
            self._refuse_only_splits(splits, classes)
            return self._undivided(classes)
        divided = {folder: self._listed(self._holders(folder)) for folder in full}
        if self.guesses:
            self._refuse_detection([c for found in divided.values() for c in found])
        beside = self._training_beside(divided, classes)
        if not beside:
            self.walk.entries += [ignored(folder.path, "a folder beside the split folders") for folder in classes]
        return beside + [
            ClassFolder(c.child, c.path, c.name, self.named[folder.name]) for folder, found in divided.items() for c in found
        ]

    def _is_class(self, folder: Folder) -> bool:
        """Return whether a folder that is named like the training split is a class beside other classes."""
        if self.named[folder.name] != "train" or not self.guesses or not self.siblings:
            return False
        if self.tree.has_photos(folder):
            return True
        if any(self._holders(other) for other in self.top if other.name in self.named and other != folder):
            return False
        inside = self.tree.with_photos(self.tree.folders(folder))
        if len(inside) < 2:
            return True
        uri, names = self.walk.files.uri, _named([f.name for f in self.siblings])
        raise DataUnusable(
            f"{uri}: {folder.name} may be the training split or a class. It holds folders with photos "
            f"({_named([f.name for f in inside])}), and so does the folder above it ({names}).",
            f"If {_named([f.name for f in inside])} are the classes: --data {shlex.quote(f'{uri}/{folder.path}')}",
            f"If {folder.name} is a class like {names}: --data {shlex.quote(uri)} --set intake.layout=classes",
        )

    def _holders(self, split: Folder) -> list[Folder]:
        """Return the split folder, and the one in it, if there is one in between; the last holds the class folders.

        Archives often unpack to `train/train/cat`. Empty where there are no class folders.
        """
        inside = self.tree.folders(split)
        if len(inside) != 1 or self.tree.has_photos(split):
            return [split] if inside else []
        (inner,) = inside
        repeats = inner.name.lower() in (split.name.lower(), *SPLITS)
        if self.tree.has_photos(inner):
            return [] if repeats and not self.tree.folders(inner) else [split]
        deeper = self.tree.with_photos(self.tree.folders(inner))
        return [split, inner] if len(deeper) > 1 or (repeats and deeper) else [split]

    def _listed(self, holders: list[Folder]) -> list[Folder]:
        """Return the class folders in the last of these. What lies beside the folders on the way becomes an entry."""
        found: list[Folder] = []
        for holder in holders:
            followed = self.walk.followed(holder.child)
            if isinstance(followed, str):
                self.walk.entries.append(quarantined(holder.path, None, None, followed))
                return []
            prefix = holder.path + "/"
            inside = self.walk.folders_beside_files(followed.path, prefix)
            found = [Folder(child, prefix + to_text(child.name)) for child in inside]
        return found

    def _unlabelled(self, folder: Folder) -> None:
        """Make an ignored entry for each photo in a split folder that has no class folders."""
        first = len(self.walk.entries)
        self.walk.folder(folder.child, folder.path, None, None)
        self.walk.entries[first:] = [
            entry if entry.verdict else ignored(entry.path, "unlabelled: its split folder has no class folders")
            for entry in self.walk.entries[first:]
        ]

    def _training_beside(self, divided: dict[Folder, list[Folder]], classes: list[Folder]) -> list[ClassFolder]:
        """Return class folders beside `test/` or `val/` as those of the training split, which has no folder of its own."""
        held_out = {c.name for found in divided.values() for c in found}
        if "train" in {self.named[folder.name] for folder in divided} or not held_out & {c.name for c in classes}:
            return []
        return [ClassFolder(c.child, c.path, c.name, "train") for c in classes]

    def _undivided(self, classes: list[Folder]) -> list[ClassFolder]:
        """Return the class folders of a source whose top has no splits."""
        if self.guesses and classes:
            self._refuse_detection(classes)
            full = self.tree.with_photos(classes)
            self._refuse_wrapper(full)
            if full and not any(map(self.tree.has_photos, full)):
                inside = {folder: {f.name for f in self.tree.folders(folder)} for folder in full}
                if all(names and all(name.lower() in SPLITS for name in names) for names in inside.values()):
                    return [
                        ClassFolder(f.child, f.path, folder.name, SPLITS[f.name.lower()])
                        for folder in full
                        for f in self._listed([folder])
                    ]
                self._refuse_too_high(inside)
        return [ClassFolder(folder.child, folder.path, folder.name, None) for folder in classes]

    def _refuse_only_splits(self, splits: list[Folder], classes: list[Folder]) -> None:
        if not splits or classes or not self.guesses:
            return
        uri, names = self.walk.files.uri, _named([f.name for f in splits])
        named = [child.name.lower() for folder in splits for child in self.tree.children(folder)]
        if any(name.endswith((".xml", "coco.json", "createml.json", "data.yaml")) for name in named):
            raise _detection(uri, f"{names} hold photos and annotations, and no class folders")
        raise DataUnusable(
            f"{uri}: unlabelled: all its folders are named like splits ({names}), and there are no class folders in them.",
            "Put the photos of each class into a folder of its own below each split, or give a table: --labels FILE.",
            f"If the class is in the file names: --data {shlex.quote(uri)} --set intake.label_from=name",
            f"If {names} are the classes: --data {shlex.quote(uri)} --set intake.layout=classes",
        )

    def _refuse_detection(self, classes: list[Folder]) -> None:
        pictures = [c for c in classes if c.name.lower() in _PICTURES]
        annotations = [c for c in classes if c.name.lower() in _ANNOTATIONS]
        if not pictures or not annotations or set(self.tree.with_photos(classes)) - {*pictures, *annotations}:
            return
        for folder in pictures:
            inside = self.tree.with_photos(self.tree.folders(folder))
            if not self.tree.has_photos(folder) and any(f.name.lower() not in SPLITS for f in inside):
                return
        raise _detection(self.walk.files.uri, f"it has {pictures[0].path}/ beside {annotations[0].path}/")

    def _refuse_wrapper(self, full: list[Folder]) -> None:
        if len(full) != 1:
            return
        wrapper = full[0]
        while not self.tree.has_photos(wrapper):
            inside = self.tree.with_photos(self.tree.folders(wrapper))
            if len(inside) != 1:
                uri = self.walk.files.uri
                raise DataUnusable(
                    f"{uri}: {full[0].name} would be the only class. The class folders seem to be deeper, in {wrapper.path} "
                    f"({_named([f.name for f in inside])}).",
                    f"Give that folder: --data {shlex.quote(f'{uri}/{wrapper.path}')}",
                    f"If {full[0].name} is a class: --data {shlex.quote(uri)} --set intake.layout=classes",
                )
            wrapper = inside[0]

    def _refuse_too_high(self, inside: dict[Folder, set[str]]) -> None:
        names = next(iter(inside.values()))
        if len(inside) < 2 or len(names) < 2 or any(other != names for other in inside.values()):
            return
        if all(map(_NUMBERS.fullmatch, names)) or all(name.lower() in SPLITS for name in names):
            return
        uri, above, below = self.walk.files.uri, _named([f.name for f in inside]), _named(sorted(names))
        first = next(iter(inside)).path
        raise DataUnusable(
            f"{uri}: the classes may be {above}, or {below}: {above} hold the same folders, and no photos beside these.",
            f"If {below} are the classes: --data {shlex.quote(uri)} --set intake.label_from=parent",
            f"To use the photos of one folder only: --data {shlex.quote(f'{uri}/{first}')}",
            f"If {above} are the classes: --data {shlex.quote(uri)} --set intake.layout=classes",
        )


def _detection(uri: str, seen: str) -> DataUnusable:
    return DataUnusable(
        f"{uri}: this is an export for object detection or segmentation: {seen}. This job gives a whole photo one class.",
        "Export it for classification (a folder for each class, or a table of file and label), and give that as --data.",
        f"If the folders are classes all the same: --data {shlex.quote(uri)} --set intake.layout=classes",
    )


def _named(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
