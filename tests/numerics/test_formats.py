"""Converted models give the answers of the network, and carry the class names."""

import json
import zipfile

import keras
import numpy as np
import onnx
import pytest

from job.model.heads import Head
from job.serving.formats import onnx as to_onnx
from job.serving.formats.base import Classifier
from job.serving.formats.table import FORMATS

NAMES = ["rose", 'größe, "two"\nlines']


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "mirrors"])
def classifier(request, network, pixels):
    """The assembled network, with the cast to float16 at the cut, and without or with the mean over mirror images."""
    rng = np.random.default_rng(0)
    head = Head(rng.normal(0, 0.3, (network.feature_width, 2)).astype(np.float32), np.zeros(2, np.float32))
    return Classifier(network.assembled(network.tuned(head), mirrors=request.param), NAMES, pixels)


@pytest.fixture(scope="module")
def exact_gelu():
    pixels = keras.Input((8, 8, 3), name="pixels", dtype="uint8")
    x = keras.layers.LayerNormalization()(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("gelu")(keras.layers.Conv2D(8, 3)(x)))
    return Classifier(keras.Model(pixels, keras.layers.Dense(2, activation="softmax")(x)), NAMES, np.empty(0))


def loaded(name, content, tmp_path):
    file = tmp_path / FORMATS[name].file
    file.write_bytes(content)
    return FORMATS[name].open(file, 1)


@pytest.mark.parametrize("name", FORMATS)
def test_format_gives_the_answers_of_the_network(name, classifier, pixels, tmp_path):
    expected = classifier.model.predict(pixels, verbose=0)
    runtime = loaded(name, FORMATS[name].convert(classifier), tmp_path)
    one_by_one = np.concatenate([runtime.probabilities(pixels[k : k + 1]) for k in range(len(pixels))])
    difference, tolerance = np.abs(one_by_one - expected), FORMATS[name].tolerance
    assert one_by_one.dtype == np.float32
    assert difference.max() <= tolerance if tolerance else difference.mean() < 0.05


@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_exact_gelu_is_converted(name, exact_gelu, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    runtime = loaded(name, FORMATS[name].convert(exact_gelu), tmp_path)
    assert np.abs(runtime.probabilities(pixels) - exact_gelu.model.predict(pixels, verbose=0)).max() < 1e-4


@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_same_model_gives_the_same_bytes(name, exact_gelu):
    """So that a format that is made again with another one is not another file."""
    again = Classifier(exact_gelu.model, NAMES, np.empty(0))
    assert FORMATS[name].convert(exact_gelu) == FORMATS[name].convert(again)


def test_runtime_refuses_the_file_that_tf2onnx_writes_for_an_operation_it_does_not_know(exact_gelu, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "_erfc", lambda *_: None)
    with pytest.raises(Exception, match="Erfc"):
        loaded("onnx", FORMATS["onnx"].convert(exact_gelu), tmp_path)


def test_class_names_travel_in_the_file(exact_gelu, tmp_path):
    model = onnx.load_from_string(FORMATS["onnx"].convert(exact_gelu))
    about = {item.key: item.value for item in model.metadata_props}
    assert json.loads(about["class_names"]) == NAMES and "(N, 8, 8, 3)" in about["input"]
    assert {output.name for output in model.graph.output} == {"probabilities", "label_index"}
    (tmp_path / "m.tflite").write_bytes(FORMATS["litert"].convert(exact_gelu))
    with zipfile.ZipFile(tmp_path / "m.tflite") as archive:
        assert json.loads(archive.read("class_names.json")) == NAMES and b"(N, 8, 8, 3)" in archive.read("input.txt")
