"""The exported graph: from the bytes of photo files to probabilities and class names, without Python code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

from job.decoding.deep import FULL_BIT_DEPTH
from job.model.network import fit_as_constants, with_constant_weights
from job.serving.graph_decode import Limits, pixels_of

if TYPE_CHECKING:
    import keras
# A limit, because decoding one picture can take some hundred megabytes (docs/decisions/0018-hostile-bytes.md).
_DECODED_AT_ONCE = 8

# The outputs of the signatures, as described in model.json. N pictures, C classes, D features.
OUTPUTS = {
    "probabilities": "float32 (N, C)",
    "class_names": "string (N, C), in the order of the probabilities",
    "probability": "float32 (N), the largest of the probabilities",
    "label": "string (N), the most probable class",
    "familiarity": "float32 (N), from 0 to 1: the share of validation photos that are less similar to the training photos",
    "accepted": "bool (N), true if probability and familiarity reach the limits of `acceptance`",
    "valid": "bool (N), only serving_default: false if a picture was not decoded; probabilities are then 0, the label empty",
    "features": "float32 (N, D), only the signature features: of the frozen backbone, for finding similar photos",
}


def save(
    classifier: keras.Model,
    folder: Path,
    *,
    image_size: int,
    resize: str,
    class_names: tuple[str, ...],
    limits: Limits,
    bit_depth: int = FULL_BIT_DEPTH,
) -> None:
    """Write a SavedModel with the signatures `serving_default` (bytes of photo files) and `pixels` (uint8 arrays).

    `classifier` is from `Network.assembled`. `OUTPUTS` describes the outputs. If the classifier gives features, they have a
    signature of their own, `features`, which takes pixels. All signatures share one function, so weights are there once.
    """
    names = tf.constant(class_names)
    pixels_spec = tf.TensorSpec([None, image_size, image_size, 3], tf.uint8, name="pixels")
    everything = _everything(classifier, pixels_spec, names)

    def answer(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: values for name, values in everything(pixels).items() if name != "features"}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
    def from_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels, places = decoded(image_bytes, image_size, resize, limits, bit_depth)
        count = tf.shape(image_bytes, tf.int64)[0]

        def in_place(values: tf.Tensor, *shape: int) -> tf.Tensor:  # Zeros or empty strings for pictures not decoded.
            return tf.scatter_nd(places[:, None], values, tf.concat([[count], tf.constant(shape, tf.int64)], axis=0))

        found = {name: in_place(values, *values.shape[1:]) for name, values in answer(pixels).items()}
        return {
            **found,
            "class_names": tf.broadcast_to(names[None, :], (count, len(class_names))),
            "valid": in_place(tf.ones_like(places, tf.bool)),
        }

    @tf.function(input_signature=[pixels_spec], autograph=False)
    def from_pixels(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(pixels)

    @tf.function(input_signature=[pixels_spec], autograph=False)
    def features(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"features": everything(pixels)["features"]}

    signatures = {"serving_default": from_bytes, "pixels": from_pixels}
    if "features" in classifier.output:
        signatures["features"] = features
    module = tf.Module()
    module.weights = [] if fit_as_constants(classifier) else [variable.value for variable in classifier.variables]
    module.functions = list(signatures.values())
    tf.saved_model.save(module, folder, signatures=signatures)


def _everything(
    classifier: keras.Model, pixels_spec: tf.TensorSpec, names: tf.Tensor
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return a function from pixels to all outputs, which is traced once for all signatures."""
    forward = with_constant_weights(classifier)

    @tf.function(input_signature=[pixels_spec], autograph=False)
    def everything(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        count = tf.shape(pixels)[0]
        # oneDNN's depthwise convolution fails on an empty batch, so a black picture is added to it and removed again.
        spare = tf.zeros((tf.cast(count == 0, tf.int32), *pixels_spec.shape[1:]), tf.uint8)
        found = {name: values[:count] for name, values in forward(tf.concat([pixels, spare], axis=0)).items()}
        probabilities = found["probabilities"]
        return {
            **found,
            "probability": tf.reduce_max(probabilities, axis=1),
            "class_names": tf.broadcast_to(names[None, :], (count, len(names))),
            "label": tf.gather(names, tf.argmax(probabilities, axis=1)),
        }

    return everything


def tensors(folder: Path) -> dict[str, dict[str, str]]:
    """Return for each signature in a saved_model.pb the names of its inputs and outputs in the graph."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return {
        name: {key: tensor.name for key, tensor in (*signature.inputs.items(), *signature.outputs.items())}
        for name, signature in saved.meta_graphs[0].signature_def.items()
    }


def decoded(
    image_bytes: tf.Tensor, size: int, resize: str, limits: Limits, bit_depth: int = FULL_BIT_DEPTH
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode the bytes of pictures. One that cannot be decoded does not affect the others.

    Returns uint8 pixels (K, size, size, 3) of the K decoded pictures, and int64 (K), their positions in the batch.
    """
    with tf.device("CPU"):  # tf.data and the decoders run only on CPUs.
        pictures = (
            tf.data.Dataset.from_tensor_slices(image_bytes)
            .enumerate()
            .map(lambda place, encoded: (pixels_of(encoded, size, resize, limits, bit_depth), place), _DECODED_AT_ONCE)
            .ignore_errors()
        )
        # All pictures make one batch. If none was decoded there would be no batch, so one is added and removed again.
        spare = tf.data.Dataset.from_tensors((tf.zeros((size, size, 3), tf.uint8), tf.constant(-1, tf.int64)))
        batch_size = tf.size(image_bytes, tf.int64) + 1
        pixels, places = pictures.concatenate(spare).batch(batch_size).get_single_element()
        return pixels[:-1], places[:-1]


def class_names(model: tf.Module) -> list[str]:
    """Return the class names of a loaded SavedModel, in the order of its probabilities."""
    signature = model.signatures["pixels"]
    _, *shape = signature.structured_input_signature[1]["pixels"].shape
    names = signature(pixels=tf.zeros((1, *shape), tf.uint8))["class_names"][0]
    return [name.decode() for name in names.numpy()]
