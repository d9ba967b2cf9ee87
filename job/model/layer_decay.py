"""Layer-wise learning-rate decay: the blocks of a network, and how fast each of them learns."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from job.model.cut import cut_points, is_attention

if TYPE_CHECKING:
    import keras


def learning_rate_factors(model: keras.Model, layer_decay: float) -> list[float]:
    """Return the factor of the learning rate of each trainable variable. The last layer of the model is the head.

    The head has 1, and each block of layers has `layer_decay` times the factor of the block above it: layer-wise
    learning-rate decay (Clark et al., "ELECTRA", 2020; for images Bao et al., "BEiT", 2022). As there, norms between the
    last block and the head learn like the head.
    """
    factors: dict[int, float] = {}
    factor = 1.0
    for block in reversed(_blocks(model)):
        if any(weight.name.endswith("kernel") for layer in block for weight in layer.weights):
            factor *= layer_decay
        factors |= {id(variable): factor for layer in block for variable in layer.trainable_variables}
    return [factors.get(id(variable), 1.0) for variable in model.trainable_variables]


def _blocks(model: keras.Model) -> list[list[keras.Layer]]:
    """Return the layers below the last one in blocks, from the input upwards.

    The layers between two neighbouring cut points are a block if they are branches that are added or concatenated at the
    upper one. The layers without branches between two such blocks are a block, too. Attention and the MLP after it, which
    are added one after the other, are one block.
    """
    from keras import layers

    operations = {operation.name: operation for operation in model.operations[:-1]}
    names = [point.name for point in cut_points(model)]
    ends = {name for pair in pairwise(names) if _joins(operations[pair[1]]) for name in pair}
    blocks: list[list[keras.Layer]] = [[]]
    attends = False
    for name, operation in operations.items():
        if isinstance(operation, layers.Layer):
            blocks[-1].append(operation)
        attends = attends or is_attention(operation)
        if name in ends:
            if not attends:
                blocks.append([])
            attends = False
    return blocks


def _joins(operation: keras.Operation) -> bool:
    """Return whether branches are added or concatenated, and not multiplied as by the gate of squeeze-and-excitation."""
    from keras import layers, tree

    return len(tree.flatten(operation.input)) > 1 and not isinstance(operation, (layers.Multiply, layers.Dot))
