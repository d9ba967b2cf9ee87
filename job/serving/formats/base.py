"""The model as converters take it, and as runtimes give it back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# The outputs of converted models. N pictures, C classes. These formats hold no strings that depend on the input.
OUTPUTS = {
    "probabilities": "float32 (N, C), in the order of the class names",
    "label_index": "int32 (N), the number of the most probable class",
    "familiarity": "float32 (N), from 0 to 1: the share of validation photos that are less similar to the training photos",
    "accepted": "bool (N), true if probability and familiarity reach the limits of `acceptance`",
}


class Runtime(Protocol):
    """A converted model in memory."""

    def answers(self, pixels_NHWC: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the outputs for uint8 pixels, by name."""
        ...


@dataclass(frozen=True)
class Classifier:
    """The exported network, from uint8 pixels (N, size, size, 3) to the outputs of `Network.assembled`.

    `photos_NHWC` are some training photos, for formats that set the ranges of their numbers by them.
    """

    model: keras.Model
    class_names: Sequence[str]
    photos_NHWC: np.ndarray

    @property
    def about(self) -> Mapping[str, str]:
        """A few words to store in the file: the class names as JSON, and what the input is."""
        size = self.model.input_shape[1]
        return {
            "class_names": json.dumps(self.class_names, ensure_ascii=False),
            "input": f"pixels: uint8 RGB (N, {size}, {size}, 3), not scaled",
        }

    @cached_property
    def answer(self) -> tf.types.experimental.GenericFunction:
        """The network as a function with its `OUTPUTS`. Its weights are constants, which converters can fold."""
        import tensorflow as tf

        from job.model.network import with_constant_weights

        forward = with_constant_weights(self.model)

        @tf.function(
            autograph=False, input_signature=[tf.TensorSpec([None, *self.model.input_shape[1:]], tf.uint8, "pixels")]
        )
        def answer(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
            found = forward(pixels)
            found["label_index"] = tf.argmax(found["probabilities"], axis=1, output_type=tf.int32)
            return {name: found[name] for name in OUTPUTS if name in found}

        return answer
