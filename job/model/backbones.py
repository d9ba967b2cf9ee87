"""The pre-trained backbones: a table of those in keras.applications, which needs no TensorFlow, and functions for all."""

from __future__ import annotations

import difflib
import importlib.metadata
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from job.errors import UsageError
from job.model import imagenet
from job.model.hub import backbone as hub
from job.model.hub.architecture import RESCALINGS
from job.model.hub.names import PRESETS, preset
from job.model.weight_files import check_place, digest_of_weights, load_weights, local_weights
from job.sections import NAMED_WEIGHTS, PUBLISHED_WEIGHTS, BackboneConfig
from job.storage.files import digest_of

if TYPE_CHECKING:
    import keras

# Scaling of RGB pixels from 0 to 255. tf: to -1 to 1. torch: standardised with the means and standard deviations of
# ImageNet. caffe: to BGR, with the means subtracted. none: the model scales pixels itself.
Scaling = Literal["tf", "torch", "caffe", "none"]


@dataclass(frozen=True)
class Backbone:
    """One row of the table: the name of its function in keras.applications, and what that function accepts."""

    constructor: str
    scaling: Scaling
    has_alpha: bool = False
    min_image_size: int = 32


BACKBONES: dict[str, Backbone] = {
    "convnext_tiny": Backbone("ConvNeXtTiny", "none"),
    "convnext_small": Backbone("ConvNeXtSmall", "none"),
    "convnext_base": Backbone("ConvNeXtBase", "none"),
    "convnext_large": Backbone("ConvNeXtLarge", "none"),
    "convnext_xlarge": Backbone("ConvNeXtXLarge", "none"),
    "densenet121": Backbone("DenseNet121", "torch"),
    "densenet169": Backbone("DenseNet169", "torch"),
    "densenet201": Backbone("DenseNet201", "torch"),
    "efficientnet_b0": Backbone("EfficientNetB0", "none"),
    "efficientnet_b1": Backbone("EfficientNetB1", "none"),
    "efficientnet_b2": Backbone("EfficientNetB2", "none"),
    "efficientnet_b3": Backbone("EfficientNetB3", "none"),
    "efficientnet_b4": Backbone("EfficientNetB4", "none"),
    "efficientnet_b5": Backbone("EfficientNetB5", "none"),
    "efficientnet_b6": Backbone("EfficientNetB6", "none"),
    "efficientnet_b7": Backbone("EfficientNetB7", "none"),
    "efficientnet_v2_b0": Backbone("EfficientNetV2B0", "none"),
    "efficientnet_v2_b1": Backbone("EfficientNetV2B1", "none"),
    "efficientnet_v2_b2": Backbone("EfficientNetV2B2", "none"),
    "efficientnet_v2_b3": Backbone("EfficientNetV2B3", "none"),
    "efficientnet_v2_s": Backbone("EfficientNetV2S", "none"),
    "efficientnet_v2_m": Backbone("EfficientNetV2M", "none"),
    "efficientnet_v2_l": Backbone("EfficientNetV2L", "none"),
    "inception_resnet_v2": Backbone("InceptionResNetV2", "tf", min_image_size=75),
    "inception_v3": Backbone("InceptionV3", "tf", min_image_size=75),
    "mobilenet": Backbone("MobileNet", "tf", has_alpha=True),
    "mobilenet_v2": Backbone("MobileNetV2", "tf", has_alpha=True),
    "mobilenet_v3_small": Backbone("MobileNetV3Small", "none", has_alpha=True),
    "mobilenet_v3_large": Backbone("MobileNetV3Large", "none", has_alpha=True),
    "nasnet_mobile": Backbone("NASNetMobile", "tf"),
    "nasnet_large": Backbone("NASNetLarge", "tf"),
    "resnet50": Backbone("ResNet50", "caffe"),
    "resnet101": Backbone("ResNet101", "caffe"),
    "resnet152": Backbone("ResNet152", "caffe"),
    "resnet50_v2": Backbone("ResNet50V2", "tf"),
    "resnet101_v2": Backbone("ResNet101V2", "tf"),
    "resnet152_v2": Backbone("ResNet152V2", "tf"),
    "vgg16": Backbone("VGG16", "caffe"),
    "vgg19": Backbone("VGG19", "caffe"),
    "xception": Backbone("Xception", "tf", min_image_size=71),
}


