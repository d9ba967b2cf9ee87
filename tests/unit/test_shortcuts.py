import numpy as np
import pytest

from job.data.examples import Examples
from job.measure.shortcuts import shortcuts
from tests.conftest import examples_of


@pytest.fixture
def examples():
    """Four classes of photos whose files have nothing to do with their class."""
    rng = np.random.default_rng(0)
    records = [
        {"path": f"{k:04d}", "label": "abcd"[k % 4], "status": "used", "split": "train", "group": k, "row": k}
        | {"format": "JPEG", "mode": "RGB", "width": int(rng.integers(200, 260)), "height": int(rng.integers(150, 260))}
        | {"sha256": rng.bytes(32).hex(), "has_exif": bool(rng.integers(0, 2)), "num_bytes": 9, "phash": 0, "reason": ""}
        | {"brightness": rng.uniform(), "contrast": rng.uniform()}
        for k in range(600)
    ]
    return examples_of(records, "abcd")


def with_warning(found):
    return {fact["fact"] for fact in found["facts"] if fact["warning"]}


def changed(examples, label, **columns):
    chosen = examples["label"] == label
    new = {name: np.where(chosen, value, examples[name]).astype(examples[name].dtype) for name, value in columns.items()}
    return examples.with_columns(**new)


def test_files_that_say_nothing_give_no_alarm(examples):
    found = shortcuts(examples, 0)
    assert with_warning(found) == set() and not found["file"]["warning"]
    assert found["largest_class"] == 0.25 and abs(found["file"]["accuracy"] - 0.25) < 0.07


def test_class_saved_as_png_at_another_size_is_caught_and_named(examples):
    found = shortcuts(changed(examples, "c", format="PNG", width=512, height=512), 0)
    assert {"size", "format"} <= with_warning(found) and found["file"]["warning"]
    told = next(fact for fact in found["facts"] if fact["fact"] == "format")
    assert told["best_class"] == "c" and told["best_recall"] == 1.0
    assert told["accuracy_ci95"][0] > 0.3


@pytest.mark.parametrize(
    ("fact", "change"),
    [("EXIF data", {"has_exif": False}), ("shape", {"height": 60}), ("format", {"mode": "L"})],
)
def test_each_fact_of_the_file_is_caught_by_itself(examples, fact, change):
    even = examples.with_columns(has_exif=np.ones(600, bool))
    assert fact in with_warning(shortcuts(changed(even, "b", **change), 0))


def test_light_is_reported_without_a_warning(examples):
    found = shortcuts(changed(examples, "a", brightness=0.99), 0)
    brightness = next(fact for fact in found["facts"] if fact["fact"] == "brightness")
    assert brightness["accuracy"] > 0.4 and brightness["best_class"] == "a"
    assert with_warning(found) == set()


def test_copies_do_not_make_a_shortcut(examples):
    """Each photo five times: its size would give it away if copies were torn apart."""
    few = {name: np.repeat(column[:60], 5) for name, column in examples.columns.items()}
    few["width"] = np.repeat(np.arange(60) * 50 + 100, 5).astype(np.int32)
    found = shortcuts(Examples(few, examples.class_names), 0)
    assert "size" not in with_warning(found)
