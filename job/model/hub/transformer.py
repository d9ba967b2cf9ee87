"""A vision transformer as a functional model of layers and operations of Keras alone, so that it can be cut at every block.

KerasHub's models have one layer that holds all blocks. The model here computes the same (docs/decisions/0041-kerashub.md).
Axes: N photos, T tokens, P values of a patch, D features of a token, H heads, E features of a head, F pairs of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from job.model.hub.architecture import FAMILIES, Architecture, Features

if TYPE_CHECKING:
    import keras


def build(architecture: Architecture, image_size: int, features: Features) -> keras.Model:
    """Return the model with random weights. It turns scaled pixels (N, S, S, 3) into features: (N, D), or (N, 2D) for both.

    The image size S must be a multiple of the patch size.
    """
    import keras
    from keras import layers

    a, patch = architecture, architecture.patch_size
    grid = image_size // patch
    tokens = a.prefix + grid**2
    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    x = layers.Reshape((grid, patch, grid, patch * 3))(pixels)
    x = layers.Permute((1, 3, 2, 4))(x)
    x = layers.Reshape((grid**2, patch**2 * 3))(x)
    # A row of zeros for each token before the patches. Their values, and all positions, are in the bias.
    x = layers.ZeroPadding1D((a.prefix, 0))(x)
    drawn = keras.initializers.RandomNormal(stddev=0.02)
    x = layers.EinsumDense("ntp,pd->ntd", (tokens, a.width), bias_axes="td", bias_initializer=drawn, name="embedding")(x)
    rotation = _rotation(a, grid) if FAMILIES[a.family].rotary else None
    for k in range(1, a.depth + 1):
        normalized = layers.LayerNormalization(epsilon=a.epsilon, name=f"block_{k}_norm_1")(x)
        x = layers.Add(name=f"block_{k}_attended")([x, _attention(normalized, a, f"block_{k}", rotation)])
        normalized = layers.LayerNormalization(epsilon=a.epsilon, name=f"block_{k}_norm_2")(x)
        x = layers.Add(name=f"block_{k}")([x, _mlp(normalized, a, f"block_{k}")])
    x = layers.LayerNormalization(epsilon=a.epsilon, name="norm")(x)
    return keras.Model(pixels, _pooled(x, a, features), name=a.family)


def _attention(
    x: keras.KerasTensor, a: Architecture, name: str, rotation: tuple[np.ndarray, np.ndarray] | None
) -> keras.KerasTensor:
    from keras import layers, ops

    tokens, head = x.shape[1], a.width // a.heads
    query_key = layers.Dense(2 * a.width, name=f"{name}_query_key")(x)
    if rotation is not None:
        query_key = layers.Reshape((tokens, 2 * a.heads, 2, head // 2))(query_key)
        cosines, sines = (layers.Rescaling(table.tolist()) for table in rotation)
        query_key = layers.Add()([cosines(query_key), sines(ops.flip(query_key, axis=3))])
    query, key = ops.unstack(layers.Reshape((tokens, 2, a.heads, head))(query_key), num=2, axis=2)
    value = layers.Reshape((tokens, a.heads, head))(layers.Dense(a.width, name=f"{name}_value")(x))
    attended = layers.Reshape((tokens, a.width))(ops.dot_product_attention(query, key, value))
    return layers.Dense(a.width, name=f"{name}_project")(attended)


def _rotation(a: Architecture, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Return DINOv3's rotary positions as factors of each pair (a, b) of features, and of its swap (b, a).

    The pair becomes (a cos - b sin, b cos + a sin). Angles follow from the centre of the patch (Simeoni et al., "DINOv3",
    2025). Tokens before the patches have no position.
    """
    frequencies_F = 1 / a.rope_theta ** np.arange(0, 1, 4 * a.heads / a.width)
    centres = (np.arange(grid) + 0.5) / grid * 2 - 1
    rows, columns = np.meshgrid(centres, centres, indexing="ij")
    angles = 2 * math.pi * np.stack([rows, columns], axis=-1).reshape(-1, 2, 1) * frequencies_F
    angles_TF = np.pad(angles.reshape(grid**2, -1), ((a.prefix, 0), (0, 0)))
    cosines, sines = np.cos(angles_TF)[:, None, None], np.sin(angles_TF)[:, None]
    return cosines.astype(np.float32), np.stack([-sines, sines], axis=2).astype(np.float32)


def _mlp(x: keras.KerasTensor, a: Architecture, name: str) -> keras.KerasTensor:
    from keras import layers, ops

    x = layers.Dense(a.mlp_width, name=f"{name}_mlp_1")(x)
    x = ops.gelu(x, approximate=FAMILIES[a.family].tanh_gelu)
    return layers.Dense(a.width, name=f"{name}_mlp_2")(x)


def _pooled(x: keras.KerasTensor, a: Architecture, features: Features) -> keras.KerasTensor:
    from keras import layers

    found = []
    if features != "mean":
        found.append(_attention_pooled(x, a) if a.family == "siglip" else _first_token(x))
    if features != "class":
        found.append(layers.GlobalAveragePooling1D()(layers.Cropping1D((a.prefix, 0))(x)))
    return found[0] if len(found) == 1 else layers.Concatenate()(found)


def _first_token(x: keras.KerasTensor) -> keras.KerasTensor:
    from keras import layers

    return layers.Flatten()(layers.Cropping1D((0, x.shape[1] - 1))(x))


def _attention_pooled(x: keras.KerasTensor, a: Architecture) -> keras.KerasTensor:
    """Return SigLIP's pooling: attention of one learned query to all tokens (Zhai et al., 2023), then an MLP.

    The query is a constant, so that the scores of the heads are a dense layer.
    """
    from keras import layers

    scores_NTH = layers.Dense(a.heads, use_bias=False, name="pool_scores")(x)
    weights_NTH = layers.Softmax(axis=1)(scores_NTH)
    attended_NHD = layers.Dot(axes=1)([weights_NTH, x])
    value = layers.EinsumDense("nhd,dhe->nhe", (a.heads, a.width // a.heads), bias_axes="he", name="pool_value")
    attended_NHE = value(attended_NHD)
    pooled = layers.Dense(a.width, name="pool_project")(layers.Flatten()(attended_NHE))
    normalized = layers.LayerNormalization(epsilon=a.epsilon, name="pool_norm")(pooled)
    return layers.Add(name="pool")([pooled, _mlp(normalized, a, "pool")])