def check(config: BackboneConfig) -> list[str]:
    """Return the mistakes in these settings that can be found without TensorFlow."""
    mistakes = []
    backbone, known = BACKBONES.get(config.name), preset(config.name)
    if backbone is None and known is None:
        names = ", ".join((*BACKBONES, *PRESETS))
        mistakes.append(f"backbone.name: got {config.name!r}; {suggestion(config.name)} Allowed: {names}, hub:PRESET")
    elif config.alpha is not None and not (backbone and backbone.has_alpha):
        mistakes.append(f"backbone.alpha: got {config.alpha}; {config.name} has no width multiplier, leave it out")
    if backbone and config.features != "auto":
        mistakes.append(f"backbone.features: got {config.features}; {config.name} has only the mean, leave it out")
    if known and not known.architecture and config.weights == "random":
        mistakes.append(f"backbone.weights: got random; only the weights of {config.name} say how it is built")
    if config.weights not in NAMED_WEIGHTS:
        mistakes += check_place(config.weights)
    return mistakes


def is_known(name: str) -> bool:
    """Return whether a backbone of this name can be built, or is at least a preset that may exist."""
    return name in BACKBONES or preset(name) is not None


def suggestion(name: str) -> str:
    """Return what somebody may have meant who typed the name of a backbone that does not exist."""
    plain = {known.replace("_", ""): known for known in (*BACKBONES, *PRESETS)}
    close = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), plain, n=1, cutoff=0.5)
    return f"did you mean {plain[close[0]]}?" if close else "docs/backbones.md lists them."


def check_image_size(name: str, image_size: int) -> list[str]:
    """Return a mistake if a backbone is known not to take photos of this side in pixels."""
    if known := preset(name):
        mistake = known.architecture.size_mistake(image_size) if known.architecture else ""
        return [f"image_size: got {image_size}; {name} {mistake}"] if mistake else []
    smallest = BACKBONES[name].min_image_size
    return [f"image_size: got {image_size}; {name} needs at least {smallest} px"] if image_size < smallest else []


def name_to_fetch(config: BackboneConfig, image_size: int) -> str:
    """Return what `weights fetch` calls the weights of a backbone: its name, with what else decides which file it is."""
    if preset(config.name) or not BACKBONES[config.name].has_alpha:
        return config.name
    alpha = "" if config.alpha is None else f":alpha={config.alpha:g}"
    return f"{config.name}{alpha}:image_size={image_size}"


def fingerprint(config: BackboneConfig) -> str:
    """Return a digest of everything that decides the output of the frozen backbone: name, width, content of the weights."""
    if preset(config.name):
        return hub.fingerprint(config)
    named = "random" if config.weights == "random" else "imagenet"
    weights = weights_digest(config) or [named, importlib.metadata.version("keras")]
    return digest_of([config.name, config.alpha, weights])


def weights_digest(config: BackboneConfig) -> str | None:
    """Return the SHA-256 of the files of weights; None for random ones, and for those that keras.applications names."""
    if config.weights == "random" or (config.weights in PUBLISHED_WEIGHTS and not preset(config.name)):
        return None
    return digest_of_weights(local_weights(config))


def build(config: BackboneConfig, image_size: int, *, seed: int = 0) -> keras.Model:
    """Build a backbone with its weights. It turns scaled pixels (N, S, S, 3) into pooled features (N, D).

    Raises:
        UsageError: if the image size or the weights do not fit.
        StorageFailed: if ImageNet weights can be neither found nor downloaded.
    """
    if preset(config.name):
        with _weights_drawn_from(seed):
            return hub.build(config, image_size)
    model, _ = _of_keras(config, image_size, seed)
    if config.weights == "random":
        _calibrate(model, scaling_layers(config), image_size, seed)
    elif config.weights not in PUBLISHED_WEIGHTS:
        load_weights(model, local_weights(config))
    return model


