"""Heatmaps of whole classifiers, compared with what can be computed by hand."""

import keras
import numpy as np
import pytest

from job.cluster.devices import Devices
from job.measure.calibration import Calibration
from job.measure.models import ShippedModel
from job.model.familiarity import Acceptance, Familiarity
from job.model.gradcam import grad_cam
from job.model.heads import Head
from job.model.hub import transformer
from job.model.hub.architecture import Architecture
from job.model.network import Network
from job.sections import BackboneConfig
from tests.numerics.conftest import SIZE

CLASSES = 3


def head_of(network, seed=0):
    kernel = np.random.default_rng(seed).normal(size=(network.feature_width, CLASSES)).astype(np.float32)
    return Head(kernel, np.zeros(CLASSES, np.float32))


def answers(network, pixels, *, mirrors=False):
    """Heatmaps and probabilities of the shipped model, and its probabilities as it is exported."""
    calibration = Calibration(2.0, np.asarray([0.1, 0.0, 0.2]))
    classifier = ShippedModel(network, head_of(network), None, calibration, mirrors, Acceptance()).classifier
    maps, probabilities = map(np.asarray, grad_cam(classifier)(pixels))
    return maps, probabilities, np.asarray(classifier(pixels)["probabilities"]), classifier


def class_activation_map(network, pixels, classes):
    """The map of Zhou et al. (2016): the last activations, weighted by the kernel of the class."""
    grid = keras.Model(network.backbone.input, network.backbone.get_layer("out_relu").output)
    scaled = np.asarray(pixels, np.float32) / 127.5 - 1
    activations = np.asarray(grid(scaled))
    kernel = head_of(network).kernel_DC[:, classes] / 2
    return np.einsum("nghd,dn->ngh", activations, kernel) / activations[0, ..., 0].size


@pytest.mark.parametrize("unfreeze", ["none", 0.4, "all"])
def test_after_average_pooling_the_heatmap_is_the_class_activation_map(network, pixels, unfreeze):
    recut = network.recut(unfreeze)
    maps, probabilities, exported, _ = answers(recut, pixels[:4])
    assert maps.shape == (4, 2, 2) and np.allclose(probabilities, exported, atol=1e-5)
    expected = np.maximum(class_activation_map(recut, pixels[:4], exported.argmax(1)), 0)
    assert np.allclose(maps, expected, atol=0.01 * expected.max()) and expected.max() > 0


def test_heatmap_of_a_mirrored_model_is_about_both_images(network, pixels):
    maps, probabilities, exported, _ = answers(network, pixels[:4], mirrors=True)
    assert np.allclose(probabilities, exported, atol=1e-5)
    classes, mirrored = exported.argmax(1), np.ascontiguousarray(pixels[:4, :, ::-1])
    both = [class_activation_map(network, photos, classes) for photos in (pixels[:4], mirrored)]
    expected = np.maximum((both[0] + both[1][:, :, ::-1]) / 2, 0)
    assert np.allclose(maps, expected, atol=0.01 * expected.max()) and expected.max() > 0


@pytest.mark.parametrize("family", ["vit", "siglip"])
@pytest.mark.parametrize("unfreeze", ["none", "block_1", "block_2"])
def test_class_token_of_a_transformer_has_a_heatmap_of_its_patches(pixels, family, unfreeze):
    prefix = 0 if family == "siglip" else 1
    tiny = Architecture(family, patch_size=16, depth=2, width=16, heads=2, mlp_width=20, image_size=SIZE)
    assert tiny.prefix == prefix
    vit = Network(BackboneConfig(name="hub:tiny", unfreeze=unfreeze), SIZE, Devices(), seed=0)
    rescaling = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale_pixels")
    vit.__dict__["_built"] = [rescaling], transformer.build(tiny, SIZE, "class")
    maps, probabilities, exported, _ = answers(vit, pixels[:4])
    assert maps.shape == (4, 3, 3) and np.allclose(probabilities, exported, atol=1e-4)
    assert (maps.max(axis=(1, 2)) > 0).any() and np.isfinite(maps).all()


def test_heatmap_of_a_saved_model_is_that_of_the_model(network, pixels, tmp_path):
    maps, probabilities, _, classifier = answers(network, pixels[:4], mirrors=True)
    classifier.save(tmp_path / "model.keras")
    again = grad_cam(keras.models.load_model(tmp_path / "model.keras"))(pixels[:4])
    assert np.allclose(again[0], maps, rtol=1e-4, atol=1e-6) and np.allclose(again[1], probabilities, atol=1e-6)


def test_other_outputs_of_the_exported_model_do_not_change_the_heatmap(network, pixels):
    """With frozen features, it has the layers above the cut twice."""
    network = network.recut(network.config.unfreeze)  # Other tests have heads with more classes.
    features = np.asarray(network.activations_and_features(pixels)[1])
    known = Familiarity.fit(features[:8], np.arange(8) % 2, features[8:], "frozen", seed=0)
    tuned = network.tuned(head_of(network)).get_weights()
    calibration = Calibration(2.0, np.zeros(CLASSES))
    plain, full = (
        grad_cam(ShippedModel(network, head_of(network), tuned, calibration, False, acceptance).classifier)(pixels[:4])
        for acceptance in (Acceptance(), Acceptance(known, 0.05))
    )
    assert np.array_equal(plain[0], full[0]) and np.array_equal(plain[1], full[1])
