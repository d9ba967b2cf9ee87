"""ONNX: conversion by tf2onnx, and onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from job.serving.formats.base import Classifier

if TYPE_CHECKING:
    from tf2onnx.graph import Graph, Node

_OPSET = 18  # The newest that tf2onnx 1.17 knows. onnxruntime reads it since 1.14 (2023).


def convert(classifier: Classifier) -> bytes:
    """Return the model as ONNX. The class names are in its metadata."""
    import onnx
    import tensorflow as tf
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # tf2onnx takes tensors that a function has captured, such as the statistics of Keras' Normalization, for inputs.
    concrete = classifier.answer.get_concrete_function()
    frozen, names = convert_variables_to_constants_v2(concrete), sorted(concrete.structured_outputs)
    signature = classifier.answer.input_signature
    answer = tf.function(lambda pixels: dict(zip(names, frozen(pixels), strict=True)), signature, autograph=False)
    model, _ = tf2onnx.convert.from_function(answer, signature, opset=_OPSET, custom_op_handlers={"Erfc": (_erfc, [])})
    onnx.helper.set_model_props(model, classifier.about)
    return bytes(model.SerializeToString())


def _erfc(graph: Graph, node: Node, name: str, _: object) -> None:
    """Write erfc(x) as 1 - erf(x). ONNX has no Erfc, and exact GELU, as in ConvNeXt, is made of it.

    Without this, tf2onnx leaves a node that no runtime knows, and raises no error.
    """
    node.type = "Erf"
    one = graph.make_const(f"{name}_one", np.float32(1))
    graph.insert_new_node_on_output("Sub", node.output[0], inputs=[one.output[0], node.output[0]], name=f"{name}_minus")


class Session:
    """An ONNX file, loaded by onnxruntime."""

    def __init__(self, file: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def answers(self, pixels_NHWC: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the outputs for uint8 pixels, by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {"pixels": pixels_NHWC}), strict=True))
