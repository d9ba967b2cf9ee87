"""Cut points of a backbone. The layers below the cut run once and their output is stored; the layers above are fine-tuned.

A cut point is a tensor through which every path from the input to the output goes. Cut points are found in the graph of the
model, not by the names of its layers, so this works for every functional model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from job.errors import UsageError

if TYPE_CHECKING:
    import keras

_TOLERANCE = 0.05


@dataclass(frozen=True)
class CutPoint:
    """A tensor at which the backbone can be cut: the output of operation `name`, of `shape` without the batch axis.

    `share_above` is the share of the backbone's multiply-adds above the cut.
    """

    name: str
    shape: tuple[int, ...]
    share_above: float

    @property
    def values_per_view(self) -> int:
        return int(np.prod(self.shape))


def cut_points(backbone: keras.Model) -> list[CutPoint]:
    """Return all cut points from the input upwards, without the input itself and the pooled output."""
    import keras

    operations = list(backbone.operations)
    place = {id(t): k for k, op in enumerate(operations) for t in keras.tree.flatten(op.output)}
    last_use = dict.fromkeys(range(len(operations)), -1)
    for k, operation in enumerate(operations):
        if not isinstance(operation, keras.layers.InputLayer):
            for tensor in keras.tree.flatten(operation.input):
                last_use[place[id(tensor)]] = k
    costs = np.asarray([_multiply_adds(operation) for operation in operations], np.float64)
    share_above = 1 - np.cumsum(costs) / max(costs.sum(), 1)
    points = []
    furthest_use_before = -1  # The last operation that uses anything from before operation k.
    for k, operation in enumerate(operations):
        shape = tuple(operation.output.shape[1:]) if hasattr(operation.output, "shape") else ()
        inside = not isinstance(operation, keras.layers.InputLayer) and k < len(operations) - 1
        if inside and furthest_use_before <= k and len(shape) in (2, 3) and None not in shape:
            points.append(CutPoint(operation.name, shape, float(share_above[k])))
        furthest_use_before = max(furthest_use_before, last_use[k])
    return points


def below_everything(backbone: keras.Model) -> CutPoint:
    """Return the input of the backbone as a cut point: nothing stays frozen."""
    tensor = backbone.input
    return CutPoint(tensor._keras_history.operation.name, tuple(tensor.shape[1:]), 1.0)


def choose(unfreeze: float | str, points: list[CutPoint]) -> CutPoint | None:
    """Return the cut point for the value of `backbone.unfreeze`; None for "none".

    For a share, this is the smallest tensor within 5 percentage points of it, because the tensor is stored for every view.

    Raises:
        UsageError: if a name is no cut point.
    """
    if unfreeze == "none":
        return None
    if isinstance(unfreeze, str):
        for point in points:
            if point.name == unfreeze:
                return point
        names = ", ".join(f"{p.name} ({p.share_above:.0%})" for p in points)
        raise UsageError(
            f"backbone.unfreeze: {unfreeze!r} is no cut point. Allowed: none, all, a share between 0 and 1, or one of these "
            f"layers (in brackets: the share of multiply-adds above it): {names}"
        )
    distance = {p: abs(p.share_above - unfreeze) for p in points}
    near = [p for p in points if distance[p] <= _TOLERANCE]
    if near:
        return min(near, key=lambda p: (p.values_per_view, distance[p]))
    return min(points, key=lambda p: distance[p])


def cut(backbone: keras.Model, point: CutPoint) -> tuple[keras.Model, keras.Model]:
    """Return two models that share the backbone's layers: scaled pixels to activations, and activations to features."""
    import keras

    tensor = next(op.output for op in backbone.operations if op.name == point.name)
    return keras.Model(backbone.input, tensor, name="frozen"), keras.Model(tensor, backbone.output, name="tuned")


def multiply_adds(backbone: keras.Model) -> int:
    """Return the multiply-adds for one photo in the convolutions, dense layers and attention of a backbone."""
    return sum(_multiply_adds(operation) for operation in backbone.operations)


def _multiply_adds(operation: keras.Operation) -> int:
    """Return the multiply-adds of an operation.

    For a convolution or a dense layer, they are the size of its kernels times the positions of its output. An einsum with a
    kernel has positions only in axes that the kernel does not have. Attention compares each token with each, and then adds
    them up.
    """
    from keras import layers

    if is_attention(operation):
        tokens, heads, width = operation.output.shape[1:]
        return int(2 * tokens**2 * heads * width)
    kernels = sum(int(np.prod(w.shape)) for w in getattr(operation, "weights", ()) if w.name.endswith("kernel"))
    if not kernels:
        return 0
    if isinstance(operation, layers.EinsumDense):
        _, kernel, output = re.split(",|->", operation.equation)
        axes = zip(output[1:], operation.output.shape[1:], strict=True)
        return kernels * int(np.prod([size for axis, size in axes if axis not in kernel]))
    return kernels * int(np.prod(operation.output.shape[1:-1]))


def is_attention(operation: keras.Operation) -> bool:
    return type(operation).__name__ == "DotProductAttention"
