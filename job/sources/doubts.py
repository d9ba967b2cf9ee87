"""Refusals of folders that are probably not what `--data` should name, each with the commands to use instead."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from job.errors import DataUnusable
from job.sources.base import SPLITS, in_words, split_names
from job.sources.tree import ROOT, Folder, Tree
from job.sources.unlabelled import ways_out

PICTURES = frozenset({"images", "image", "imgs", "img", "jpegimages", "photos"})
ANNOTATIONS = frozenset(
    [
        *("labels", "label", "annotations", "annotation", "ann", "bboxes", "masks", "mask", "imagesets", "xmls", "trimaps"),
        *("segmentation", "segmentations", "segmentationclass", "segmentationobject", "groundtruth", "ground_truth"),
    ]
)
_NUMBERS = re.compile(r"[\d._-]+")
# Names that people give to the parts of a data set that is too large for one folder or archive.
_PARTS = frozenset({*PICTURES, "part", "parts", "batch", "chunk", "shard", "archive", "folder"})
# If at least this share of the folder names in several folders is equal, these folders count as having the same classes.
_ALIKE = 0.8


@dataclass(frozen=True)
class Doubts:
    """Checks of the folders of a source. Each method raises DataUnusable if it finds what it looks for."""

    tree: Tree

    @property
    def uri(self) -> str:
        """The source, as it was given."""
        return self.tree.files.uri

    @property
    def as_classes(self) -> str:
        """The options that make every folder at the top a class."""
        return f"--data {shlex.quote(self.uri)} --set intake.layout=classes"

    def detection(self, classes: list[Folder]) -> None:
        """Refuse an export for object detection: folders of photos beside folders of annotations."""
        pictures = [c for c in classes if c.name.lower() in PICTURES]
        annotations = [c for c in classes if c.name.lower() in ANNOTATIONS]
        if not pictures or not annotations or set(self.tree.with_photos(classes)) - {*pictures, *annotations}:
            return
        for folder in pictures:
            inside = self.tree.full_folders(folder)
            if not self.tree.has_photos(folder) and any(f.name.lower() not in SPLITS for f in inside):
                return
        raise self.as_detection(
            f"it has {pictures[0].path}/ beside {annotations[0].path}/", ways_out(self.tree, pictures[0], [ROOT])
        )

    def wrapper(self, full: list[Folder]) -> None:
        """Refuse a single folder that contains the class folders."""
        if len(full) != 1:
            return
        core = self.tree.core(full[0])
        if self.tree.has_photos(core):
            return
        inside = self.tree.folders(core)
        self.detection(inside)
        raise DataUnusable(
            f"{self.uri}: {full[0].name} would be the only class. The class folders seem to be deeper, in {core.path} "
            f"({in_words([f.name for f in self.tree.with_photos(inside)])}).",
            f"Give that folder: --data {shlex.quote(self.tree.uri(core))}",
            *ways_out(self.tree, ROOT, [ROOT]),
            f"If {full[0].name} is a class: {self.as_classes}",
        )

    def sets(self, full: list[Folder]) -> None:
        """Refuse folders that contain whole data sets, with splits and class folders."""
        sets = []
        for folder in full:
            core = self.tree.core(folder)
            inside = {} if self.tree.has_photos(core) else {f.name: f for f in self.tree.folders(core)}
            splits = split_names(inside)
            holders = [name for name in splits if len(self.tree.full_folders(self.tree.core(inside[name]))) > 1]
            if len({splits[name] for name in holders}) > 1:
                sets.append(core)
        if sets:
            raise DataUnusable(
                f"{self.uri}: the splits with the class folders seem to be deeper, in {in_words([f.path for f in sets])}.",
                *(f"Give that folder: --data {shlex.quote(self.tree.uri(core))}" for core in sets[:4]),
                f"If the folders ({in_words([f.name for f in full])}) are the classes: {self.as_classes}",
            )

    def copy(self, full: list[Folder]) -> None:
        """Refuse a folder beside class folders if it contains copies of them."""
        for folder in full:
            core = self.tree.core(folder)
            inside = [] if self.tree.has_photos(core) else [f.name for f in self.tree.full_folders(core)]
            if len(inside) > 1 and set(inside) <= {f.name for f in full if f != folder}:
                raise DataUnusable(
                    f"{self.uri}: {folder.name} would be a class, but it holds the classes beside it a second time "
                    f"({in_words(inside)}).",
                    f"Give the folder with one copy of each: --data {shlex.quote(self.tree.uri(core))}",
                    f"If {folder.name} is a class: {self.as_classes}",
                )

    def too_high(self, full: list[Folder]) -> None:
        """Refuse folders that all contain folders with the same names, because these may be the classes."""
        cores = {folder: self.tree.core(folder) for folder in full}
        flat = [folder for folder, core in cores.items() if self.tree.has_photos(core)]
        if len(flat) < len(full) and any(SPLITS.keys() & set(_words(folder.name)) for folder in full):
            for folder in flat:  # For example the unlabelled `rps-validation`, beside `rps` and `rps-test-set`.
                del cores[folder]
        elif flat or not full:
            return
        inside = {folder: {f.name for f in self.tree.full_folders(core)} for folder, core in cores.items()}
        shared, names = set.intersection(*inside.values()), set.union(*inside.values())
        if len(cores) < 2 or len(shared) < 2 or len(shared) < _ALIKE * len(names):
            return
        if all(map(_NUMBERS.fullmatch, names)) and not all(_NUMBERS.fullmatch(folder.name) for folder in cores):
            return
        if all(name.lower() in SPLITS for name in names):
            return
        above, below = in_words([f.name for f in cores]), in_words(sorted(names))
        lines = []
        if {name.lower() for name in names} & ANNOTATIONS:
            lines = [f"{below} look like photos and masks. Leave one of them out: masks are no photos of a class."]
        elif not flat:
            lines = [f"If {below} are the classes: --data {shlex.quote(self.uri)} --set intake.label_from=parent"]
        raise DataUnusable(
            f"{self.uri}: the classes may be {above}, or {below}: "
            f"{above} hold the same folders, and no photos beside these.",
            *lines,
            f"To use the photos of one folder only: --data {shlex.quote(self.tree.uri(next(iter(cores.values()))))}",
            f"If {above} are the classes: {self.as_classes}",
        )

    def parts(self, full: list[Folder]) -> None:
        """Refuse folders such as `images_part_1` and `images_part_2`, whose names say nothing about their photos."""
        words = {_words(folder.name) for folder in full}
        if len(full) < 2 or len(words) != 1 or not _PARTS.intersection(*words):
            return
        names = in_words([f.name for f in full])
        raise DataUnusable(
            f"{self.uri}: unlabelled: {names} would be the classes, but they look like the parts of one set.",
            *ways_out(self.tree, ROOT, [ROOT]),
            "Give a table of labels (--labels FILE), or put the photos of each class into a folder of its own.",
            f"If {names} are the classes: {self.as_classes}",
        )

    def as_detection(self, seen: str, lines: Iterable[str] = ()) -> DataUnusable:
        return DataUnusable(
            f"{self.uri}: this is an export for object detection or segmentation: {seen}. This job gives a whole photo one "
            "class.",
            "Export it for classification (a folder for each class, or a table of file and label), and give that as --data.",
            *lines,
            f"If the folders are classes anyway: {self.as_classes}",
        )


def _words(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W\d_]+", name.lower()))
