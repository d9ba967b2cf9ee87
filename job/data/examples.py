"""The table of everything found: one row for each file, what it is, what became of it, and why."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, TypedDict, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from job.storage.files import digest_of

Status = Literal["used", "converted", "quarantined", "ignored", "excluded"]

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("given_split", pa.string()),
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

# How many examples of a class are in each split, and how many files of it are of no use.
ClassCounts = TypedDict(
    "ClassCounts", {"class": str, "train": int, "val": int, "test": int, "excluded": int, "quarantined": int}
)


@dataclass(frozen=True)
class Examples:
    """Rows as columns of NumPy arrays, E of them, in the order of the listing.

    `status`: used and converted rows are examples; `excluded` ones were decoded and must not be trained on or counted;
    the rest has no pixels. `group`: id of the duplicate group, -1 before the split. `row`: place in the image store or -1.
    """

    columns: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, object]], class_names: Sequence[str]) -> Self:
        records = list(records)
        names = [f.name for f in SCHEMA]
        return cls.from_columns({n: [r.get(n, DEFAULTS.get(n)) for r in records] for n in names}, class_names)

    @classmethod
    def from_columns(cls, columns: Mapping[str, Sequence[object]], class_names: Sequence[str]) -> Self:
        """Columns that are left out hold the default of each row."""
        num_rows = len(columns["path"])
        values = {f.name: columns.get(f.name, [DEFAULTS.get(f.name)] * num_rows) for f in SCHEMA}
        return cls({f.name: np.asarray(values[f.name], _numpy_type(f.type)) for f in SCHEMA}, tuple(class_names))

    @classmethod
    def load(cls, path: Path) -> Self:
        table = pq.read_table(path)
        class_names = json.loads((table.schema.metadata or {})[b"class_names"])
        columns = {f.name: table[f.name].to_numpy(zero_copy_only=False).astype(_numpy_type(f.type)) for f in SCHEMA}
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
        """Indices of the examples in these splits (all of them where none is named), in order."""
        chosen = np.isin(self["status"], ("used", "converted"))
        if splits:
            chosen &= np.isin(self["split"], splits)
        return np.flatnonzero(chosen)

    def in_store_order(self, *splits: str) -> np.ndarray:
        """Return the indices that `of` returns, in the order of their rows in the image store."""
        indices = self.of(*splits)
        return indices[np.argsort(self["row"][indices], kind="stable")]

    def statuses(self) -> dict[str, int]:
        """How many files became what."""
        return dict(Counter(self["status"].tolist()))

    def splits(self) -> dict[str, int]:
        return {name: len(self.of(name)) for name in ("train", "val", "test")}

    def by_class(self) -> list[ClassCounts]:
        """Return for each class its examples in each split, and what was excluded and quarantined of it."""
        counts = {name: Counter(self["label"][self.of(name)].tolist()) for name in ("train", "val", "test")}
        counts |= {s: Counter(self["label"][self["status"] == s].tolist()) for s in ("excluded", "quarantined")}
        rows = [{"class": name, **{column: c[name] for column, c in counts.items()}} for name in self.class_names]
        return cast(list[ClassCounts], rows)

    @cached_property
    def labels(self) -> np.ndarray:
        """Class number of each row, -1 where it has none. Shape (E,)."""
        number = {name: k for k, name in enumerate(self.class_names)}
        return np.asarray([number.get(label, -1) for label in self["label"]], np.int64)

    @cached_property
    def keys(self) -> np.ndarray:
        """A key for each row, uint64 (E,), from its bytes and its number among its exact copies, never from its place."""
        seen: dict[str, int] = {}
        keys = np.zeros(len(self), np.uint64)
        for index in np.argsort(self["path"], kind="stable"):
            digest = self["sha256"][index]
            if digest:
                keys[index] = int(digest[:16], 16) ^ seen.get(digest, 0)
                seen[digest] = seen.get(digest, 0) + 1
        return keys

    @cached_property
    def digest(self) -> str:
        return digest_of([self.class_names, {name: column.tolist() for name, column in self.columns.items()}])


def _numpy_type(arrow_type: pa.DataType) -> npt.DTypeLike:
    return object if pa.types.is_string(arrow_type) else arrow_type.to_pandas_dtype()
