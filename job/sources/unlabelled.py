"""Photos that no folder labels: where their labels may be instead, as commands to type."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable

from job.errors import DataUnusable
from job.sources.local import to_text
from job.sources.tree import ROOT, Folder, Tree, is_photo

# A name that ends in a number, as in cat.0.jpg, dog_12.jpg or "rose (3).jpg": the label is what stands before it.
NUMBERED = r"(?P<label>.*?[^\W\d_])[\W_]*\d+[\W_]*\.\w+$"
# Kaggle's examples of a submission have the columns of a table of labels, and the same label in each row.
_NO_LABELS = re.compile(r".*submi(ssion|t).*", re.IGNORECASE)
_TABLES_SHOWN = 5


def named_part(pattern: re.Pattern[str], path: str, group: str) -> str:
    """Return what a named group of a pattern matches; empty where the pattern does not match.

    A pattern with a slash in it is searched in the path below the source, one without is matched with the file name alone.
    """
    found = pattern.search(path) if "/" in pattern.pattern else pattern.match(path.rpartition("/")[2])
    return ((found and found[group]) or "").strip()


def tables_of_labels(tree: Tree, folder: Folder) -> list[str]:
    """Return the names of the tables in a folder that may hold labels, those of a training set first."""
    names = [name for name in tree.tables(folder) if not _NO_LABELS.fullmatch(name)]
    return sorted(names, key=lambda name: "train" not in name.lower())


def ways_out(tree: Tree, photos: Folder, places: Iterable[Folder], data: Folder | None = None) -> list[str]:
    """Return lines with the commands for photos in one folder: with each table in `places`, or by the names of the photos.

    `data` is the folder to give for the names, where it isn't the one that the photos are in.
    """
    where = shlex.quote(tree.uri(photos))
    tables = [f"{tree.uri(place)}/{to_text(name)}" for place in places for name in tables_of_labels(tree, place)]
    lines = [f"A table lies there: --data {where} --labels {shlex.quote(table)}" for table in tables[:_TABLES_SHOWN]]
    names = [to_text(child.name) for child in tree.children(photos) if is_photo(child)]
    labels = Counter(filter(None, (named_part(re.compile(NUMBERED), name, "label") for name in names)))
    if len(labels) > 1 and labels.total() > 0.8 * len(names) and labels.total() > 2 * len(labels):
        listed = ", ".join(f"{label} ({count:,})" for label, count in labels.most_common(4))
        command = f"--data {shlex.quote(tree.uri(data or photos))} --set intake.label_from=name"
        lines.append(f"The file names may have the class ({listed}): {command}")
    return lines


def unlabelled(tree: Tree, num_files: int) -> DataUnusable:
    """Return the refusal of a source without class folders."""
    return DataUnusable(
        f"{tree.files.uri}: unlabelled: there are no class folders in it ({num_files:,} files beside none). "
        "Put the photos of each class into a folder of its own, named like the class, or give a table of labels.",
        *ways_out(tree, ROOT, [ROOT]),
    )
