"""The columns of a table of labels: which of them has the paths, the labels, the splits and the groups."""

import shlex
from collections import defaultdict
from collections.abc import Collection

from job.errors import DataUnusable, UsageError
from job.sections import IntakeConfig
from job.sources.base import SPLITS
from job.sources.grids import Grid, plain
from job.sources.local import is_named_like_a_photo

# The names that a column may have, the most certain ones first. A table with two names of the same tuple is refused.
_COLUMN_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "path": (
        ("path",),
        (
            *("fname", "filename", "file_name", "file", "filepath", "file_path", "filepaths", "filenames", "file_paths"),
            *("image", "image_path", "image_file", "image_name", "image_filename", "img", "img_path", "img_name"),
        ),
        ("image_id", "imageid", "id_code", "img_id", "id"),
    ),
    "label": (
        ("label",),
        (
            *("labels", "class", "class_name", "classname", "class_label", "label_name", "category", "target"),
            *("breed", "dx", "diagnosis", "choice", "species"),
        ),
        ("class_id", "classid", "label_id", "category_id", "class_index"),
    ),
    "split": (("split",), ("set", "subset", "partition", "data_set", "dataset", "ml_use")),
}
KNOWN_NAMES = frozenset(name for tiers in _COLUMN_NAMES.values() for tier in tiers for name in tier)
_UNASSIGNED = frozenset({"unassigned", "none", "na", "n/a", "nan", "null"})  # These words in a split column mean no split.
_TRUTH_VALUES = frozenset({"0", "1", "0.0", "1.0", "true", "false"})
TRUE = frozenset({"1", "1.0", "true"})
_BOXES = ({"xmin", "ymin", "xmax", "ymax"}, {"x_min", "y_min", "x_max", "y_max"}, {"x1", "y1", "x2", "y2"}, {"bbox"})
_ONE_CLASS = "This job gives each photo exactly one class, and this table is for several labels a photo"
WAY_OUT = "Give a table with one label for each photo"


def several_labels(table: str, what: str, way_out: str = WAY_OUT) -> DataUnusable:
    """Return the error for a table in which photos have more than one label."""
    return DataUnusable(f"{table}: {what}. {_ONE_CLASS}. {way_out}.")


