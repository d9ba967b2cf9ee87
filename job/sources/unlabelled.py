"""Help for photos without class folders: the commands that take their labels from a table or from file names."""

import re
import shlex
from collections import Counter
from collections.abc import Sequence

from job.errors import DataUnusable
from job.sources.local import to_text
from job.sources.tree import ROOT, Folder, Tree, is_photo
from job.sources.walk import is_folder, is_junk

# In a name that ends in a number, such as cat.0.jpg, dog_12.jpg or "rose (3).jpg", the label is the part before it.
NUMBERED = r"(?P<label>.*?[^\W\d_])[\W_]*\d+[\W_]*\.\w+$"
# The sample submissions of Kaggle look like tables of labels, but have the same label in each row.
_NO_LABELS = re.compile(r".*submi(ssion|t).*", re.IGNORECASE)
_TABLES_SHOWN = 5
# Formats of published labels which the job does not read. If there are more such files, each has the boxes of one photo.
_OTHER_LABELS, _OTHERS_SHOWN = (".json", ".lst", ".manifest", ".mat", ".txt", ".xml"), 5


def named_part(pattern: re.Pattern[str], path: str, group: str) -> str:
    """Return the text that a named group of a pattern matches; empty if the pattern does not match.

    A pattern with a slash is searched in the path below the source. Any other pattern must match the file name from its
    beginning.
    """
    found = pattern.search(path) if "/" in pattern.pattern else pattern.match(path.rpartition("/")[2])
    return ((found and found[group]) or "").strip()


def tables_of_labels(tree: Tree, folder: Folder) -> list[str]:
    """Return the names of the tables in a folder that may hold labels, those of a training set first."""
    names = [name for name in tree.tables(folder) if not _NO_LABELS.fullmatch(name)]
    return sorted(names, key=lambda name: "train" not in name.lower())


def ways_out(tree: Tree, photos: Folder, places: Sequence[Folder], data: Folder | None = None) -> list[str]:
    """Return lines with commands for the photos in one folder: for each table in `places`, and for labels in file names.

    Without a table, a line names files in `places` that may hold labels in another format. `data` is the folder
    for the command with labels in file names, if it is not the folder of the photos.
    """
    where = shlex.quote(tree.uri(photos))
    tables = [f"{tree.uri(place)}/{to_text(name)}" for place in places for name in tables_of_labels(tree, place)]
    lines = [f"There is a table: --data {where} --labels {shlex.quote(table)}" for table in tables[:_TABLES_SHOWN]]
    others = [] if tables else [name for place in places for name in _other_labels(tree, place)]
    if 0 < len(others) <= _OTHERS_SHOWN:
        lines.append(
            f"{', '.join(others)} may hold the labels, in a format that the job does not read. Write them into a CSV with "
            f"the columns path and label: --data {where} --labels LABELS.csv"
        )
    names = [to_text(child.name) for child in tree.children(photos) if is_photo(child)]
    labels = Counter(filter(None, (named_part(re.compile(NUMBERED), name, "label") for name in names)))
    if len(labels) > 1 and labels.total() > 0.8 * len(names) and labels.total() > 2 * len(labels):
        listed = ", ".join(f"{label} ({count:,})" for label, count in labels.most_common(4))
        command = f"--data {shlex.quote(tree.uri(data or photos))} --set intake.label_from=name"
        lines.append(f"The file names may have the class ({listed}): {command}")
    return lines


def _other_labels(tree: Tree, folder: Folder) -> list[str]:
    return [
        f"{tree.uri(folder)}/{to_text(child.name)}"
        for child in tree.children(folder)
        if child.name.lower().endswith(_OTHER_LABELS) and not is_junk(child.name) and not is_folder(child)
    ]


def unlabelled(tree: Tree, num_files: int) -> DataUnusable:
    """Return the error for a source without class folders."""
    if not num_files:
        return DataUnusable(
            f"{tree.files.uri}: there are no photos in it. If a volume with photos belongs there, it is not mounted: "
            "docker run -v /my/photos:/data:ro, or a volumeMount in Kubernetes."
        )
    return DataUnusable(
        f"{tree.files.uri}: unlabelled: there are no class folders in it ({num_files:,} files outside of any). "
        "Put the photos of each class into a folder of its own, named like the class, or give a table of labels.",
        *ways_out(tree, ROOT, [ROOT]),
    )
