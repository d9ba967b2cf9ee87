"""The stage head: what it tries, what it prefers, and that a stop changes nothing."""

import json

import numpy as np
import pytest

from job.errors import Stopped
from job.runtime.context import Context
from job.runtime.telemetry import Telemetry
from job.sections import HeadConfig
from job.stages.head import ChosenHead, head
from job.storage.workdir import Workdir
from job.stores.arrays import StoreWriter
from job.stores.views import StoredRows, StoredViews
from job.train.checkpoint import Checkpoints
from tests.conftest import examples_of

WIDTH = 12
REST = {"num_bytes": 1, "phash": 0, "width": 9, "height": 9, "brightness": 0.5, "contrast": 0.2, "has_exif": False}


def data(folder, num_classes, per_class, spread=1.0, num_views=2):
    """Photos of Gaussian classes, two thirds of each class in train, with a noisier second view of the training photos."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_classes * per_class) % num_classes
    split = ["val" if k // num_classes % 3 == 0 else "train" for k in range(len(labels))]
    names = [f"{k:03d}" for k in range(num_classes)]
    records = [
        {"path": f"{k}.jpg", "label": names[c], "split": s, "row": k, "status": "used", "sha256": f"{k:064x}"} | REST
        for k, (c, s) in enumerate(zip(labels, split, strict=True))
    ]
    features = (rng.normal(size=(num_classes, WIDTH))[labels] + spread * rng.normal(size=(len(labels), WIDTH))).astype("f4")
    plain = StoreWriter(folder / "plain", (WIDTH,), "float32")
    keys = [str(k) for k in range(len(features))]
    plain.write(keys, features)
    train_rows = np.flatnonzero(np.asarray(split) == "train")
    later = StoreWriter(folder / "later", (WIDTH,), "float32")
    later.write(keys[: len(train_rows)], features[train_rows] + rng.normal(size=(len(train_rows), WIDTH)).astype("f4") * 0.3)
    augmented = later.finish(keys[: len(train_rows)]) if num_views > 1 else None
    return examples_of(records, names), StoredViews(plain.finish(keys), augmented, train_rows, num_views)


def run(context, examples, features, **settings):
    checkpoints = Checkpoints(context, "head", {})
    found = head(HeadConfig(**settings), examples=examples, features=features, checkpoints=checkpoints, context=context)
    return found.head, json.loads(context.workdir.path("stages/head/head.json").read_text())


def test_regressions_and_the_discriminant_are_tried_on_few_classes(context, tmp_path):
    found, summary = run(context, *data(tmp_path, 4, 60))
    assert [tried["kind"] for tried in summary["heads"]] == ["regression on views", "regression on photos", "discriminant"]
    assert summary["c"] == min(summary["path"], key=lambda tried: tried["val_log_loss"])["c"]
    assert (ChosenHead.load(context).head.kernel_DC == found.kernel_DC).all()


def test_without_views_there_is_one_regression(context, tmp_path):
    _, summary = run(context, *data(tmp_path, 4, 60, num_views=1))
    assert [tried["kind"] for tried in summary["heads"]] == ["regression on photos", "discriminant"]


@pytest.mark.parametrize(("num_classes", "per_class", "is_alone"), [(51, 42, True), (51, 45, False), (50, 42, False)])
def test_discriminant_is_alone_with_more_than_50_classes_of_less_than_30_training_photos(
    context, tmp_path, num_classes, per_class, is_alone
):
    _, summary = run(context, *data(tmp_path, num_classes, per_class), c_grid=(0.1,))
    assert ([tried["kind"] for tried in summary["heads"]] == ["discriminant"]) == is_alone
    assert (summary["c"] is None) == is_alone and (summary["path"] == []) == is_alone


def test_discriminant_is_preferred_if_it_is_clearly_better(context, tmp_path):
    """With a tiny C, the regression predicts nearly the same for all photos."""
    _, summary = run(context, *data(tmp_path, 4, 60), c_grid=(1e-9,))
    assert summary["chosen"] == "discriminant"
    losses = {tried["kind"]: tried["val_log_loss"] for tried in summary["heads"]}
    assert losses["discriminant"] < losses["regression on views"]


def test_a_difference_that_may_be_luck_does_not_change_the_preference(context, tmp_path):
    _, summary = run(context, *data(tmp_path, 4, 15))
    losses = {tried["kind"]: tried["val_log_loss"] for tried in summary["heads"]}
    assert min(losses, key=losses.__getitem__) != summary["chosen"] == "regression on views"


def test_path_on_a_part_of_the_photos_leads_to_a_solution_on_all(context, tmp_path, monkeypatch):
    photos = data(tmp_path, 4, 90)
    whole, _ = run(context, *photos, c_grid=(0.1,))
    monkeypatch.setattr("job.stages.head._PATH_PHOTOS", 60)
    part, _ = run(Context(Workdir(tmp_path / "other"), Telemetry(None)), *photos, c_grid=(0.1,))
    assert np.allclose(part.kernel_DC, whole.kernel_DC, atol=3e-3)


def test_features_that_are_read_anew_give_the_same_bits_as_those_in_memory(context, tmp_path, monkeypatch):
    photos = data(tmp_path, 4, 300)
    held, _ = run(context, *photos)
    monkeypatch.setattr("job.stores.views._IN_MEMORY_BYTES", 5_000)  # Some rows of a part are held, and others not.
    monkeypatch.setattr("job.data.moments._BYTES_AT_ONCE", 0)
    read, _ = run(Context(Workdir(tmp_path / "read"), Telemetry(None)), *photos)
    monkeypatch.setattr("job.stores.views._IN_MEMORY_BYTES", 2**20)
    part, _ = run(Context(Workdir(tmp_path / "part"), Telemetry(None)), *photos)
    assert read.kernel_DC.tobytes() == part.kernel_DC.tobytes() and np.allclose(read.kernel_DC, held.kernel_DC, atol=1e-3)


def test_stops_change_no_bit(context, tmp_path, monkeypatch):
    photos = data(tmp_path, 4, 60)
    expected, summary = run(context, *photos)
    again = Context(Workdir(tmp_path / "stopped"), Telemetry(None))
    iterations, allowed, num_stops = 0, 0, 0

    def offer(checkpoints, state):
        nonlocal iterations
        iterations += 1
        if iterations > allowed:
            checkpoints.save(state())
            checkpoints.finish()
            raise Stopped("stop")

    monkeypatch.setattr(Checkpoints, "offer", offer)
    found = None
    while found is None:
        iterations, allowed = 0, allowed + 5
        try:
            found, found_summary = run(again, *photos)
        except Stopped:
            num_stops += 1
    assert num_stops > 3 and found_summary == summary
    assert found.kernel_DC.tobytes() == expected.kernel_DC.tobytes() and found.bias_C.tobytes() == expected.bias_C.tobytes()


def test_first_rows_stay_in_memory_and_the_others_are_read_for_each_use(monkeypatch):
    monkeypatch.setattr("job.stores.views._IN_MEMORY_BYTES", 4 * 4 * 10)
    asked = []

    def read(numbers):
        asked.append(numbers.tolist())
        return np.repeat(numbers[:, None], 4, axis=1).astype(np.float32)

    rows = StoredRows(read, np.arange(100, 125), (4,))
    assert rows[slice(4, 10)][:, 0].tolist() == [*range(104, 110)]
    assert rows[slice(8, 12)][:, 0].tolist() == [*range(108, 112)]
    assert rows[slice(20, 40)][:, 0].tolist() == [*range(120, 125)]
    assert asked == [[*range(100, 110)], [*range(108, 112)], [*range(120, 125)]]
