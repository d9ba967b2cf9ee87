import numpy as np
import pytest
from scipy.special import softmax

from job.errors import StorageFailed
from job.measure import predicted
from job.measure.calibration import Calibration
from job.measure.predicted import Predicted, StoredLogits, parts


def test_parts_cover_all_rows_once_and_have_one_row_at_least():
    covered = [row for part in parts(4500, 1000) for row in range(4500)[part]]
    assert covered == list(range(4500))
    assert [part.stop - part.start for part in parts(3, 10**8)] == [1, 1, 1] and not list(parts(0, 5))


def test_predictions_in_parts_are_those_of_the_whole_array(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (50, 7)).astype(np.float32), rng.integers(0, 7, 50)
    calibration = Calibration(1.7, np.arange(7) / 5)
    expected = softmax(logits / 1.7 + calibration.offsets_C, axis=1)
    monkeypatch.setattr(predicted, "_VALUES_AT_ONCE", 30)
    found = Predicted.of(labels, StoredLogits([logits], 7, tmp_path), calibration)
    assert (found.class_N == expected.argmax(1)).all() and np.allclose(found.confidence_N, expected.max(1))
    assert np.allclose(found.of_label_N, expected[np.arange(50), labels])
    assert (found[10:20].class_N == found.class_N[10:20]).all()


def test_logits_that_come_in_batches_are_read_in_slices_and_leave_no_file(tmp_path):
    batches = [np.arange(6).reshape(2, 3), np.arange(6, 9).reshape(1, 3)]
    found, expected = StoredLogits(iter(batches), 3, tmp_path / "scratch"), np.concatenate(batches)
    assert found.shape == (3, 3) and found[:].dtype == np.float32
    for part in (slice(1, 3), slice(0, 1), slice(None), slice(2, 9), slice(0, 0)):
        assert found[part].tolist() == expected[part].tolist()
    assert not list((tmp_path / "scratch").iterdir())


def test_place_that_cannot_be_written_is_a_storage_failure(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed, match="file"):
        StoredLogits([np.zeros((1, 2))], 2, tmp_path / "file" / "scratch")
