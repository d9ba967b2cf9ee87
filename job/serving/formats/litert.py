"""LiteRT (TensorFlow Lite), with float32 or 8-bit numbers: TensorFlow converts, ai-edge-litert runs it."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from job.serving.formats.base import Classifier

if TYPE_CHECKING:
    import tensorflow as tf


def convert(classifier: Classifier) -> bytes:
    """Return the model for LiteRT, with float32 numbers. The class names are in a ZIP archive at its end."""
    return _converted(classifier, lambda _: None)


def convert_int8(classifier: Classifier) -> bytes:
    """Return the model for LiteRT with 8-bit weights (per channel) and activations.

    The training photos of `classifier` give the ranges of activations, and the mean shift by rounded weights, which is taken
    back. Input and outputs are as in `convert`.
    """
    import tensorflow as tf

    from job.model.bias_correction import bias_corrected

    corrected = replace(classifier, model=bias_corrected(classifier.model, classifier.photos_NHWC))

    def quantize(converter: tf.lite.TFLiteConverter) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([pixels_HWC[None]] for pixels_HWC in classifier.photos_NHWC)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    return _converted(corrected, quantize)


def _converted(classifier: Classifier, configure: Callable[[tf.lite.TFLiteConverter], None]) -> bytes:
    """Convert by way of a SavedModel with one signature, whose names of inputs and outputs stay."""
    import tensorflow as tf

    module = tf.Module()
    module.weights, module.answer = [variable.value for variable in classifier.model.variables], classifier.answer
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": classifier.answer})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        configure(converter)
        return _with_about(converter.convert(), classifier)


def _with_about(model: bytes, classifier: Classifier) -> bytes:
    """Append the class names in a ZIP archive, where TensorFlow Lite's metadata has files: `unzip` shows them."""
    content = io.BytesIO(model)
    with zipfile.ZipFile(content, "a") as archive:
        for name, text in classifier.about.items():
            file = zipfile.ZipInfo(f"{name}.{'json' if name == 'class_names' else 'txt'}")  # Without the time of today.
            archive.writestr(file, text)
    return content.getvalue()


class Interpreter:
    """A LiteRT file, loaded by the interpreter of ai-edge-litert."""

    def __init__(self, file: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter as Loaded

        self._runner = Loaded(str(file), num_threads=threads).get_signature_runner()

    def answers(self, pixels_NHWC: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the outputs for uint8 pixels, by name."""
        return dict(self._runner(pixels=pixels_NHWC))
