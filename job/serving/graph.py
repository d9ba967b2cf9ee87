"""The graph that is exported: encoded bytes in, probabilities and class names out, without any Python behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from job.model.network import fit_as_constants, with_constant_weights
from job.serving.graph_decode import Limits, pixels_of

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Each picture that is decoded may take some hundred megabytes (docs/decisions/0018-hostile-bytes.md).
_DECODED_AT_ONCE = 8


# What the signatures answer with, for model.json. N pictures, C classes.
OUTPUTS = {
    "probabilities": "float32 (N, C)",
    "class_names": "string (N, C), in the order of the probabilities",
    "probability": "float32 (N), the largest of the probabilities",
    "label": "string (N), the most probable class",
    "valid": "bool (N), of serving_default: false where nothing was decoded; the probabilities are 0, the label is empty",
}


def save(
    classifier: keras.Model, folder: Path, *, image_size: int, resize: str, class_names: tuple[str, ...], limits: Limits
) -> None:
    """Write a SavedModel with the signatures `serving_default` (bytes) and `pixels` (uint8 arrays).

    `classifier` takes uint8 pixels (N, size, size, 3) and gives probabilities (N, C). `OUTPUTS` has the answers.
    """
    import tensorflow as tf

    names = tf.constant(class_names)
    forward = with_constant_weights(classifier)

    pixels_spec = tf.TensorSpec([None, image_size, image_size, 3], tf.uint8, name="pixels")

    @tf.function(input_signature=[pixels_spec], autograph=False)
    def answer(pixels: tf.Tensor) -> dict[str, tf.Tensor]:  # Traced once, for both signatures.
        count = tf.shape(pixels)[0]
        # An empty batch has no forward pass: oneDNN's depthwise convolution fails on it.
        spare = tf.zeros((tf.cast(count == 0, tf.int32), image_size, image_size, 3), tf.uint8)
        probabilities = forward(tf.concat([pixels, spare], axis=0))[:count]
        return {
            "probabilities": probabilities,
            "probability": tf.reduce_max(probabilities, axis=1),
            "class_names": tf.broadcast_to(names[None, :], (count, len(class_names))),
            "label": tf.gather(names, tf.argmax(probabilities, axis=1)),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
    def from_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels, places = decoded(image_bytes, image_size, resize, limits)
        count = tf.shape(image_bytes, tf.int64)[0]

        def in_place(values: tf.Tensor, *shape: int) -> tf.Tensor:  # Zeros, or empty strings, where there is no picture.
            return tf.scatter_nd(places[:, None], values, tf.concat([[count], tf.constant(shape, tf.int64)], axis=0))

        found = answer(pixels)
        return {
            "probabilities": in_place(found["probabilities"], len(class_names)),
            "probability": in_place(found["probability"]),
            "class_names": tf.broadcast_to(names[None, :], (count, len(class_names))),
            "label": in_place(found["label"]),
            "valid": in_place(tf.ones_like(places, tf.bool)),
        }

    @tf.function(input_signature=[pixels_spec], autograph=False)
    def from_pixels(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(pixels)

    module = tf.Module()
    module.weights = [] if fit_as_constants(classifier) else [variable.value for variable in classifier.variables]
    module.from_bytes, module.from_pixels = from_bytes, from_pixels
    tf.saved_model.save(module, folder, signatures={"serving_default": from_bytes, "pixels": from_pixels})


def decoded(image_bytes: tf.Tensor, size: int, resize: str, limits: Limits) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode encoded pictures, each by itself: one that cannot be decoded costs no other.

    Returns uint8 pixels (K, size, size, 3) of those that could be decoded, and int64 places (K) of these in the batch.
    """
    import tensorflow as tf

    with tf.device("CPU"):  # tf.data and the decoders are there only.
        pictures = (
            tf.data.Dataset.from_tensor_slices(image_bytes)
            .enumerate()
            .map(lambda place, encoded: (pixels_of(encoded, size, resize, limits), place), _DECODED_AT_ONCE)
            .ignore_errors()
        )
        # All in one batch. Where no picture could be decoded there would be none, so a spare picture is added, and cut off.
        spare = tf.data.Dataset.from_tensors((tf.zeros((size, size, 3), tf.uint8), tf.constant(-1, tf.int64)))
        batch_size = tf.size(image_bytes, tf.int64) + 1
        pixels, places = pictures.concatenate(spare).batch(batch_size).get_single_element()
        return pixels[:-1], places[:-1]


def class_names(model: tf.Module) -> list[str]:
    """Read the names of the classes from a loaded SavedModel, in the order of its probabilities."""
    import tensorflow as tf

    signature = model.signatures["pixels"]
    _, *shape = signature.structured_input_signature[1]["pixels"].shape
    names = signature(pixels=tf.zeros((1, *shape), tf.uint8))["class_names"][0]
    return [name.decode() for name in names.numpy()]
