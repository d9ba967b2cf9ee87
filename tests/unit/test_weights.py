"""Places with weights: which file or folder a backbone gets from them, and what they must not contain."""

import json

import pytest

import job
from job.errors import UsageError
from job.model.weight_files import check_place, digest_of_weights, local_weights
from job.sections import BackboneConfig
from tests.conftest import PRESET


@pytest.fixture
def place(home, tmp_path):
    """A place with that preset, and with weights of two MobileNets."""
    place = tmp_path / "place"
    list(job.fetch_weights(["dinov2_small"], place))
    manifest = json.loads((place / "weights.json").read_text())
    for alpha, image_size in ((0.35, 96), (0.35, 224), (None, 160)):
        name = f"models/mobilenet_v2_{alpha}_{image_size}.h5"
        (place / name).write_bytes(name.encode())
        about = {"backbone": "mobilenet_v2", "alpha": alpha, "path": name, "source": "", "licence": ""}
        manifest["weights"][name] = about | {"sha256": {name: digest_of_weights(place / name)}}
    (place / "weights.json").write_text(json.dumps(manifest))
    return place


def weights_of(name, place, alpha=None):
    return local_weights(BackboneConfig(name=name, alpha=alpha, weights=str(place)))


def test_backbone_gets_its_weights_from_a_place_with_several(home, place):
    assert weights_of("dinov2_small", place) == place / PRESET
    assert weights_of("mobilenet_v2", place) == place / "models/mobilenet_v2_None_160.h5"
    assert weights_of("mobilenet_v2", place, alpha=1.0) == place / "models/mobilenet_v2_None_160.h5"
    assert weights_of("mobilenet_v2", place / "models/mobilenet_v2_0.35_96.h5", 0.35).name == "mobilenet_v2_0.35_96.h5"
    with pytest.raises(UsageError, match=r"several weights of mobilenet_v2\. Give one of them: .*_224.h5, .*_96.h5"):
        weights_of("mobilenet_v2", place, alpha=0.35)
    with pytest.raises(UsageError, match="no weights of vit_base, only of dinov2_small, .* weights fetch vit_base --to"):
        weights_of("vit_base", place)


def test_place_serves_as_keras_home_and_gives_the_same_digest(home, place, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(place))
    found = weights_of("dinov2_small", "preset")
    assert found == place / PRESET
    assert digest_of_weights(found) == digest_of_weights(home / PRESET)


def test_weights_that_have_changed_since_they_were_fetched_are_refused(place):
    (place / PRESET / "model.weights.h5").write_bytes(b"other weights")
    with pytest.raises(UsageError, match=r"model.weights.h5 has changed since it was fetched. Run .* weights verify"):
        weights_of("dinov2_small", place)


def test_digest_is_that_of_all_that_is_read_of_a_preset(home):
    before = digest_of_weights(home / PRESET)
    (home / PRESET / "README.md").write_text("not read")
    assert digest_of_weights(home / PRESET) == before
    for name in ("image_converter.json", "config.json", "model.weights.h5"):
        (home / PRESET / name).write_text('{"a": 1}')
        assert digest_of_weights(home / PRESET) != before
        before = digest_of_weights(home / PRESET)


def test_preset_with_a_link_out_of_its_folder_is_refused(home, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (home / PRESET / "config.json").unlink()
    (home / PRESET / "config.json").symlink_to(secret)
    with pytest.raises(UsageError, match="config.json is a link out of the folder"):
        weights_of("dinov2_small", home / PRESET)


@pytest.mark.parametrize("name", ["../../outside.h5", "/etc/passwd", ""])
def test_manifest_that_names_files_outside_of_its_place_is_refused(place, name):
    manifest = json.loads((place / "weights.json").read_text())
    manifest["weights"]["dinov2_small"]["path"] = name
    (place / "weights.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="weights.json: this is not what transfer-job weights fetch has written"):
        weights_of("dinov2_small", place)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"made_by": "me", "weights": {}}', "[" * 100_000, "\udcff"])
def test_manifest_of_another_program_is_refused(place, text):
    (place / "weights.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match="weights.json: this is not what transfer-job weights fetch has written"):
        weights_of("dinov2_small", place)


def test_folder_with_neither_a_preset_nor_fetched_weights_is_a_mistake(home, place, tmp_path):
    assert check_place(str(place)) == check_place(str(home / PRESET)) == check_place(str(place / PRESET)) == []
    (mistake,) = check_place(str(tmp_path))
    assert "config.json is missing" in mistake and "weights.json is missing" in mistake
    (home / PRESET / "model.weights.h5").unlink()
    with pytest.raises(UsageError, match="model.weights.h5 is missing. Give a folder that save_to_preset has written"):
        weights_of("dinov2_small", home / PRESET)


def test_all_names_can_be_fetched_and_have_a_licence():
    known = {one.name: one for one in job.known_weights()}
    assert len(known) >= 52 and all(one.licence and one.source for one in known.values())
    assert known["dinov3_small"].licence == "DINOv3 License"
