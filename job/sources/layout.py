"""The meaning of the folders of a source: which of them are splits, and which are classes.

If `--data` seems to name the wrong folder, or the folders can be understood in two ways, the source is refused with the
commands to choose from. `intake.layout` avoids guesses: with `classes`, every folder at the top is a class; with `splits`,
every folder that is named like a split is one.
"""

import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from job.errors import DataUnusable
from job.sections import IntakeConfig
from job.sources.base import SPLITS, Split, in_words, split_names
from job.sources.doubts import ANNOTATIONS, PICTURES, Doubts
from job.sources.local import Child, to_text
from job.sources.tree import ROOT, Folder, Tree
from job.sources.unlabelled import ways_out
from job.sources.walk import Walk, ignored, quarantined


class ClassFolder(NamedTuple):
    """A folder whose photos are of one class, with its path below the source."""

    child: Child
    path: str
    label: str
    split: Split | None


def class_folders(walk: Walk, settings: IntakeConfig) -> list[ClassFolder]:
    """Return the class folders of a source. Files and folders beside them become entries of the walk.

    Raises: OSError; DataUnusable, if `--data` seems to name the wrong folder, or the folders can be understood in two ways.
    """
    top = [Folder(child, to_text(child.name)) for child in walk.folders_beside_files("", "")]
    named = {} if settings.layout == "classes" else split_names(folder.name for folder in top)
    for folder in top:
        if folder.name in named and not folder.child.is_symlink():
            walk.files.children(folder.child.path)  # Raises OSError: a run without a whole split makes no sense.
    tree = Tree(walk.files)
    layout = _Layout(walk, tree, Doubts(tree), settings.layout == "auto", top, named)
    found = layout.class_folders()
    if layout.guesses:
        layout.refuse_one_class(found)
    return found


