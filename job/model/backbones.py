"""The pre-trained backbones of keras.applications: a table that needs no TensorFlow, and a function that builds one."""

from __future__ import annotations

import difflib
import importlib.metadata
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from job.config import BackboneConfig
from job.console.places import at_start
from job.errors import UsageError
from job.model import imagenet
from job.storage.bucket.downloads import local_copy
from job.storage.bucket.objects import is_remote, parts_of
from job.storage.files import digest_of, digest_of_file

if TYPE_CHECKING:
    import h5py
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
    backbone = BACKBONES.get(config.name)
    if backbone is None:
        mistakes.append(f"backbone.name: got {config.name!r}; {suggestion(config.name)} Allowed: {', '.join(BACKBONES)}")
    elif config.alpha is not None and not backbone.has_alpha:
        mistakes.append(f"backbone.alpha: got {config.alpha}; {config.name} has no width multiplier, leave it out")
    if config.weights not in ("imagenet", "random"):
        file = Path(config.weights)
        if is_remote(config.weights):
            parts_of(config.weights)  # Refuses a URI with credentials before a message below could repeat it.
        if not is_remote(config.weights) and not file.is_file():
            mistakes.append(f"backbone.weights: got {config.weights!r}; allowed: imagenet, random, or an existing file")
        elif file.suffix != ".h5":
            mistakes.append(
                f"backbone.weights: {config.weights} has an unknown format; give a .weights.h5, or a legacy .h5 without top"
            )
    return mistakes


def suggestion(name: str) -> str:
    """Return what somebody may have meant who typed the name of a backbone that does not exist."""
    plain = {known.replace("_", ""): known for known in BACKBONES}
    close = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), plain, n=1, cutoff=0.5)
    return f"did you mean {plain[close[0]]}?" if close else "docs/backbones.md lists them."


def check_image_size(name: str, image_size: int) -> list[str]:
    """Return a mistake if the image size in pixels is too small for the backbone."""
    smallest = BACKBONES[name].min_image_size
    if image_size >= smallest:
        return []
    return [f"image_size: got {image_size}; {name} needs at least {smallest} px"]


def fingerprint(config: BackboneConfig) -> str:
    """Return a digest of everything that decides the output of the frozen backbone: name, width, content of the weights."""
    weights = weights_digest(config) or [config.weights, importlib.metadata.version("keras")]
    return digest_of([config.name, config.alpha, weights])


def weights_digest(config: BackboneConfig) -> str | None:
    """Return the SHA-256 of the file of weights; None for imagenet and random, which are no file of the user."""
    return None if config.weights in ("imagenet", "random") else digest_of_file(_weights_file(config))


def build(config: BackboneConfig, image_size: int, *, seed: int = 0) -> keras.Model:
    """Build a backbone with its weights. It turns scaled pixels (N, S, S, 3) into pooled features (N, D).

    Raises:
        UsageError: if the image size or the weights do not fit.
        StorageFailed: if ImageNet weights can be neither found nor downloaded.
    """
    import keras

    backbone = BACKBONES[config.name]
    arguments: dict[str, float] = {"alpha": config.alpha} if config.alpha is not None else {}
    try:
        with _weights_drawn_from(seed), imagenet.files_of_keras():
            model = getattr(keras.applications, backbone.constructor)(
                include_top=False,
                input_shape=(image_size, image_size, 3),
                pooling="avg",
                weights="imagenet" if config.weights == "imagenet" else None,
                **arguments,
            )
    except ValueError as error:
        raise UsageError(f"backbone {config.name} at intake.image_size = {image_size}: {error}") from error
    if config.weights == "random":
        _calibrate(model, scaling_layers(config), image_size, seed)
    elif config.weights != "imagenet":
        _load_weights(model, _weights_file(config))
    return model


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


def _weights_file(config: BackboneConfig) -> Path:
    """Return the path of the weights file on this machine. A file in a bucket is downloaded."""
    return local_copy(config.weights) if is_remote(config.weights) else Path(config.weights)


