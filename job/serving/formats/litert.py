"""LiteRT (TensorFlow Lite), with float32 or 8-bit numbers: TensorFlow converts, ai-edge-litert runs it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from job.serving.formats.base import Classifier

if TYPE_CHECKING:
    import tensorflow as tf


def convert(classifier: Classifier) -> bytes:
    """Return the model for LiteRT, with float32 numbers."""
    return _with_about(_converter(classifier).convert(), classifier)


def convert_int8(classifier: Classifier) -> bytes:
    """Return the model for LiteRT with 8-bit weights (per channel) and activations.

    The ranges of activations are those that the training photos of `classifier` give. Input and outputs are as in `convert`.
    """
    import tensorflow as tf

    def photos() -> Iterator[list[np.ndarray]]:
        return ([pixels_HWC[None]] for pixels_HWC in classifier.photos_NHWC)

    converter = _converter(classifier)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = photos
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return _with_about(converter.convert(), classifier)


def _converter(classifier: Classifier) -> tf.lite.TFLiteConverter:
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_saved_model(classifier.saved_model)


def _with_about(model: bytes, classifier: Classifier) -> bytes:
    """Append the class names in a ZIP archive, where TensorFlow Lite's metadata has files: `unzip` shows them."""
    content = io.BytesIO(model)
    with zipfile.ZipFile(content, "a") as archive:
        for name, text in classifier.about.items():
            archive.writestr(f"{name}.{'json' if name == 'class_names' else 'txt'}", text)
    return content.getvalue()


class Interpreter:
    """A LiteRT file, loaded by the interpreter of ai-edge-litert."""

    def __init__(self, file: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter as Loaded

        self._runner = Loaded(str(file), num_threads=threads).get_signature_runner()

    def probabilities(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of uint8 pixels."""
        return np.asarray(self._runner(pixels=pixels_NHWC)["probabilities"])
