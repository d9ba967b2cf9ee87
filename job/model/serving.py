"""The graph that is exported: encoded bytes in, probabilities and class names out, without any Python behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from job.model.graph_decode import Limits, pixels_of
from job.model.network import fit_as_constants, with_constant_weights

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Each picture that is decoded may take some hundred megabytes (docs/decisions/0018-hostile-bytes.md).
_DECODED_AT_ONCE = 8


def save(
    classifier: keras.Model, folder: Path, *, image_size: int, resize: str, class_names: tuple[str, ...], limits: Limits
) -> None:
    """Write a SavedModel with the signatures `serving_default` (bytes) and `pixels` (uint8 arrays).

    `classifier` takes uint8 pixels (N, size, size, 3) and gives probabilities (N, C). Both signatures answer with
    `probabilities` (N, C), `class_names` (N, C), and the most probable `label` (N) with its `probability` (N).
    `serving_default` adds `valid` (N): false where a picture was not decoded; then its probabilities are 0, its label "".
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
        pixels, valid = decoded(image_bytes, image_size, resize, limits)
        found = answer(pixels)
        return {
            "probabilities": tf.where(valid[:, None], found["probabilities"], 0.0),
            "probability": tf.where(valid, found["probability"], 0.0),
            "class_names": found["class_names"],
            "label": tf.where(valid, found["label"], ""),
            "valid": valid,
        }

    @tf.function(input_signature=[pixels_spec], autograph=False)
    def from_pixels(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(pixels)

    module = tf.Module()
    module.weights = [] if fit_as_constants(classifier) else [variable.value for variable in classifier.variables]
    module.from_bytes, module.from_pixels = from_bytes, from_pixels
    tf.saved_model.save(module, folder, signatures={"serving_default": from_bytes, "pixels": from_pixels})


def decoded(image_bytes: tf.Tensor, size: int, resize: str, limits: Limits) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode encoded pictures (N), each by itself: one that cannot be decoded costs no other.

    Returns uint8 pixels (N, size, size, 3), black where there is no picture, and bools (N) that say where there is one.
    """
    import tensorflow as tf

    with tf.device("CPU"):  # tf.data and the decoders are there only.
        count = tf.shape(image_bytes, tf.int64)[0]
        pictures = (
            tf.data.Dataset.from_tensor_slices(image_bytes)
            .enumerate()
            .map(
                lambda place, encoded: (place, pixels_of(encoded, size, resize, limits)),
                num_parallel_calls=_DECODED_AT_ONCE,
                deterministic=False,
            )
            .ignore_errors()
        )
        black = tf.data.Dataset.from_tensors((count, tf.zeros((size, size, 3), tf.uint8)))
        # One batch of all that could be decoded. The black picture comes last, so the batch is never empty.
        places, pixels = pictures.concatenate(black).batch(count + 1).get_single_element()
        num_decoded = tf.shape(places)[0] - 1
        found_at = tf.tensor_scatter_nd_update(tf.fill([count + 1], num_decoded), places[:, None], tf.range(num_decoded + 1))
        return tf.gather(pixels, found_at[:-1]), found_at[:-1] < num_decoded