def scaling_layers(config: BackboneConfig) -> list[keras.Layer]:
    """Return layers that scale RGB pixels from 0 to 255 as in the pre-training of the backbone."""
    import keras

    scaling = BACKBONES[config.name].scaling
    if scaling == "tf":
        return [keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale_pixels")]
    if scaling == "torch":
        means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        scale = [1 / (255 * d) for d in deviations]
        offset = [-m / d for m, d in zip(means, deviations, strict=True)]
        return [keras.layers.Rescaling(scale, offset=offset, name="scale_pixels")]
    if scaling == "caffe":
        # A fixed 1x1 convolution turns RGB into BGR and subtracts the means. Keras refuses to load a Lambda in safe mode.
        swap = keras.layers.Conv2D(
            3,
            1,
            kernel_initializer=keras.initializers.Constant([[[[0, 0, 1], [0, 1, 0], [1, 0, 0]]]]),
            bias_initializer=keras.initializers.Constant([-103.939, -116.779, -123.68]),
            trainable=False,
            dtype="float32",
            name="scale_pixels",
        )
        return [swap]
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


def _load_weights(model: keras.Model, file: Path) -> None:
    """Load weights from a file. Shapes are checked first, because Keras skips what does not fit, silently or vaguely."""
    _refuse_links(file)
    with _refused(file):
        stored = _stored_shapes(file, model)
    expected = [(layer.name, [tuple(w.shape) for w in layer.weights]) for layer in model.layers if layer.weights]
    for (name, shapes), (stored_name, stored_shapes) in zip(expected, stored, strict=False):
        if shapes != stored_shapes:
            raise UsageError(
                f"--weights {file}: layer {name} has weights of {_in_words(shapes)}, the file's {stored_name} of "
                f"{_in_words(stored_shapes)}. Set backbone.name and backbone.alpha to those of the file."
            )
    if len(expected) != len(stored):
        raise UsageError(
            f"--weights {file}: {len(stored)} layers with weights in the file, {len(expected)} in {model.name}. "
            "Give a file of this backbone, without its top."
        )
    with warnings.catch_warnings(), _refused(file):
        warnings.simplefilter("ignore")  # Keras warns about groups that older files do not have.
        model.load_weights(file)


@contextmanager
def _refused(file: Path) -> Iterator[None]:
    """Turn errors in the block about the content of a weights file into a UsageError."""
    try:
        yield
    except (MemoryError, UsageError):
        raise
    except Exception as error:  # For a file with other content, h5py and Keras raise many kinds of exceptions.
        if isinstance(error, OSError) and error.errno:
            raise at_start(error, f"--weights {file}", file) or error from None
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--weights {file}: this is no file of Keras weights without top ({said}). Give a .weights.h5 that Keras saved."
        ) from error


def _refuse_links(file: Path) -> None:
    """Refuse an HDF5 file that refers to other files, because its digest would not cover their content."""
    import h5py

    elsewhere: list[str] = []

    def look(name: str, link: h5py.HardLink | h5py.SoftLink | h5py.ExternalLink) -> None:
        found = content[name] if isinstance(link, h5py.HardLink) else None
        if found is None or (isinstance(found, h5py.Dataset) and (found.is_virtual or found.external)):
            elsewhere.append(name)

    with _refused(file), h5py.File(file) as content:
        content.visititems_links(look)
    if elsewhere:
        raise UsageError(
            f"--weights {file}: {elsewhere[0]} in it is a link, or lies in another file. Save the weights again with Keras."
        )


def _stored_shapes(file: Path, model: keras.Model) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Return the name and weight shapes of each layer in the file that has weights, in the order of the model."""
    import h5py

    with h5py.File(file) as content:
        if "layers" in content:
            return _shapes_of_keras_3(content["layers"], model)
        group = content.get("model_weights", content)
        names = [_text(name) for name in group.attrs["layer_names"]]
        weights = {name: [_text(w) for w in group[name].attrs["weight_names"]] for name in names}
        return [(name, [tuple(group[name][w].shape) for w in weights[name]]) for name in names if weights[name]]


def _shapes_of_keras_3(layers: h5py.Group, model: keras.Model) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Read the shapes from a file of Keras 3, which names layers by class and a counter: conv2d, conv2d_1, ..."""
    counter: dict[str, int] = {}
    found = []
    for layer in model.layers:
        kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", type(layer).__name__)).lower()
        number = counter.get(kind, 0)
        counter[kind] = number + 1
        if layer.weights:
            name = f"{kind}_{number}" if number else kind
            variables = layers[name]["vars"] if name in layers and "vars" in layers[name] else {}
            found.append((name, [tuple(variables[str(k)].shape) for k in range(len(variables))]))
    return found


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _in_words(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes) or "no shape"
