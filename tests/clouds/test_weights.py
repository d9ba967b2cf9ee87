"""Weights in a bucket: fetched to it, verified there, and taken from it by a machine that has none."""

import keras
import numpy as np
import pytest

import job
from job.errors import UsageError
from job.model import backbones
from job.model.weight_files import digest_of_weights, local_weights
from job.sections import BackboneConfig
from tests.conftest import PRESET


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


def test_preset_of_kerashub_is_built_from_its_folder_and_from_a_bucket(bed, tmp_path, monkeypatch):
    """By a name that no table has, so that only the preset says how it is built."""
    import keras_hub

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    keras.utils.set_random_seed(0)
    preset = keras_hub.models.ViTBackbone((32, 32, 3), 16, 2, 2, 8, 16)
    preset.save_to_preset(str(tmp_path / "preset"))
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    expected = np.asarray(preset(pixels))[:, 0]
    places = (str(tmp_path / "preset"), bed.put_folder(tmp_path / "preset", f"{bed.bucket()}/preset"))
    configs = [BackboneConfig(name="hub:kaggle://me/vit/keras/tiny/1", weights=place) for place in places]
    for config in configs:
        assert np.allclose(backbones.build(config, 32)(pixels), expected, atol=1e-5)
    assert len({backbones.fingerprint(config) for config in configs}) == 1
