"""ONNX: conversion by tf2onnx, and onnxruntime."""

from __future__ import annotations

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
    import tf2onnx

    answer = classifier.answer
    model, _ = tf2onnx.convert.from_function(
        answer, answer.input_signature, opset=_OPSET, custom_op_handlers={"Erfc": (_erfc, [])}
    )
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

    def probabilities(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of uint8 pixels."""
        return np.asarray(self._session.run(["probabilities"], {"pixels": pixels_NHWC})[0])
