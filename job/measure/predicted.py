"""Predictions for many photos, without an array of photos times classes in memory. N photos, C classes."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from job.measure.calibration import calibrated
from job.storage.files import storage_errors

_VALUES_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Predicted:
    """The predicted class of each photo, its probability (the confidence), and the probability of the photo's label.

    All three have the shape (N,). An index or a slice of photos gives the same for these photos.
    """

    class_N: np.ndarray
    confidence_N: np.ndarray
    of_label_N: np.ndarray

    @classmethod
    def of(cls, labels_N: np.ndarray, logits_NC: np.ndarray, temperature: float) -> Self:
        """Return what softmax(logits / temperature) predicts."""
        predicted, confidence, of_label = np.empty(len(labels_N), np.int64), np.empty(len(labels_N)), np.empty(len(labels_N))
        for part in parts(*logits_NC.shape):
            probabilities_BC = calibrated(logits_NC[part], temperature)
            predicted[part], confidence[part] = probabilities_BC.argmax(axis=1), probabilities_BC.max(axis=1)
            of_label[part] = probabilities_BC[np.arange(len(probabilities_BC)), labels_N[part]]
        return cls(predicted, confidence, of_label)

    def __getitem__(self, photos: np.ndarray | slice) -> Self:
        return type(self)(self.class_N[photos], self.confidence_N[photos], self.of_label_N[photos])


def parts(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Return slices that together cover all rows, in order. Each one has at most two million values, or one row."""
    step = max(1, _VALUES_AT_ONCE // num_columns)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def stored(batches_BC: Iterable[np.ndarray], num_columns: int, folder: Path) -> np.ndarray:
    """Return all rows of the batches, float32 (N, C), as a memory map of a file in `folder` that vanishes with the array.

    Raises:
        StorageFailed: if there is no room for the file.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            num_bytes = sum(file.write(np.ascontiguousarray(batch, np.float32).data) for batch in batches_BC)
            return np.memmap(file, np.float32, "r", shape=(num_bytes // (4 * num_columns), num_columns))