def imagenet_file(config: BackboneConfig, image_size: int) -> tuple[str, Path]:
    """Return the address of a backbone's ImageNet weights, and the file of them. Raises as `build` does."""
    _, files = _of_keras(config, image_size)
    return next(iter(files.items()))


def _of_keras(config: BackboneConfig, image_size: int, seed: int = 0) -> tuple[keras.Model, Mapping[str, Path]]:
    """Return a backbone of keras.applications, and the files of its ImageNet weights, if it has some, by their address."""
    import keras

    backbone = BACKBONES[config.name]
    arguments: dict[str, float] = {"alpha": config.alpha} if config.alpha is not None else {}
    try:
        with _weights_drawn_from(seed), imagenet.files_of_keras(name_to_fetch(config, image_size)) as files:
            model = getattr(keras.applications, backbone.constructor)(
                include_top=False,
                input_shape=(image_size, image_size, 3),
                pooling="avg",
                weights="imagenet" if config.weights in PUBLISHED_WEIGHTS else None,
                **arguments,
            )
    except ValueError as error:
        raise UsageError(f"backbone {config.name} at intake.image_size = {image_size}: {error}") from error
    return model, files


@contextmanager
def _weights_drawn_from(seed: int) -> Iterator[None]:
    """Give Keras a random generator of its own for the seeds of initial weights, while the block lasts.

    By default it uses Python's global one. google-cloud-storage draws from that, too, at every upload, in other threads, so
    the weights would not be reproducible.
    """
    from keras.src.random import seed_generator

    of_all = seed_generator.python_random
    seed_generator.python_random = random.Random(seed)  # noqa: S311 - not used for security.
    try:
        yield
    finally:
        seed_generator.python_random = of_all


def scaling_layers(config: BackboneConfig) -> list[keras.Layer]:
    """Return layers that scale RGB pixels from 0 to 255 as in the pre-training of the backbone."""
    import keras

    scaling = None if preset(config.name) else BACKBONES[config.name].scaling
    if scaling in (None, "tf", "torch"):
        scale, offset = hub.scaling(config) if scaling is None else RESCALINGS[scaling]
        return [keras.layers.Rescaling(scale, offset=offset, name="scale_pixels")]
    if scaling == "caffe":
        # A fixed 1x1 convolution turns RGB into BGR and subtracts the means. Keras refuses to load a Lambda in safe mode.
        swapped = keras.initializers.Constant([[[[0, 0, 1], [0, 1, 0], [1, 0, 0]]]])
        means = keras.initializers.Constant([-103.939, -116.779, -123.68])
        fixed = {"trainable": False, "dtype": "float32", "name": "scale_pixels"}
        return [keras.layers.Conv2D(3, 1, kernel_initializer=swapped, bias_initializer=means, **fixed)]
    return []


def _calibrate(model: keras.Model, scaling: list[keras.Layer], image_size: int, seed: int) -> None:
    """Set the normalization of a backbone with random kernels, so that its features carry information and it can be trained.

    Residual branches start at zero (Goyal et al., "Accurate, large minibatch SGD", 2017). Every BatchNormalization gets the
    statistics of pictures of coloured noise (after Mishkin and Matas, "All you need is a good init", 2016). With the initial
    statistics, activations shrink from layer to layer until float16 cannot hold them.
    """
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Add):
            sources = [tensor._keras_history.operation for tensor in layer.input]
            branches = [s for s in sources if isinstance(s, keras.layers.BatchNormalization) and s.scale]
            if branches:  # If the shortcut has a BatchNormalization, too, the one of the branch comes later.
                branch = max(branches, key=model.operations.index)
                branch.gamma.assign(keras.ops.zeros_like(branch.gamma))
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (16, 8, 8, 3)).astype(np.float32)
    pictures = keras.ops.image.resize(coarse, (image_size, image_size)) + rng.normal(0, 20, (16, image_size, image_size, 3))
    scaled = keras.ops.clip(keras.ops.cast(pictures, "float32"), 0, 255)
    for layer in scaling:
        scaled = layer(scaled)
    normalizations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in normalizations]
    for layer in normalizations:
        layer.momentum = 0.0
    model(scaled, training=True)
    for layer, momentum in zip(normalizations, momenta, strict=True):
        layer.momentum = momentum
