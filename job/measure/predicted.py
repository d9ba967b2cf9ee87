"""Predictions for many photos, without an array of photos times classes in memory. N photos, C classes."""

import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from job.measure.calibration import Calibration
from job.storage.files import storage_errors

_VALUES_AT_ONCE = 2_000_000


class StoredLogits:
    """Logits of N photos, float32 (N, C), in a file without a name. A slice of the photos is read when it is asked for.

    With 1,000 classes, those of 80,000 photos take 320 MB.
    """

    def __init__(self, batches_BC: Iterable[np.ndarray], num_classes: int, folder: Path) -> None:
        """Write the logits that come in batches to a file in `folder`, which vanishes with this object.

        Raises:
            StorageFailed: if there is no room for the file.
        """
        self._folder = folder
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            num_bytes = sum(self._file.write(np.ascontiguousarray(batch, np.float32).data) for batch in batches_BC)
            self._file.flush()
        self.shape = num_bytes // (4 * num_classes), num_classes

    def mean_with(self, others_BC: Iterable[np.ndarray]) -> Self:
        """Return the mean of these logits and of others for the same photos, which come in batches."""

        def means() -> Iterator[np.ndarray]:
            start = 0
            for batch_BC in others_BC:
                yield (self[start : start + len(batch_BC)] + batch_BC) / 2
                start += len(batch_BC)

        return type(self)(means(), self.shape[1], self._folder)

    def __getitem__(self, photos: slice) -> np.ndarray:
        start, stop, _ = photos.indices(self.shape[0])
        with storage_errors(self._folder):
            self._file.seek(4 * self.shape[1] * start)
            return np.fromfile(self._file, np.float32, (stop - start) * self.shape[1]).reshape(-1, self.shape[1])


@dataclass(frozen=True)
class Predicted:
    """The predicted class of each photo, its probability (the confidence), and the probability of the photo's label.

    All three have the shape (N,). An index or a slice of photos gives the same for these photos.
    """

    class_N: np.ndarray
    confidence_N: np.ndarray
    of_label_N: np.ndarray

    @classmethod
    def of(cls, labels_N: np.ndarray, logits_NC: np.ndarray | StoredLogits, calibration: Calibration) -> Self:
        """Return what the calibrated logits predict."""
        predicted, confidence, of_label = np.empty(len(labels_N), np.int64), np.empty(len(labels_N)), np.empty(len(labels_N))
        for part in parts(*logits_NC.shape):
            probabilities_BC = calibration.probabilities(logits_NC[part])
            predicted[part], confidence[part] = probabilities_BC.argmax(axis=1), probabilities_BC.max(axis=1)
            of_label[part] = probabilities_BC[np.arange(len(probabilities_BC)), labels_N[part]]
        return cls(predicted, confidence, of_label)

    def __getitem__(self, photos: np.ndarray | slice) -> Self:
        return type(self)(self.class_N[photos], self.confidence_N[photos], self.of_label_N[photos])


def parts(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Return slices that together cover all rows, in order. Each one has at most two million values, or one row."""
    step = max(1, _VALUES_AT_ONCE // num_columns)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))
