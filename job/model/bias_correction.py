"""Bias correction: a network whose convolutions give the same mean with 8-bit kernels as with float32 ones.

Rounding a kernel to 8 bits shifts the output of a convolution. Most of the shift is the same for all photos, because the
inputs come from a ReLU, so their mean is far from 0. The shift is known before the conversion, and the normalization that
follows can take it back. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), with
the mean inputs that photos give. Axes of kernels: height, width, inputs (I), outputs (O).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

_STEPS = 127  # Of a kernel with 8 bits, to either side of 0.


def bias_corrected(classifier: keras.Model, photos_NHWC: np.ndarray) -> keras.Model:
    """Return a copy of a classifier, to be converted to 8-bit kernels with a scale for each output of a convolution.

    `classifier` is as `Network.assembled` makes it, or loaded from model.keras. `photos_NHWC` are some uint8 photos.
    Convolutions without a BatchNormalization after them are left alone, so a vision transformer stays as it is.
    """
    import keras

    copy = keras.models.clone_model(classifier)
    copy.set_weights(classifier.get_weights())
    for convolution, normalization, mean_I in list(_with_mean_inputs(copy, photos_NHWC)):
        shift_O = _shift(convolution, mean_I)
        values = {v.name: v.numpy() for v in normalization.variables}
        slope_O = values.get("gamma", 1) / np.sqrt(values["moving_variance"] + normalization.epsilon)
        normalization.beta.assign_sub(slope_O * shift_O)
    return copy


def _with_mean_inputs(
    classifier: keras.Model, photos_NHWC: np.ndarray
) -> Iterator[tuple[keras.Layer, keras.layers.BatchNormalization, np.ndarray]]:
    """Yield each convolution with the normalization after it and the mean of its inputs (I,) over photos and places."""
    import keras

    for call in (call for calls in classifier._nodes_by_depth.values() for call in calls):
        pairs = list(_normalized(call.operation)) if isinstance(call.operation, keras.Model) else []
        if pairs:
            inputs = [keras.ops.mean(convolution.input, axis=(1, 2)) for convolution, _ in pairs]
            means = keras.Model(call.operation.input, inputs)(call.input_tensors[0])
            found = keras.tree.flatten(keras.Model(classifier.input, means).predict(photos_NHWC, verbose=0))
            for (convolution, normalization), values_NI in zip(pairs, found, strict=True):
                yield convolution, normalization, values_NI.mean(axis=0)


def _normalized(model: keras.Model) -> Iterator[tuple[keras.Layer, keras.layers.BatchNormalization]]:
    """Yield each convolution whose output goes through a BatchNormalization that can shift it. Grouped ones are left out."""
    from keras import layers

    for operation in model.operations:
        if isinstance(operation, layers.BatchNormalization) and operation.center:
            before = operation.input._keras_history.operation
            if isinstance(before, layers.DepthwiseConv2D) or (isinstance(before, layers.Conv2D) and before.groups == 1):
                yield before, operation


def _shift(convolution: keras.Layer, mean_I: np.ndarray) -> np.ndarray:
    """Return the change of the mean output (O,) when the kernel is rounded. At the borders of a photo it is less."""
    from keras import layers

    kernel_HWIO = convolution.kernel.numpy()
    by_input = isinstance(convolution, layers.DepthwiseConv2D)  # Then each input has outputs of its own.
    largest = np.abs(kernel_HWIO).max(axis=(0, 1) if by_input else (0, 1, 2), keepdims=True)
    scale = np.maximum(largest, np.finfo(np.float32).tiny * _STEPS) / _STEPS
    error_HWIO = np.rint(kernel_HWIO / scale) * scale - kernel_HWIO
    return np.einsum("hwio,i->io" if by_input else "hwio,i->o", error_HWIO, mean_I).reshape(-1)
