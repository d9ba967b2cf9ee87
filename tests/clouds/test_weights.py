"""Weights in a bucket: fetched to it, verified there, and taken from it by a machine that has none."""

import pytest

import job
from job.config import BackboneConfig
from job.errors import UsageError
from job.model.weight_files import digest_of_weights, local_weights

PRESET = "models/keras/dinov2/keras/dinov2_small/1"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """KERAS_HOME of a machine that has a preset."""
    folder = tmp_path / "home" / PRESET
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.weights.h5").write_bytes(b"weights")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "home"


def test_weights_are_fetched_to_a_bucket_and_taken_from_it(bed, home):
    place = f"{bed.bucket()}/weights"
    bed.put(f"{place}/notes.txt", b"mine")
    (first,), (again,) = (list(job.fetch_weights(["dinov2_small"], place)) for _ in range(2))
    assert first.is_new and not again.is_new
    assert bed.get(f"{place}/notes.txt") == b"mine"
    assert {one.state for one in job.verify_weights(place)} == {"ok"}
    for weights in (place, first.path):
        found = local_weights(BackboneConfig(name="dinov2_small", weights=weights))
        assert digest_of_weights(found) == digest_of_weights(home / PRESET)

    bed.put(f"{first.path}/config.json", b"[]")
    assert [one.state for one in job.verify_weights(place)] == ["changed", "ok"]
    with pytest.raises(UsageError, match="config.json has changed since it was fetched"):
        local_weights(BackboneConfig(name="dinov2_small", weights=place))
    with pytest.raises(UsageError, match="config.json is in the way"):
        list(job.fetch_weights(["dinov2_small"], place))
    assert bed.get(f"{first.path}/config.json") == b"[]"
