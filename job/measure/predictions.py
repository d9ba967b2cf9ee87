"""The file predictions.parquet: what the models say about the test photos."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from job.data.examples import Examples
from job.measure.calibration import Calibration
from job.measure.familiar import Known
from job.measure.predicted import Predicted, StoredLogits, parts
from job.storage.workdir import Workdir

PREDICTIONS = "stages/evaluate/predictions.parquet"
# With many classes, most probabilities are tiny and their digits are noise, which no file format makes small.
_EXACT_CLASSES, _ROUNDING_STEPS = 100, 2**15


@dataclass(frozen=True)
class Measured:
    """Answers of the shipped model to N test photos: their paths, labels, predicted classes, and probabilities.

    `accepted_N`: whether an answer may be relied on. `familiarity_N` is None if it was not measured.
    """

    paths: list[str]
    labels: list[str]
    predicted: list[str]
    probabilities_NC: np.ndarray
    accepted_N: np.ndarray
    familiarity_N: np.ndarray | None

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """The outputs that an exported model must give, by their names."""
        found = {"probabilities": self.probabilities_NC, "accepted": self.accepted_N}
        return found if self.familiarity_N is None else {**found, "familiarity": self.familiarity_N}

    @classmethod
    def read(cls, workdir: Workdir, num_photos: int) -> Self:
        """Read the first rows of predictions.parquet."""
        file = workdir.path(PREDICTIONS)
        shipped = pq.read_table(file, columns=["shipped"])["shipped"][0].as_py()
        names = ["path", "label", "predicted", "accepted", "familiarity", f"{shipped}_probabilities"]
        *columns, lists = pq.read_table(file, columns=names).slice(0, num_photos).select(names).columns
        paths, labels, predicted, accepted, familiarity = (column.to_pylist() for column in columns)
        return cls(
            *(paths, labels, predicted),
            lists.combine_chunks().flatten().to_numpy().reshape(len(lists), -1),
            np.asarray(accepted, bool),
            None if familiarity[0] is None else np.asarray(familiarity, np.float32),
        )


def answers_of(
    examples: Examples,
    test_T: np.ndarray,
    predicted: Predicted,
    shipped: str,
    leak_free_T: np.ndarray,
    familiarity: Known | None,
    min_probability: float,
) -> pa.Table:
    """Return the table of predictions for T test photos, without the lists of probabilities.

    `predicted` is of the shipped model. `leak_free_T` says which photos have no copy in the training split that was given.
    `familiarity` is that of the T photos; None if it is off. An answer is accepted if the photo is familiar, and if its
    probability is at least `min_probability`.
    """
    accepted_T = predicted.confidence_N >= min_probability
    if familiarity:
        accepted_T &= familiarity.is_familiar
    columns = {
        "path": examples["path"][test_T],
        "sha256": examples["sha256"][test_T],
        "label": examples["label"][test_T],
        "predicted": np.asarray(examples.class_names, object)[predicted.class_N],
        "shipped": np.full(len(test_T), shipped, object),
        "leak_free": leak_free_T,
        "familiarity": familiarity.of_N.astype(np.float32) if familiarity else pa.nulls(len(test_T), pa.float32()),
        "accepted": accepted_T,
    }
    return pa.table(columns, metadata={"class_names": "\n".join(examples.class_names)})


def write_predictions(
    answers: pa.Table, logits: dict[str, StoredLogits], calibrations: dict[str, Calibration], workdir: Workdir
) -> None:
    """Write predictions.parquet: the answers to the T test photos, and the probabilities of each model.

    The last T logits are those of the test photos.
    """
    lists = {f"{name}_probabilities": name for name in ("head", "fine_tuned")}
    schema = answers.schema
    for column in lists:
        schema = schema.append(pa.field(column, pa.list_(pa.float32())))
    compact = {"use_dictionary": answers.column_names, "use_byte_stream_split": [f"{name}.list.element" for name in lists]}
    num_photos, num_classes = logits["head"].shape
    first = num_photos - len(answers)
    with (
        workdir.writing(PREDICTIONS) as path,
        pq.ParquetWriter(path, schema, compression="zstd", **compact) as writer,
    ):
        for part in parts(len(answers), num_classes):
            rows, of_part = answers.slice(part.start, part.stop - part.start), slice(first + part.start, first + part.stop)
            for column, name in lists.items():
                nothing = pa.nulls(len(rows), pa.list_(pa.float32()))
                found = _lists(calibrations[name].probabilities(logits[name][of_part])) if name in logits else nothing
                rows = rows.append_column(column, found)
            writer.write_table(rows)


def _lists(probabilities_BC: np.ndarray) -> pa.Array:
    """Return a list for each photo, float32. Where classes are many, probabilities are rounded to multiples of 2**-15."""
    num_photos, num_classes = probabilities_BC.shape
    if num_classes > _EXACT_CLASSES:
        probabilities_BC = np.round(probabilities_BC * _ROUNDING_STEPS) / _ROUNDING_STEPS
    ends = np.arange(0, num_photos * num_classes + 1, num_classes, dtype=np.int32)
    return pa.ListArray.from_arrays(ends, probabilities_BC.astype(np.float32).ravel())
