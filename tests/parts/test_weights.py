"""The commands for weights: fetched from their hubs, verified, and used on a machine without a network."""

import json

import h5py
import keras
import pytest
from keras.src.legacy.saving import legacy_h5_format

from tests.conftest import contents, run_job
from tests.parts.hubs import KERAS, hubs

NAME = "mobilenet_v2:alpha=0.35:image_size=96"
FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"
HANDLE = "kaggle://keras/dinov2/keras/dinov2_small/1"
PRESET = {"config.json": b'{"a": 1}', "model.weights.h5": b"weights"}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The hubs with weights of a MobileNet, of a preset on Kaggle, and of one on Hugging Face."""
    folder = tmp_path_factory.mktemp("hubs")
    model = keras.applications.MobileNetV2((96, 96, 3), 0.35, include_top=False, weights=None)
    with h5py.File(folder / FILE, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    with hubs(folder) as found:
        found.files[KERAS, f"tensorflow/keras-applications/mobilenet_v2/{FILE}"] = (folder / FILE).read_bytes()
        found.put_preset(HANDLE, **PRESET, **{"image_converter.json": b'{"b": 2}'})
        found.put_preset("hf://somebody/vit", **PRESET)
        yield found


@pytest.fixture
def machine(tmp_path, network):
    """The environment of a machine that has the network, and no weights yet."""
    places = ("KERAS_HOME", "KAGGLEHUB_CACHE", "HF_HOME", "HOME")
    (tmp_path / "tmp").mkdir()
    return {**network.environment, "TMPDIR": str(tmp_path / "tmp"), **{p: str(tmp_path / "machine" / p) for p in places}}


@pytest.mark.thorough
def test_weights_of_all_hubs_are_fetched_once_and_verified(tmp_path, network, machine):
    place = tmp_path / "place"
    names = (NAME, "dinov2_small", "hub:hf://somebody/vit")
    done = run_job("weights", "fetch", *names, "--to", place, "--json", **machine)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["weights"]
    assert [(one["licence"], one["is_new"]) for one in found] == [
        ("Apache-2.0", True),
        ("Apache-2.0", True),
        ("see the preset's page", True),
    ]
    whole = contents(place)
    for folder in ("keras/dinov2/keras/dinov2_small/1", "hf/somebody/vit"):
        assert {name: whole[place / "models" / folder / name] for name in PRESET} == PRESET
    assert [path.parts[-5:-1] for path in whole if path.name == "image_converter.json"] == [
        ("dinov2", "keras", "dinov2_small", "1")
    ]
    assert place / "models" / FILE in whole
    network.requests.clear()
    again = run_job("weights", "fetch", *names, "--to", place, **machine)
    assert again.stdout.count("already there") == 3 and network.requests == [] and contents(place) == whole
    assert run_job("weights", "verify", place).returncode == 0

    (place / "models" / FILE).write_bytes(b"damaged")
    (place / "models/hf/somebody/vit/config.json").unlink()
    wrong = run_job("weights", "verify", place)
    assert wrong.returncode == 2
    assert f"changed {place}/models/{FILE}" in wrong.stdout and f"missing {place}/models/hf" in wrong.stdout
    assert f"transfer-job weights fetch {NAME} hub:hf://somebody/vit --to {place}" in wrong.stderr


def test_files_of_others_stay_as_they_are(tmp_path, machine):
    place = tmp_path / "place"
    (place / "models").mkdir(parents=True)
    (place / "models" / FILE).write_bytes(b"mine")
    (place / "notes.txt").write_text("mine")
    before = contents(place)
    done = run_job("weights", "fetch", NAME, "--to", place, **machine)
    assert done.returncode == 2 and f"{place}/models/{FILE} is in the way" in done.stderr
    assert contents(place) == before
    (place / "weights.json").write_text("{}")
    done = run_job("weights", "fetch", "dinov2_small", "--to", place, **machine)
    assert done.returncode == 2 and "weights.json: this is not what transfer-job weights fetch has written" in done.stderr
    assert (place / "weights.json").read_text() == "{}"


@pytest.mark.parametrize("name", [NAME, "dinov2_small"])
def test_machine_without_a_network_says_what_to_type_on_one_with_it(tmp_path, machine, name):
    offline = {**machine, **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")}
    done = run_job("weights", "fetch", name, "--to", tmp_path / "place", **offline)
    assert done.returncode == 74 and "could not be downloaded" in done.stderr
    assert f"On a machine with a network, run transfer-job weights fetch {name} --to DIR" in done.stderr
    assert "set KERAS_HOME" in done.stderr and "build it into the image" in done.stderr
    assert not (tmp_path / "place").exists()


def test_names_with_mistakes_are_refused(tmp_path):
    for name, said in (
        ("mobilnet_v2", "did you mean mobilenet_v2?"),
        ("resnet50:alpha=1", "no width multiplier"),
        ("mobilenet_v2:size=96", "'size' is not one of alpha=A, image_size=S"),
    ):
        done = run_job("weights", "fetch", name, "--to", tmp_path / "place")
        assert done.returncode == 2 and said in done.stderr
