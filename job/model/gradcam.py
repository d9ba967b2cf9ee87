"""Grad-CAM: which parts of a photo raise the score of the class that a classifier answers.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017. Axes: N photos,
G grid rows and columns, D channels, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from job.model.cut import CutPoint, cut, cut_points
from job.model.network import Inference, with_constant_weights

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


def grad_cam(classifier: keras.Model, copies: int = 1) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return a function from uint8 pixels (N, S, S, 3) to heatmaps (N, G, G) and probabilities (N, C).

    `classifier` is as `Network.assembled` makes it, or such a model loaded from model.keras. `copies` is the number of
    replicas that the function is compiled for. A heatmap is about the most probable class. Its values are at least 0, and 0
    where nothing speaks for that class.

    The map comes from the last tensor that has a grid. In a network with global average pooling, it is the class activation
    map (Zhou et al., 2016). In a vision transformer, the tensor is the input of the last block: after it, the class token
    depends on no other token.
    """
    import keras
    import tensorflow as tf

    below, above = _parts(classifier, copies)
    mirrors = any(isinstance(layer, keras.layers.Average) for layer in classifier.layers)

    def explain(pixels_NSSD: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        activations = below(pixels_NSSD)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(activations)
            logits_NC = above(activations)
            top_N = tf.reduce_max(logits_NC, axis=1)
        gradients = tape.gradient(top_N, activations)
        activations_NGGD, gradients_NGGD = _on_grid(activations), _on_grid(gradients)
        weights_ND = tf.reduce_mean(gradients_NGGD, axis=(1, 2))
        maps_NGG = tf.einsum("nghd,nd->ngh", activations_NGGD, weights_ND)
        if mirrors:  # The second half of the rows belongs to the mirror images.
            straight, mirrored = tf.split(maps_NGG, 2)
            maps_NGG = straight + mirrored[:, :, ::-1]
        return tf.nn.relu(maps_NGG), tf.nn.softmax(logits_NC)

    return explain


def _parts(classifier: keras.Model, copies: int) -> tuple[Inference, Inference]:
    """Return two functions: from pixels to the last tensor that has a grid, and from there to logits."""
    import keras

    logits = classifier.get_layer("probabilities").input
    classifier = keras.Model(classifier.input, logits)  # Without its other outputs, and the layers for them.
    nested = [layer for layer in classifier.layers if isinstance(layer, keras.Model)]
    models = [keras.Model(layer.input, layer.outputs[0]) for layer in nested]
    model, point = _last_grid(models)
    holder = nested[models.index(model)]
    call = next(node for nodes in classifier._nodes_by_depth.values() for node in nodes if node.operation is holder)
    before = keras.Model(classifier.input, call.input_tensors[0])
    after = [] if call.outputs[0] is logits else [keras.Model(call.outputs[0], logits)]
    lower, *upper = cut(model, point) if point else [model]
    return _chained([before, lower], copies), _chained([*upper, *after], copies)


def _chained(models: Sequence[keras.Model], copies: int) -> Inference:
    """Return inference of several models, one after the other."""
    steps = [with_constant_weights(model, copies) for model in models]
    return lambda inputs: reduce(lambda values, step: step(values), steps, inputs)


def _last_grid(models: Sequence[keras.Model]) -> tuple[keras.Model, CutPoint | None]:
    """Return the last place where one model, or one of these in their order, can be cut and a tensor has a grid.

    It is a cut point of a model, or with None the output of the model. In a transformer, it is below the last attention.
    """
    last: tuple[keras.Model, CutPoint | None] | None = None
    below_attention = last
    for model in models:
        points = {point.name: point for point in cut_points(model)}
        for operation in model.operations:
            if type(operation).__name__ == "DotProductAttention":
                below_attention = last
            point = points.get(operation.name)
            if point and math.prod(point.shape[:-1]) > 1:
                last = model, point
        if math.prod(model.output.shape[1:-1]) > 1:
            last = model, None
    found = below_attention or last
    assert found is not None  # Photos have more than one place, and the first layers keep it.
    return found


def _on_grid(values: tf.Tensor) -> tf.Tensor:
    """Return activations with axes for rows and columns. Tokens before those of the patches are left out."""
    import tensorflow as tf

    if values.shape.rank == 4:
        return values
    side = math.isqrt(values.shape[1])
    return tf.reshape(values[:, values.shape[1] - side**2 :], (-1, side, side, values.shape[2]))
