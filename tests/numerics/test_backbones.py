import os
import random
import shutil
import subprocess
import sys
import threading

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from job.errors import UsageError
from job.model import backbones
from job.model.backbones import BACKBONES
from job.model.cut import choose, cut, cut_points, multiply_adds
from job.sections import BackboneConfig
from tests.conftest import ROOT


def test_every_backbone_of_keras_applications_is_in_the_table():
    constructors = {n for n in dir(keras.applications) if n[0].isupper()}
    assert {b.constructor for b in BACKBONES.values()} == constructors


@pytest.mark.parametrize("name", BACKBONES)
def test_scaling_is_that_of_the_models_own_preprocess_input(name):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.float32)
    constructor = getattr(keras.applications, BACKBONES[name].constructor)
    expected = sys.modules[constructor.__module__].preprocess_input(pixels.copy())
    scaled = pixels
    for layer in backbones.scaling_layers(BackboneConfig(name=name)):
        scaled = layer(scaled)
    assert np.allclose(scaled, expected, atol=1e-4)


@pytest.mark.parametrize(("name", "count"), [("mobilenet_v2", 73), ("resnet50", 38), ("efficientnet_v2_b0", 63)])
def test_number_of_cut_points(name, count):
    model = backbones.build(BackboneConfig(name=name, weights="random"), 64)
    assert len(cut_points(model)) == count


@pytest.mark.parametrize("name", [n for n, b in BACKBONES.items() if b.min_image_size > 32] + ["mobilenet_v2"])
def test_smallest_image_size_of_the_table_is_that_of_keras(name):
    smallest = BACKBONES[name].min_image_size
    config = BackboneConfig(name=name, weights="random")
    with pytest.raises(UsageError):
        backbones.build(config, smallest - 1)
    assert backbones.check_image_size(name, smallest - 1) and not backbones.check_image_size(name, smallest)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "mobilenet_v3_small", "nasnet_mobile", "vgg16"])
def test_what_the_table_lets_through_can_be_built(name):
    assert BACKBONES[name].min_image_size == 32
    backbones.build(BackboneConfig(name=name, weights="random"), 32)


def test_multiply_adds_are_those_counted_by_hand():
    pixels = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(pixels)  # 4 x 4 places, 3 x 3 x 3 x 4 kernel values.
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)  # 4 x 4 places, 3 x 3 x 4 kernel values.
    x = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    assert multiply_adds(keras.Model(pixels, x)) == 16 * 108 + 16 * 36 + 20


def check_halves(name, size=64, unfreeze=0.4):
    model = backbones.build(BackboneConfig(name=name, weights="random"), size)
    points = cut_points(model)
    assert points and all(p.share_above <= q.share_above + 1e-9 for p, q in zip(points[1:], points, strict=False))
    below, above = cut(model, choose(unfreeze, points))
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    whole = np.asarray(model(pixels, training=False))
    assert np.allclose(
        np.asarray(above(below(pixels, training=False), training=False)), whole, atol=1e-4 * np.abs(whole).max()
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["mobilenet_v2", "convnext_tiny", "nasnet_mobile"])
def test_halves_put_together_are_the_whole(name):
    check_halves(name)


@pytest.mark.long
@pytest.mark.parametrize("name", BACKBONES)
def test_halves_of_every_backbone_put_together_are_the_whole(name):
    check_halves(name, size=96)


def test_share_picks_the_smallest_tensor_near_it_and_a_name_that_one():
    points = cut_points(backbones.build(BackboneConfig(alpha=0.35, weights="random"), 160))
    by_share = choose(0.4, points)
    assert by_share.name == "block_9_add" and by_share.values_per_view < choose("block_10_expand", points).values_per_view
    assert choose("none", points) is None
    with pytest.raises(UsageError, match=r"no cut point. Allowed: .*block_9_add \(40%\)"):
        choose("block_9_expand", points)


def test_weights_that_do_not_fit_name_the_layer_and_both_shapes(tmp_path):
    small = backbones.build(BackboneConfig(alpha=0.35, weights="random"), 32)
    small.save_weights(tmp_path / "small.weights.h5")
    with h5py.File(tmp_path / "legacy.h5", "w") as legacy:
        legacy_h5_format.save_weights_to_hdf5_group(legacy, small)
    for file in (tmp_path / "small.weights.h5", tmp_path / "legacy.h5"):
        again = backbones.build(BackboneConfig(alpha=0.35, weights=str(file)), 32, seed=9)
        assert all(np.array_equal(a, b) for a, b in zip(small.get_weights(), again.get_weights(), strict=True))
        with pytest.raises(UsageError, match=r"layer .* has weights of .*1x1x48x16, the file's .* of .*1x1x48x8"):
            backbones.build(BackboneConfig(alpha=0.5, weights=str(file)), 32)
    (tmp_path / "no.weights.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="no file of Keras weights"):
        backbones.build(BackboneConfig(alpha=0.35, weights=str(tmp_path / "no.weights.h5")), 32)


def test_random_weights_are_the_seeds_whatever_other_threads_draw():
    config, over = BackboneConfig(alpha=0.35, weights="random"), threading.Event()

    def draw():
        while not over.wait(0.001):
            random.random()

    thread = threading.Thread(target=draw)
    undisturbed = backbones.build(config, 32, seed=5).get_weights()
    thread.start()
    disturbed = backbones.build(config, 32, seed=5).get_weights()
    over.set()
    thread.join()
    other = backbones.build(config, 32, seed=6).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(undisturbed, disturbed, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(undisturbed, other, strict=True))


def test_image_size_that_the_backbone_cannot_take_is_a_usage_error():
    with pytest.raises(UsageError, match=r"inception_v3 at intake.image_size = 32"):
        backbones.build(BackboneConfig(name="inception_v3", weights="random"), 32)


def test_imagenet_weights_come_from_keras_home(shared, tmp_path):
    """In a process of its own, because Keras reads KERAS_HOME when it is imported."""
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
    (tmp_path / "models").mkdir()
    shutil.copy(shared / "weights" / name, tmp_path / "models")
    script = (
        "import sys, numpy as np\n"
        "from job.sections import BackboneConfig\n"
        "from job.model.backbones import build\n"
        "both = [build(BackboneConfig(alpha=0.35, weights=w), 224).get_weights() for w in ('imagenet', sys.argv[1])]\n"
        "print(len(both[0]), all(np.array_equal(a, b) for a, b in zip(*both)))"
    )
    command = [sys.executable, "-c", script, str(shared / "weights" / name)]
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.stdout.split()[-2:] == ["260", "True"], done.stderr


def _save(file, number):
    with h5py.File(file, "w") as weights:
        weights["layers/dense/vars/0"] = [number]


def test_fingerprint_follows_the_content_of_the_weights(tmp_path):
    first, second = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    _save(first, 1.0)
    shutil.copy(first, second)

    def of(file):
        return backbones.fingerprint(BackboneConfig(weights=str(file)))

    assert of(first) == of(second)
    _save(second, 2.0)
    assert of(first) != of(second)