class Columns:
    """The search for the columns of a table. `classes` are the columns of 0 and 1 that stand for a class each."""

    def __init__(self, table: str, grid: Grid, settings: IntakeConfig) -> None:
        self.table, self.grid, self.settings = table, grid, settings
        self.classes: list[int] = []
        self.notes: tuple[str, ...] = ()

    def find(self) -> dict[str, int | None]:
        """Return the indices of the columns for path, label, split and group; None for one that the table does not have.

        Raises:
            DataUnusable: if a column is missing or not clear, or photos have more than one label.
            UsageError: if a column that a setting names does not exist.
        """
        path, label = self._of_two(self._column("path"), self._column("label"))
        group = self._named("group_column", self.settings.group_column)
        split = self._split()
        if not self.grid.has_header and len(self.grid.names) > 2:
            path, label, split = self._by_values(path, label, split)
        found = {"path": path, "label": label, "split": split, "group": group}
        if self.settings.label_column is None:
            self._refuse_boxes()
        if path is not None and label is None and self.grid.has_header:
            self.classes = self._class_columns({k for k in found.values() if k is not None})
        self._check(found)
        return found

    def find_path(self) -> int | None:
        """Return the index of the column of paths. Raises: DataUnusable, UsageError."""
        path, _ = self._of_two(self._column("path"), self._column("label") if len(self.grid.names) == 2 else None)
        self._check({"path": path})
        return path

    def _named(self, setting: str, name: str | None) -> int | None:
        if name is None:
            return None
        same = [k for k, other in enumerate(self.grid.names) if other.strip() == name.strip()]
        alike = [k for k, other in enumerate(self.grid.names) if plain(other) == plain(name)]
        if not same and len(alike) != 1:
            raise UsageError(f"{self.table}: it has no column {name!r} (intake.{setting}). {self._header}")
        return (same or alike)[0]

    @property
    def _header(self) -> str:
        return f"Its header is {', '.join(repr(name[:60]) for name in self.grid.names[:20])}."

    def _column(self, kind: str) -> int | None:
        setting = f"{kind}_column"
        if (named := self._named(setting, getattr(self.settings, setting))) is not None:
            return named
        other = {getattr(self.settings, f"{one}_column") for one in ("path", "label", "split", "group")}
        for tier in _COLUMN_NAMES[kind]:
            found = [k for k, name in enumerate(self.grid.names) if plain(name) in tier and name.strip() not in other]
            if len(found) > 1:
                which = " and ".join(repr(self.grid.names[k]) for k in found)
                raise DataUnusable(
                    f"{self.table}: the columns {which} may each be the {kind}. Choose one: --{kind}-column "
                    f"{self.grid.names[found[0]]!r}"
                )
            if found:
                return found[0]
        return None

    def _of_two(self, path: int | None, label: int | None) -> tuple[int | None, int | None]:
        """Return the columns of path and label. If a table has only two columns, one known column decides about both."""
        if len(self.grid.names) != 2 or (path is not None and label is not None and path != label):
            return path, label
        if (path is None and label is None) or path == label:
            photos = [sum(map(is_named_like_a_photo, self.grid.values(k))) for k in (0, 1)]
            path, label = (1, None) if photos[1] > photos[0] else (0, None)
        return (path, 1 - path) if path is not None else (1 - (label or 0), label)

    def _by_values(
        self, path: int | None, label: int | None, split: int | None
    ) -> tuple[int | None, int | None, int | None]:
        """Return the columns of path, label and split of a table without a header, by their values; None where unclear.

        Import files of Google are such tables: `TRAIN,gs://bucket/1.jpg,daisy`.
        """
        values = [self.grid.values(k) for k in range(len(self.grid.names))]
        photos = [k for k, cells in enumerate(values) if cells and all(map(is_named_like_a_photo, cells))]
        splits = [k for k, cells in enumerate(values) if cells and all(c.lower() in {*SPLITS, *_UNASSIGNED} for c in cells)]
        path = photos[0] if path is None and len(photos) == 1 else path
        split = splits[0] if split is None and len(splits) == 1 else split
        rest = [k for k, cells in enumerate(values) if k not in (path, split) and len(set(cells)) < len(cells)]
        return path, rest[0] if label is None and len(rest) == 1 else label, split

    def _split(self) -> int | None:
        """Return the column of splits. If its name is not `split`, most of its values must be splits."""
        split = self._column("split")
        if split is None or self.settings.split_column is not None or plain(self.grid.names[split]) == "split":
            return split
        values = self.grid.values(split)
        return split if 2 * sum(value.lower() in {*SPLITS, *_UNASSIGNED} for value in values) > len(values) else None

    def _refuse_boxes(self) -> None:
        names = {plain(name) for name in self.grid.names}
        for box in _BOXES:
            if box <= names:
                raise DataUnusable(
                    f"{self.table}: this is a table for object detection: it has the columns {', '.join(sorted(box))}, and "
                    "a row for each box. This job gives a whole photo one class. Give a table with one row for each photo, "
                    "or, if it is one, name the column of its labels: --label-column NAME"
                )

    def _class_columns(self, taken: Collection[int]) -> list[int]:
        """Return the columns of 0 and 1 that seem to stand for a class each, at least two. Raises: DataUnusable."""
        grid = self.grid
        values: dict[int, set[str]] = defaultdict(set)
        for _, cells in grid.rows:
            if len(cells) == len(grid.names):
                for k, cell in enumerate(cells):
                    values[k].add(cell.strip().lower())
        found = [k for k in values if k not in taken and k not in grid.odd and values[k] <= _TRUTH_VALUES]
        if len(found) < 2:
            return []
        labelled = sum(
            any(cells[k].strip().lower() in TRUE for k in found) for _, cells in grid.rows if found[-1] < len(cells)
        )
        if 2 * labelled < len(grid.rows):  # Most rows have no 1, so the columns are properties and not classes.
            return []
        listed = ", ".join(grid.names[k] for k in found[:6]) + (", ..." if len(found) > 6 else "")
        for number, cells in grid.rows:
            if len(cells) == len(grid.names) and sum(cells[k].strip().lower() in TRUE for k in found) > 1:
                raise several_labels(
                    self.table,
                    f"it has no label column, but {len(found)} columns of only 0 and 1 ({listed}), and row {number} has "
                    "more than one 1",
                    f"{WAY_OUT}, or name the column of the labels (--label-column NAME)",
                )
        self.notes += (f"The label of a row is the name of the column with the 1, out of {len(found)} columns: {listed}.",)
        return found

    def _check(self, found: dict[str, int | None]) -> None:
        """Check that the columns were found and contain text. Raises: DataUnusable, UsageError."""
        grid = self.grid
        needed = ("path",) if self.classes else ("path", "label")
        if missing := [kind for kind in needed if kind in found and found[kind] is None]:
            flags = " ".join(f"--{kind}-column NAME" for kind in missing)
            one = " A CSV needs commas, semicolons or tabs between its columns." if len(grid.names) == 1 else ""
            raise DataUnusable(
                f"{self.table}: there is no column {' and no column '.join(missing)} in it. {self._header}{one} Name the "
                f"column: {flags}. Or rename the columns to path, label and, if there are splits, split."
            )
        for kind, column in found.items():
            if column is None or column not in grid.odd:
                continue
            if kind == "label" and grid.odd[column].startswith("lists"):
                raise several_labels(self.table, f"its column {grid.names[column]!r} holds {grid.odd[column]}")
            raise DataUnusable(
                f"{self.table}: the {kind} would come from column {grid.names[column]!r}, which holds {grid.odd[column]}. "
                f"Name a column of text: --{kind}-column NAME"
            )
        self._check_splits(found.get("split"))

    def _check_splits(self, split: int | None) -> None:
        """Check the values of the split column, and those that `test_values` and `val_values` name."""
        if split is None:
            if self._has_values:
                raise UsageError(
                    f"{self.table}: intake.test_values and val_values choose rows by a column, and no column of splits was "
                    f"found. Name it: --split-column NAME. {self._header}"
                )
            return
        values, name = self.grid.values(split), self.grid.names[split]
        seen = sorted(set(values))
        shown = ", ".join(seen[:6]) + (", ..." if len(seen) > 6 else "")
        if strange := sorted({*self.settings.test_values, *self.settings.val_values} - {*seen}):
            raise UsageError(
                f"{self.table}: no row has {strange[0]!r} (intake.test_values, val_values) in column {name!r}. "
                f"It holds {shown}."
            )
        others = sorted({value for value in values if value.lower() not in {*SPLITS, *_UNASSIGNED}})
        if not self._has_values and 2 * sum(value in others for value in values) > len(values):
            raise DataUnusable(
                f"{self.table}: column {name!r} holds {shown}, and most of these are not train, val or test. "
                f"Say which rows are held out: --split-column {shlex.quote(name)} --test-values {shlex.quote(others[-1])}"
            )

    @property
    def _has_values(self) -> bool:
        return bool(self.settings.test_values or self.settings.val_values)

    def split_of(self, says: str) -> str:
        """Return train, val or test for the text in the split column; empty if it means none of them."""
        if not self._has_values:
            return SPLITS.get(says.lower(), "")
        if says in self.settings.test_values:
            return "test"
        return "val" if says in self.settings.val_values else "train"


def is_unassigned(says: str) -> bool:
    """Return whether the text in the split column means no split."""
    return says.lower() in _UNASSIGNED
