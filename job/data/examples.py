"""The table of all files that were found: a row for each file with its properties, its status and the reason for it."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, TypedDict, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Status = Literal["used", "converted", "quarantined", "ignored", "excluded"]

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("given_label", pa.string()),
        ("given_split", pa.string()),
        ("given_group", pa.string()),
        ("split", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("group", pa.int32()),
        ("row", pa.int32()),
        ("brightness", pa.float32()),
        ("contrast", pa.float32()),
        ("has_exif", pa.bool_()),
    ]
)
DEFAULTS: Mapping[str, int] = {"group": -1, "row": -1}
_LABEL_CONFLICT = "label conflict: "  # Reasons begin with this if one picture, or one file, has two labels.
USED_FOR = {"train": "used for training", "val": "used for validation", "test": "in the test set (held out)"}

# Examples of a class in each split, and files of that class that were excluded or quarantined.
ClassCounts = TypedDict(
    "ClassCounts", {"class": str, "train": int, "val": int, "test": int, "excluded": int, "quarantined": int}
)


def split_digests(table: Path) -> dict[str, str]:
    """Return for each split a SHA-256 of its photos: of the sorted lines with the SHA-256 of each file.

    So it depends on the bytes of the photos alone, not on their names, labels or order. `table` is an examples.parquet.
    """
    used = pq.read_table(table, columns=["split", "sha256"], filters=[("status", "in", ["used", "converted"])])
    found = {}
    for split in USED_FOR:
        lines = sorted(f"{digest}\n" for digest in used.filter(pc.equal(used["split"], split))["sha256"].to_pylist())
        found[split] = hashlib.sha256("".join(lines).encode()).hexdigest()
    return found


@dataclass(frozen=True)
class Examples:
    """A table of E rows in the order of the listing, stored as columns of NumPy arrays.

    Only rows with the `status` "used" or "converted" are examples; others must be neither trained on nor counted.
    `given_label` is the label in the source if a correction decides about the photo, else None. `group` is the id of the
    duplicate group, and `row` the row in the image store; -1 if there is none.
    """

    columns: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]

    @classmethod
    def from_columns(cls, columns: Mapping[str, Sequence[object]], class_names: Sequence[str]) -> Self:
        """Make a table from columns. A missing column is filled with its default."""
        num_rows = len(columns["path"])
        values = {f.name: columns.get(f.name, [DEFAULTS.get(f.name)] * num_rows) for f in SCHEMA}
        return cls({f.name: np.asarray(values[f.name], _numpy_type(f.type)) for f in SCHEMA}, tuple(class_names))

    @classmethod
    def load(cls, path: Path) -> Self:
        table = pq.read_table(path)
        class_names = json.loads((table.schema.metadata or {})[b"class_names"])
        if "given_label" not in table.column_names:  # Versions before 0.12 knew no corrections.
            table = table.append_column("given_label", pa.nulls(len(table), pa.string()))
        columns = {f.name: _array(table[f.name], f.type) for f in SCHEMA}
        return cls(columns, tuple(class_names))

    def to_parquet(self) -> bytes:
        arrays = [pa.array(self.columns[f.name].tolist(), f.type) for f in SCHEMA]
        metadata = {"class_names": json.dumps(self.class_names, ensure_ascii=False)}
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata)), buffer)
        return buffer.getvalue()

    def with_columns(self, **columns: np.ndarray) -> Self:
        return type(self)({**self.columns, **columns}, self.class_names)

    def __len__(self) -> int:
        return len(self.columns["path"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def of(self, *splits: str) -> np.ndarray:
        """Return the indices of the examples in these splits, in order; without arguments, of all examples."""
        chosen = np.isin(self["status"], ("used", "converted"))
        if splits:
            chosen &= np.isin(self["split"], splits)
        return np.flatnonzero(chosen)

    def rows_of(self, paths: Iterable[str]) -> list[int]:
        """Return the rows in the image store of the photos with these paths."""
        row_of_path = dict(zip(self["path"], self["row"], strict=True))
        return [int(row_of_path[path]) for path in paths]

    def are_copies_of(self, indices: np.ndarray, digests: Collection[str]) -> np.ndarray:
        """Return which of the examples are, or are copies of, files with these SHA-256. Boolean, shape (len(indices),)."""
        is_of_E = np.asarray([digest in digests for digest in self["sha256"]], bool) & (self["group"] >= 0)
        return np.isin(self["group"][indices], self["group"][is_of_E])

    def grouped(self, column: str, indices: Iterable[int]) -> list[list[int]]:
        """Return these indices in groups with one value in a column, in the order of the first of each group."""
        members: dict[object, list[int]] = {}
        for index in indices:
            members.setdefault(self[column][index], []).append(int(index))
        return list(members.values())

    def in_store_order(self, *splits: str) -> np.ndarray:
        """Return the indices that `of` returns, in the order of their rows in the image store."""
        indices = self.of(*splits)
        return indices[np.argsort(self["row"][indices], kind="stable")]

    def statuses(self) -> dict[str, int]:
        """Return the number of files with each status."""
        return dict(Counter(self["status"].tolist()))

    def conflicts(self) -> dict[str, int]:
        """Return the number of files with each status that were left out because one picture has two labels."""
        return dict(
            Counter(s for s, why in zip(self["status"], self["reason"], strict=True) if why.startswith(_LABEL_CONFLICT))
        )

    def splits(self) -> dict[str, int]:
        return {name: len(self.of(name)) for name in ("train", "val", "test")}

    def in_words(self) -> str:
        """Return a line with the number of files by status, and of the usable photos by split."""
        by_status = self.statuses()
        statuses = ", ".join(f"{by_status[name]:,} {name}" for name in get_args(Status) if name in by_status)
        splits = ", ".join(f"{count:,} {name}" for name, count in self.splits().items())
        return f"{len(self):,} files: {statuses}. Splits: {splits}"

    def by_class(self) -> list[ClassCounts]:
        """Return for each class the number of examples in each split, and of excluded and quarantined files."""
        counts = {name: Counter(self["label"][self.of(name)].tolist()) for name in ("train", "val", "test")}
        counts |= {s: Counter(self["label"][self["status"] == s].tolist()) for s in ("excluded", "quarantined")}
        rows = [{"class": name, **{column: c[name] for column, c in counts.items()}} for name in self.class_names]
        return cast(list[ClassCounts], rows)

    @cached_property
    def labels(self) -> np.ndarray:
        """Class number of each row, -1 if its label is not one of the classes. Shape (E,)."""
        number = {name: k for k, name in enumerate(self.class_names)}
        return np.asarray([number.get(label, -1) for label in self["label"]], np.int64)

    @property
    def is_decided(self) -> np.ndarray:
        """True for each row about which a correction decides. Boolean, shape (E,)."""
        return np.asarray([label is not None for label in self["given_label"]], bool)

    @property
    def is_relabelled(self) -> np.ndarray:
        """True for each row whose label is not that of the source, because a correction changed it. Boolean, shape (E,)."""
        return self.is_decided & (self["given_label"] != self["label"])

    @property
    def source_labels(self) -> np.ndarray:
        """The label of each row in the source, also where a correction changed it. Text, shape (E,)."""
        return np.where(self.is_decided, self["given_label"], self["label"])

    @cached_property
    def units(self) -> np.ndarray:
        """A number for each row, equal within what no split may divide: copies of a photo, and photos of one given group.

        int32 (E,), -1 where `group` is. Without given groups these are the groups of copies.
        """
        given_E, group_E = self["given_group"], self["group"]
        rows = np.flatnonzero((group_E >= 0) & np.asarray([bool(name) for name in given_E], bool))
        if not len(rows):
            return group_E
        import scipy.sparse.csgraph

        _, first, given_N = np.unique(given_E[rows].astype(str), return_index=True, return_inverse=True)
        ends = (group_E[rows], group_E[rows][first][given_N])
        links = scipy.sparse.coo_array((np.ones(len(rows), bool), ends), (len(self), len(self)))
        _, component_E = scipy.sparse.csgraph.connected_components(links, directed=False)
        return np.where(group_E >= 0, component_E[group_E], -1).astype(np.int32)

    @cached_property
    def has_given_groups(self) -> bool:
        """True if a usable example belongs to a group that the user has given, such as a patient or a camera."""
        return any(self["given_group"][self.of()])

    @cached_property
    def keys(self) -> np.ndarray:
        """Key of each row, uint64 (E,), from the bytes of the file and its number among exact copies, not from its row."""
        seen: dict[str, int] = {}
        keys = np.zeros(len(self), np.uint64)
        for index in np.argsort(self["path"], kind="stable"):
            digest = self["sha256"][index]
            if digest:
                keys[index] = int(digest[:16], 16) ^ seen.get(digest, 0)
                seen[digest] = seen.get(digest, 0) + 1
        return keys


def _array(column: pa.ChunkedArray, arrow_type: pa.DataType) -> np.ndarray:
    """Return a column as an array. Equal texts become one object: 200,000 rows would have a million of them otherwise."""
    if pa.types.is_string(arrow_type):
        encoded = column.combine_chunks().dictionary_encode("encode")
        return np.asarray(encoded.dictionary.to_pylist(), object)[encoded.indices.to_numpy()]
    return column.to_numpy(zero_copy_only=False).astype(_numpy_type(arrow_type))


def _numpy_type(arrow_type: pa.DataType) -> npt.DTypeLike:
    return object if pa.types.is_string(arrow_type) else arrow_type.to_pandas_dtype()
