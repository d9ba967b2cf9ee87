"""Where a backbone can be cut in two: below runs once and its output is stored, above is fine-tuned.

A cut point is a tensor that every later operation reaches the input through. They are found in the graph, so every
functional model has them, whatever its layers are called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from job.errors import UsageError

if TYPE_CHECKING:
    import keras

_TOLERANCE = 0.05


@dataclass(frozen=True)
class CutPoint:
    """`name` of the operation whose output is cut, its `shape` without the batch, and the share of the backbone's
    multiply-adds that lies above it."""

    name: str
    shape: tuple[int, ...]
    share_above: float

    @property
    def values_per_view(self) -> int:
        return int(np.prod(self.shape))


def cut_points(backbone: keras.Model) -> list[CutPoint]:
    """All of them, from the bottom up, without the input and the pooled output."""
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
    furthest_use_before = -1  # Of everything produced before this operation.
    for k, operation in enumerate(operations):
        shape = tuple(operation.output.shape[1:]) if hasattr(operation.output, "shape") else ()
        inside = not isinstance(operation, keras.layers.InputLayer) and k < len(operations) - 1
        if inside and furthest_use_before <= k and len(shape) == 3 and None not in shape:
            points.append(CutPoint(operation.name, shape, float(share_above[k])))
        furthest_use_before = max(furthest_use_before, last_use[k])
    return points


def below_everything(backbone: keras.Model) -> CutPoint:
    """The input itself: nothing stays frozen."""
    tensor = backbone.input
    return CutPoint(tensor._keras_history.operation.name, tuple(tensor.shape[1:]), 1.0)


def choose(unfreeze: float | str, points: list[CutPoint]) -> CutPoint | None:
    """The cut that `backbone.unfreeze` means; None where nothing is to be fine-tuned.

    A share picks the smallest tensor within five points of it, because its output is what is stored.

    Raises:
        UsageError: for a name that is no cut point.
    """
    if unfreeze == "none":
        return None
    if isinstance(unfreeze, str):
        for point in points:
            if point.name == unfreeze:
                return point
        names = ", ".join(f"{p.name} ({p.share_above:.0%})" for p in points)
        raise UsageError(
            f"backbone.unfreeze: {unfreeze!r} is no cut point. Allowed: none, all, a share between 0 and 1, or one of "
            f"these, with the share of the multiply-adds above it: {names}"
        )
    distance = {p: abs(p.share_above - unfreeze) for p in points}
    near = [p for p in points if distance[p] <= _TOLERANCE]
    if near:
        return min(near, key=lambda p: (p.values_per_view, distance[p]))
    return min(points, key=lambda p: distance[p])


def cut(backbone: keras.Model, point: CutPoint) -> tuple[keras.Model, keras.Model]:
    """Two models that share the backbone's layers: pixels to activations, activations to features."""
    import keras

    tensor = next(op.output for op in backbone.operations if op.name == point.name)
    return keras.Model(backbone.input, tensor, name="frozen"), keras.Model(tensor, backbone.output, name="tuned")


def multiply_adds(backbone: keras.Model) -> int:
    """Return the multiply-adds for one photo, in convolutions and dense layers of a backbone with a fixed image size."""
    return sum(_multiply_adds(operation) for operation in backbone.operations)


def _multiply_adds(operation: keras.Operation) -> int:
    """Return the multiply-adds of a convolution or dense layer: each kernel value once for each place of the output."""
    kernels = sum(int(np.prod(w.shape)) for w in getattr(operation, "weights", ()) if len(w.shape) >= 2)
    return kernels * int(np.prod(operation.output.shape[1:-1])) if kernels else 0
