"""Backbones of KerasHub against KerasHub itself, with random weights in presets that it saves."""

import json
from dataclasses import replace

import keras
import keras_hub
import numpy as np
import pytest

from job.cluster.devices import Devices
from job.errors import UsageError
from job.model import backbones
from job.model.cut import choose, cut, cut_points, multiply_adds
from job.model.heads import Head
from job.model.hub.architecture import FAMILIES, Architecture
from job.model.hub.names import PRESETS
from job.model.layer_decay import learning_rate_factors
from job.model.network import Network, _clone
from job.runtime.telemetry import Telemetry
from job.sections import BackboneConfig
from job.serving.formats.base import Classifier
from job.serving.formats.table import FORMATS
from job.train.loop import Trainer
from job.train.recipe import Recipe
from job.train.schedule import Schedule

models = keras_hub.models
TINY = {"depth": 2, "width": 16, "heads": 2, "mlp_width": 20}


def of_hub(a: Architecture, image_size: int) -> keras.Model:
    """KerasHub's model of this architecture, for photos of this size. All its weights are random, biases too."""
    keras.utils.set_random_seed(1)
    common = {
        "patch_size": a.patch_size,
        "num_layers": a.depth,
        "hidden_dim": a.width,
        "num_heads": a.heads,
        "image_shape": (image_size, image_size, 3),
    }
    if a.family == "vit":
        model = models.ViTBackbone(mlp_dim=a.mlp_width, layer_norm_epsilon=a.epsilon, **common)
    elif a.family == "deit":
        model = models.DeiTBackbone(intermediate_dim=a.mlp_width, layer_norm_epsilon=a.epsilon, **common)
    elif a.family == "dinov2":
        model = models.DINOV2Backbone(
            intermediate_dim=a.mlp_width,
            num_register_tokens=a.registers,
            position_embedding_shape=(a.image_size, a.image_size),
            antialias_in_interpolation=a.antialias,
            **common,
        )
    elif a.family == "dinov3":
        model = models.DINOV3Backbone(
            intermediate_dim=a.mlp_width,
            num_register_tokens=a.registers,
            use_key_bias=False,
            layer_norm_eps=a.epsilon,
            **common,
        )
    else:
        vision = models.SigLIPVisionEncoder(intermediate_dim=a.mlp_width, **common)
        text = models.SigLIPTextEncoder(
            vocabulary_size=10, embedding_dim=8, hidden_dim=8, num_layers=1, num_heads=2, intermediate_dim=16
        )
        model = models.SigLIPBackbone(vision, text)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if "int" not in variable.dtype:
            variable.assign(variable + rng.normal(0, 0.02, variable.shape))
    return model


def features_of(model: keras.Model, a: Architecture, pixels_NSSC: np.ndarray) -> dict[str, np.ndarray]:
    """The features that follow from the output of KerasHub's model."""
    encoder = getattr(model, "vision_encoder", model)
    named = isinstance(encoder.input, dict)
    tokens = np.asarray(encoder(dict.fromkeys(encoder.input, pixels_NSSC) if named else pixels_NSSC, training=False))
    if a.family == "siglip":
        return {"class": tokens}
    first, mean = tokens[:, 0], tokens[:, a.prefix :].mean(axis=1)
    return {"class": first, "mean": mean, "both": np.concatenate([first, mean], axis=1)}


def check_parity(name: str, architecture: Architecture, image_size: int, folder, *wanted: str) -> None:
    """Compare with KerasHub's features, the wanted ones or all."""
    model = of_hub(architecture, image_size)
    model.save_to_preset(str(folder))
    if architecture.family == "dinov2":  # Its positions for this size are only resized when weights are loaded.
        model.load_weights(folder / "model.weights.h5")
    pixels = np.random.default_rng(2).normal(0, 1, (2, image_size, image_size, 3)).astype(np.float32)
    found = features_of(model, architecture, pixels)
    for features, expected in ((name, found[name]) for name in wanted or found if name in found):
        config = BackboneConfig(name=name, weights=str(folder), features=features)
        ours = np.asarray(backbones.build(config, image_size)(pixels))
        assert ours.shape == expected.shape and np.abs(ours - expected).max() < 1e-5


@pytest.mark.parametrize("patches", [3, 7])
@pytest.mark.parametrize("name", PRESETS)
def test_features_of_one_block_are_those_of_kerashub(tmp_path, name, patches):
    architecture = replace(PRESETS[name].architecture, depth=1)
    check_parity("hub:short", architecture, patches * architecture.patch_size, tmp_path, "class")


@pytest.mark.long
@pytest.mark.parametrize("name", PRESETS)
def test_features_of_the_whole_model_are_those_of_kerashub(tmp_path, name):
    architecture = PRESETS[name].architecture
    check_parity(name, architecture, 8 * architecture.patch_size, tmp_path, "both", "class")


