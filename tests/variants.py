"""Runs like a finished one, but with other settings, photos or answers, without training."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from job.data.examples import Examples
from job.pipeline.records import read_run, write_run
from job.storage.workdir import Workdir


def variant(
    run: Path,
    out: Path,
    settings: Mapping[str, object] | None = None,
    predictions: Callable[[pa.Table], pa.Table] = lambda table: table,
    examples: Callable[[Examples], Examples] = lambda table: table,
    version: str = "",
) -> Path:
    """Copy a run, and change its settings (by dotted names) and its published tables. Return `out`."""
    shutil.copytree(run, out, symlinks=True)
    workdir = Workdir(out)
    described = read_run(workdir)
    assert described is not None
    for name, value in (settings or {}).items():
        section, _, key = name.rpartition(".")
        (described["config"][section] if section else described["config"])[key] = value
    described["versions"]["transfer-job"] = version or described["versions"]["transfer-job"]
    write_run(workdir, described)
    pq.write_table(predictions(pq.read_table(out / "predictions.parquet")), out / "predictions.parquet")
    changed = examples(Examples.load(out / "examples.parquet"))
    (out / "examples.parquet").write_bytes(changed.to_parquet())
    return out


def other_answers(rows: Iterable[int]) -> Callable[[pa.Table], pa.Table]:
    """Return a change of predictions of two classes: these photos get the other class, with the same probability."""

    def change(table: pa.Table) -> pa.Table:
        found = table.to_pylist()
        names = sorted({row["label"] for row in found})
        for k in rows:
            found[k]["predicted"] = names[1 - names.index(found[k]["predicted"])]
            for column in ("head_probabilities", "fine_tuned_probabilities"):
                found[k][column] = found[k][column][::-1]
        return pa.Table.from_pylist(found, table.schema)

    return change


def with_values(column: str, values: Mapping[str, object]) -> Callable[[Examples], Examples]:
    """Return a change of a table of examples: these photos, by path, get these values in a column."""

    def change(examples: Examples) -> Examples:
        changed = [values.get(path, value) for path, value in zip(examples["path"], examples[column], strict=True)]
        return examples.with_columns(**{column: np.asarray(changed, examples[column].dtype)})

    return change