@dataclass
class _Layout:
    walk: Walk
    tree: Tree
    doubts: Doubts
    guesses: bool
    top: list[Folder]
    named: dict[str, Split]

    @cached_property
    def siblings(self) -> list[Folder]:
        """The folders at the top that have photos, without those that are named like splits."""
        return self.tree.with_photos(folder for folder in self.top if folder.name not in self.named)

    def class_folders(self) -> list[ClassFolder]:
        """Return the class folders with their splits. A split folder may be above class folders or inside each of them."""
        splits = [folder for folder in self.top if folder.name in self.named and not self._is_class(folder)]
        classes = [folder for folder in self.top if folder not in splits]
        full = self._labelled(splits)
        for folder in splits:
            if folder not in full:
                self._unlabelled(folder)
        if not full:
            self._refuse_only_splits(splits, classes)
            return self._undivided(classes)
        if self.guesses:
            self.doubts.sets(full)
        divided = {folder: self._listed(self._holders(folder)) for folder in full}
        if self.guesses:
            self.doubts.detection([c for found in divided.values() for c in found])
        beside = self._training_beside(divided, classes)
        if not beside:
            self.walk.entries += [ignored(folder.path, "a folder beside the split folders") for folder in classes]
        return beside + [
            ClassFolder(c.child, c.path, c.name, self.named[folder.name]) for folder, found in divided.items() for c in found
        ]

    def _is_class(self, folder: Folder) -> bool:
        """Return whether a folder named like the training split is a class beside others. Raises: DataUnusable."""
        if self.named[folder.name] != "train" or not self.guesses or not self.siblings:
            return False
        others = [other for other in self.top if other.name in self.named and other != folder]
        inside = self.tree.full_folders(folder)
        if {f.name for f in inside} & {f.name for other in others for f in self.tree.folders(other)}:
            return False  # The same class folders are in another split; a photo beside them does not matter.
        if self.tree.has_photos(folder):
            return True
        if any(map(self._holders, others)):
            return False
        if len(inside) < 2:
            return True
        names = in_words([f.name for f in self.siblings])
        raise DataUnusable(
            f"{self.doubts.uri}: {folder.name} may be the training split or a class. It holds folders with photos "
            f"({in_words([f.name for f in inside])}), and so does the folder above it ({names}).",
            f"If {in_words([f.name for f in inside])} are the classes: --data {shlex.quote(self.tree.uri(folder))}",
            f"If {folder.name} is a class like {names}: {self.doubts.as_classes}",
        )

    def _labelled(self, splits: list[Folder]) -> list[Folder]:
        """Return the split folders with class folders. In `test/images/`, `images` is a class only if it is one in train."""
        inside = {folder: self.tree.folders(holders[-1]) for folder in splits if (holders := self._holders(folder))}
        known = {c.name for folder, found in inside.items() if self.named[folder.name] == "train" for c in found}
        return [
            folder
            for folder, found in inside.items()
            if not known or len(found) > 1 or found[0].name in known or found[0].name.lower() not in PICTURES
        ]

    def _holders(self, split: Folder) -> list[Folder]:
        """Return the folders on the way to the class folders of a split; the last contains them. Empty if there are none.

        That is the split folder, and perhaps one more: archives often unpack to `train/train/cat`.
        """
        inside = self.tree.folders(split)
        if len(inside) != 1 or self.tree.has_photos(split):
            return [split] if inside else []
        (inner,) = inside
        repeats = inner.name.lower() in (split.name.lower(), *SPLITS)
        deeper = self.tree.full_folders(inner)
        if self.tree.has_photos(inner) and not (repeats and deeper):
            return [] if repeats else [split]
        return [split, inner] if len(deeper) > 1 or (repeats and deeper) else [split]

    def _listed(self, holders: list[Folder]) -> list[Folder]:
        """Return the class folders in the last of these folders. Files and folders beside the way become ignored entries."""
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
        """Return the class folders beside `test/` or `val/` as training classes, if there is no folder for train."""
        held_out = {c.name for found in divided.values() for c in found}
        if "train" in {self.named[folder.name] for folder in divided} or not held_out & {c.name for c in classes}:
            return []
        return [ClassFolder(c.child, c.path, c.name, "train") for c in classes]

    def _undivided(self, classes: list[Folder]) -> list[ClassFolder]:
        """Return the class folders of a source without split folders at the top. Raises: DataUnusable."""
        if self.guesses and classes:
            self.doubts.detection(classes)
            full = self.tree.with_photos(classes)
            if any(folder.name.lower() in PICTURES for folder in full):
                full = [folder for folder in full if folder.name.lower() not in ANNOTATIONS]
            self.doubts.wrapper(full)
            self.doubts.sets(full)
            self.doubts.copy(full)
            if divided := self._splits_in_classes(full):
                return divided + [ClassFolder(f.child, f.path, f.name, None) for f in classes if f not in full]
            self.doubts.too_high(full)
            self.doubts.parts(full)
            for folder in full[:1]:
                self.doubts.detection(self.tree.folders(folder))
        return [ClassFolder(folder.child, folder.path, folder.name, None) for folder in classes]

    def _splits_in_classes(self, full: list[Folder]) -> list[ClassFolder]:
        """Return the split folders in the class folders, as in `cat/train/`, if there are any. Raises: DataUnusable."""
        divided = {}
        for folder in full:
            inside = [] if self.tree.has_photos(folder) else self.tree.folders(folder)
            if inside and all(f.name.lower() in SPLITS for f in inside):
                divided[folder] = {SPLITS[f.name.lower()] for f in inside}
        if len(divided) < len(full) and any(len(splits) > 1 for splits in divided.values()):
            whole = [folder.name for folder in full if folder not in divided]
            raise DataUnusable(
                f"{self.doubts.uri}: {in_words([f.name for f in divided])} hold splits (train, ...), "
                f"and {in_words(whole)} hold none.",
                f"Put the photos of {in_words(whole)} into folders with the same names.",
                f"To mix the photos of all splits: --data {shlex.quote(self.doubts.uri)} --set intake.layout=classes",
            )
        if len(divided) < len(full):
            return []
        return [
            ClassFolder(f.child, f.path, folder.name, SPLITS[f.name.lower()])
            for folder in full
            for f in self._listed([folder])
        ]

    def refuse_one_class(self, found: list[ClassFolder]) -> None:
        """Refuse a single folder with photos if there is a table or names with labels, an unlabelled split, or boxes."""
        full = self.tree.with_photos(Folder(c.child, c.path) for c in found)
        if len({folder.name for folder in full}) != 1:
            return
        photos = self.tree.core(full[0])
        names = [child.name.rpartition(".") for child in self.tree.children(photos)]
        boxes = {stem for stem, _, extension in names if extension.lower() in ("txt", "xml")}
        if boxes and boxes >= {stem for stem, _, extension in names if extension.lower() in ("jpg", "jpeg", "png")}:
            raise self.doubts.as_detection(f"each photo in {photos.path} has a file of the same name beside it")
        lines = ways_out(self.tree, photos, [ROOT, *self.tree.folders(ROOT)], ROOT if len(full) > 1 else None)
        used = {c.path.partition("/")[0] for c in found}
        flat = [f.name for f in self.top if f.name in self.named and f.path not in used]
        if lines or flat:
            raise DataUnusable(
                f"{self.doubts.uri}: unlabelled: {full[0].name} would be the only class: no other folder holds photos of a "
                "class.",
                *lines,
                "Or put the photos of each class into a folder of its own.",
                f"If the folders ({in_words([full[0].name, *flat])}) are the classes: {self.doubts.as_classes}",
            )

    def _refuse_only_splits(self, splits: list[Folder], classes: list[Folder]) -> None:
        if not splits or not self.guesses:
            return
        names = in_words([f.name for f in splits])
        full = self.tree.with_photos(classes)
        beside = any(f.name.lower() in ANNOTATIONS for f in classes)
        if any(f.name.lower() not in ANNOTATIONS for f in full) or (classes and not full and not beside):
            return
        named = [child.name.lower() for folder in splits for child in self.tree.children(folder)]
        if beside or any(name.endswith((".xml", "coco.json", "createml.json", "data.yaml")) for name in named):
            raise self.doubts.as_detection(f"{names} hold photos, no class folders, and annotations inside or beside them")
        training = self.tree.core(next((f for f in splits if self.named[f.name] == "train"), splits[0]))
        raise DataUnusable(
            f"{self.doubts.uri}: unlabelled: all its folders are named like splits ({names}), "
            "and there are no class folders in them.",
            "Put the photos of each class into a folder of its own below each split, or give a table: --labels FILE.",
            *ways_out(self.tree, training, [ROOT, *splits], ROOT),
            *self.walk.notes,
            f"If {names} are the classes: {self.doubts.as_classes}",
        )