@pytest.fixture(scope="module", params=FAMILIES)
def preset(request, tmp_path_factory):
    """A tiny preset of each family for photos of 32 px, with an image converter, and its architecture."""
    folder = tmp_path_factory.mktemp(request.param)
    short = next(p.architecture for p in PRESETS.values() if p.architecture.family == request.param)
    architecture = replace(short, patch_size=8, image_size=32, registers=2 if request.param == "dinov3" else 0, **TINY)
    of_hub(architecture, 32).save_to_preset(str(folder))
    converter = getattr(keras_hub.layers, FAMILIES[request.param].backbone.replace("Backbone", "ImageConverter"))
    converter(image_size=(32, 32), scale=[0.01, 0.02, 0.03], offset=[-0.1, -0.2, -0.3]).save_to_preset(str(folder))
    return folder, architecture


def test_pixels_are_scaled_as_by_the_presets_own_image_converter(preset):
    folder, _ = preset
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    expected = keras_hub.layers.ImageConverter.from_preset(str(folder))(pixels)
    (layer,) = backbones.scaling_layers(BackboneConfig(name="hub:tiny", weights=str(folder)))
    assert np.allclose(np.asarray(layer(pixels)), np.asarray(expected), atol=1e-5)


def test_older_image_converters_have_a_mean_and_a_variance(tmp_path):
    of_hub(replace(PRESETS["vit_base"].architecture, patch_size=8, **TINY), 32).save_to_preset(str(tmp_path))
    numbers = {"scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "variance": [0.1, 0.2, 0.3]}
    (tmp_path / "image_converter.json").write_text(json.dumps({"config": {**numbers, "height": 32, "width": 32}}))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    expected = keras_hub.layers.ViTImageConverter(image_size=(32, 32), **numbers)(pixels)
    (layer,) = backbones.scaling_layers(BackboneConfig(name="hub:tiny", weights=str(tmp_path)))
    assert np.allclose(np.asarray(layer(pixels)), np.asarray(expected), atol=1e-5)


def test_halves_their_copy_and_a_saved_file_are_the_whole(preset, tmp_path):
    folder, architecture = preset
    model = backbones.build(BackboneConfig(name="hub:tiny", weights=str(folder)), 40)
    pixels = np.random.default_rng(0).normal(0, 1, (2, 40, 40, 3)).astype(np.float32)
    whole = np.asarray(model(pixels))
    points = {point.name: point for point in cut_points(model)}
    assert {"embedding", "block_1", "block_2"} <= set(points)
    assert points["block_1"].shape == (architecture.prefix + 25, architecture.width)
    below, above = cut(model, choose("block_1", list(points.values())))
    copy = keras.models.clone_model(above, clone_function=lambda layer: _clone(layer, "float32"))
    copy.set_weights(above.get_weights())
    model.save(tmp_path / "model.keras")
    saved = keras.models.load_model(tmp_path / "model.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in saved.operations)
    for found in (above(below(pixels)), copy(below(pixels)), saved(pixels)):
        assert np.allclose(np.asarray(found), whole, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["onnx", "litert"])
def test_classifier_on_a_vision_transformer_travels(preset, name, tmp_path):
    network = Network(BackboneConfig(name="hub:tiny", weights=str(preset[0]), unfreeze="block_1"), 32, Devices(), seed=0)
    head = Head(
        np.random.default_rng(0).normal(0, 0.3, (network.feature_width, 3)).astype(np.float32), np.zeros(3, np.float32)
    )
    model = network.assembled(network.tuned(head))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    file = tmp_path / FORMATS[name].file
    file.write_bytes(FORMATS[name].convert(Classifier(model, ["a", "b", "c"], np.empty(0))))
    runtime = FORMATS[name].open(file, 1)
    found = np.concatenate([runtime.answers(pixels[k : k + 1])["probabilities"] for k in range(len(pixels))])
    assert np.abs(found - model.predict(pixels, verbose=0)["probabilities"]).max() < 1e-4


def test_each_kind_of_features_is_that_of_kerashub(preset, tmp_path):
    check_parity("hub:tiny", preset[1], 40, tmp_path)


def test_weight_decay_leaves_out_norms_biases_and_positions(preset):
    folder, _ = preset
    config = BackboneConfig(name="hub:tiny", weights=str(folder), unfreeze="all")
    network = Network(config, 32, Devices(), seed=0)
    model = network.tuned(Head.zeros(network.feature_width, 3))
    schedule = Schedule.resolve(Recipe(1, 4, 1e-3, 1), num_examples=4, warmup_fraction=0.0, seed=0)
    trainer = Trainer(model, schedule, network.replicas, None, weight_decay=0.1, ema=False, telemetry=Telemetry(None))
    decayed = [v for v in model.trainable_variables if trainer.optimizer._use_weight_decay(v)]
    assert len(decayed) == len([v for v in model.trainable_variables if v.name == "kernel"]) > 10
    assert {v.name for v in decayed} == {"kernel"}
    positions = model.get_layer("embedding").bias
    assert len(positions.shape) == 2 and not any(v is positions for v in decayed)


def test_layers_of_a_transformer_block_have_one_learning_rate(preset):
    folder, architecture = preset
    network = Network(BackboneConfig(name="hub:tiny", weights=str(folder), unfreeze="all"), 32, Devices(), seed=0)
    model = network.tuned(Head.zeros(network.feature_width, 3))
    halvings = {"head": 0, "norm": 0, "block_2": 1, "block_1": 2, "embedding": 3}
    if architecture.family == "siglip":  # Its pooling has kernels, and is a block between them and the head.
        halvings = {"head": 0, "pool": 1, "norm": 1, "block_2": 2, "block_1": 3, "embedding": 4}
    for variable, factor in zip(model.trainable_variables, learning_rate_factors(model, 0.5), strict=True):
        (expected,) = (0.5**n for name, n in halvings.items() if variable.path.split("/")[-2].startswith(name))
        assert factor == expected, variable.path


@pytest.mark.thorough
def test_positions_of_another_size_are_resized_as_kerashub_does(tmp_path):
    architecture = replace(PRESETS["dinov2_small"].architecture, patch_size=8, image_size=64, **TINY)
    check_parity("hub:tiny", architecture, 40, tmp_path)
    check_parity("hub:tiny", replace(architecture, antialias=True, registers=3), 40, tmp_path)


def test_multiply_adds_are_those_counted_by_hand(preset):
    folder, a = preset
    model = backbones.build(BackboneConfig(name="hub:tiny", weights=str(folder), features="mean"), 32)
    tokens = a.prefix + 16
    block = 4 * tokens * a.width**2 + 2 * tokens**2 * a.width + 2 * tokens * a.width * a.mlp_width
    assert multiply_adds(model) == tokens * 8 * 8 * 3 * a.width + 2 * block


def test_fingerprint_covers_features_scaling_and_weights(preset, tmp_path):
    folder, architecture = preset
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())

    def digest(features="auto"):
        return backbones.fingerprint(BackboneConfig(name="hub:any", weights=str(copy), features=features))

    before = digest()
    assert digest(FAMILIES[architecture.family].features) == before != digest("mean")
    saved = json.loads((copy / "image_converter.json").read_text())
    saved["config"]["scale"] = 0.5
    (copy / "image_converter.json").write_text(json.dumps(saved))
    assert digest() != before
    (copy / "image_converter.json").write_bytes((folder / "image_converter.json").read_bytes())
    assert digest() == before
    keras.utils.set_random_seed(5)
    of_hub(replace(architecture, mlp_width=28), 32).save_to_preset(str(copy))
    assert digest() != before


def test_a_folder_of_another_model_is_refused(preset):
    folder, architecture = preset
    if architecture.family == "dinov2":
        with pytest.raises(UsageError, match="this is a dinov2 of 2 blocks, 16 wide, .* and dinov2_small is a dinov2 of 12"):
            backbones.build(BackboneConfig(name="dinov2_small", weights=str(folder)), 32)
    with pytest.raises(UsageError, match="needs a multiple of its patch size, 8 px; take 32 or 40"):
        backbones.build(BackboneConfig(name="hub:tiny", weights=str(folder)), 36)


def test_a_weights_file_that_does_not_fit_names_what_is_missing(preset):
    folder, architecture = preset
    file = folder / "model.weights.h5"
    other = "vit_base" if architecture.family != "vit" else "siglip_base"
    with pytest.raises(UsageError, match="is missing in it. Give a file of a"):
        backbones.build(BackboneConfig(name=other, weights=str(file)), 32)
    with pytest.raises(UsageError, match="a file does not say how to build it"):
        backbones.build(BackboneConfig(name="hub:tiny", weights=str(file)), 32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"registered_name": "keras_hub>ResNetBackbone"}, "it is a keras_hub>ResNetBackbone; known are"),
        ({"num_layers": 0}, "num_layers.*greater than 0"),
        ({"num_heads": 5}, "hidden_dim 12 is no multiple of num_heads 5"),
        ({"registered_name": "keras_hub>DINOV3Backbone"}, "6 features of a head are no multiple of 4"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is True; only False can be built"),
        ({"position_embedding_shape": [32, 16]}, "is no square"),
        ({"hidden_dim": "__import__('os')"}, "valid integer"),
    ],
)
def test_only_numbers_of_known_architectures_are_read(tmp_path, changes, said):
    numbers = {"patch_size": 8, "num_layers": 2, "hidden_dim": 12, "num_heads": 2, "intermediate_dim": 20}
    saved = {"registered_name": "keras_hub>DINOV2Backbone", "config": numbers}
    for key, value in changes.items():
        (saved if key in saved else numbers)[key] = value
    (tmp_path / "config.json").write_text(json.dumps(saved))
    (tmp_path / "model.weights.h5").write_bytes(b"")
    with pytest.raises(UsageError, match=said):
        backbones.build(BackboneConfig(name="hub:any", weights=str(tmp_path)), 32)


def test_random_weights_come_from_the_seed():
    config = BackboneConfig(name="deit_small", weights="random")
    first, again, other = (
        backbones.build(config, 32, seed=seed).get_layer("block_1_value").get_weights()[0] for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()
