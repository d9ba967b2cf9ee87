"""Weights of KerasHub's vision transformers: from a file that KerasHub wrote into the model of `transformer.build`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from job.errors import UsageError
from job.model.hub.architecture import FAMILIES, Architecture, FamilyName
from job.model.weight_files import in_words, refuse_links, refused

if TYPE_CHECKING:
    import h5py
    import keras


@dataclass(frozen=True)
class _Layout:
    """The groups of a weights file. The names from `norm_1` on are inside each block."""

    embedding: str
    patches: str
    block: str
    norm: str
    norm_1: str
    attention: str
    norm_2: str
    mlp_1: str
    mlp_2: str


_VIT = _Layout(
    embedding="layers/vi_t_patching_and_embedding",
    patches="patch_embedding",
    block="layers/vi_t_encoder/encoder_layers/vi_t_encoder_block",
    norm="layers/vi_t_encoder/layer_norm",
    norm_1="layer_norm_1",
    attention="mha",
    norm_2="layer_norm_2",
    mlp_1="mlp/dense_1",
    mlp_2="mlp/dense_2",
)
_DINOV2 = _Layout(
    embedding="layers/dinov2_embedding",
    patches="patch_embeddings/projection",
    block="layers/dinov2_encoder/layers/dinov2_layer",
    norm="layers/layer_normalization",
    norm_1="norm1",
    attention="attention/attention",
    norm_2="norm2",
    mlp_1="mlp/fc1",
    mlp_2="mlp/fc2",
)
_SIGLIP_LAYERS = "layers/sig_lip_vision_encoder/layers"
_LAYOUTS: Mapping[FamilyName, _Layout] = {
    "vit": _VIT,
    "deit": replace(
        _VIT,
        embedding="layers/dei_t_embeddings",
        block="layers/dei_t_encoder/encoder_layers/dei_t_encoder_block",
        norm="layers/dei_t_encoder/layer_norm",
        mlp_1="mlp/dense",
        mlp_2="output_layer/dense",
    ),
    "dinov2": _DINOV2,
    "dinov3": replace(
        _DINOV2,
        embedding="layers/dinov3_embedding",
        block="layers/dinov3_encoder/layers/dinov3_layer",
        attention="attention",
        mlp_1="mlp/up_proj",
        mlp_2="mlp/down_proj",
    ),
    "siglip": _Layout(
        embedding=f"{_SIGLIP_LAYERS}/sig_lip_vision_embedding",
        patches="patch_embedding",
        block=f"{_SIGLIP_LAYERS}/sig_lip_encoder_layer",
        norm=f"{_SIGLIP_LAYERS}/layer_normalization",
        norm_1="layer_norm1",
        attention="self_attn",
        norm_2="layer_norm2",
        mlp_1="mlp/fc1",
        mlp_2="mlp/fc2",
    ),
}


def load(model: keras.Model, file: Path, architecture: Architecture) -> None:
    """Load the weights of a file, after their names and shapes have been checked.

    Position embeddings of another image size are resized with bicubic interpolation, as in KerasHub's DINOv2.

    Raises:
        UsageError: if the file has other weights; its text names the first one.
    """
    import h5py

    refuse_links(file)
    grid = math.isqrt(model.get_layer("embedding").output.shape[1] - architecture.prefix)
    with refused(file), h5py.File(file) as content:
        loaded = _Stored(file, content, architecture).for_layers(grid)
    layers = [layer for layer in model.layers if layer.weights]
    for layer in layers:
        expected, found = [tuple(w.shape) for w in layer.weights], [w.shape for w in loaded[layer.name]]
        if expected != found:
            raise UsageError(
                f"--weights {file}: {layer.name} has weights of {in_words(found)}, and in a {architecture} of "
                f"{in_words(expected)}. Set backbone.name to that of the file."
            )
    for layer in layers:
        layer.set_weights(loaded[layer.name])


class _Stored:
    """The content of a weights file, read as one of this architecture."""

    def __init__(self, file: Path, content: h5py.File, architecture: Architecture) -> None:
        self.file, self.content, self.architecture = file, content, architecture
        self.layout = _LAYOUTS[architecture.family]

    def _refusal(self, why: str) -> UsageError:
        return UsageError(
            f"--weights {self.file}: {why}. Give a file of a {self.architecture} that KerasHub has saved, or another "
            "backbone.name."
        )

    def for_layers(self, grid: int) -> dict[str, list[np.ndarray]]:
        """Return the weights of each layer of a model whose photos are `grid` patches wide."""
        layout, depth = self.layout, self.architecture.depth
        if f"{layout.block}_{depth}" in self.content:
            raise self._refusal(f"it has more than {depth} blocks")
        found = {"embedding": self._embedding(grid), "norm": self._pair(layout.norm)}
        for k in range(depth):
            stored = f"{layout.block}_{k}" if k else layout.block
            found |= self._attention(f"block_{k + 1}", stored)
            found[f"block_{k + 1}_norm_1"] = self._pair(f"{stored}/{layout.norm_1}")
            found[f"block_{k + 1}_norm_2"] = self._pair(f"{stored}/{layout.norm_2}")
            found[f"block_{k + 1}_mlp_1"] = self._pair(f"{stored}/{layout.mlp_1}")
            found[f"block_{k + 1}_mlp_2"] = self._scaled(self._pair(f"{stored}/{layout.mlp_2}"), f"{stored}/layer_scale2")
        return found | (self._pool() if self.architecture.family == "siglip" else {})

    def _array(self, path: str) -> np.ndarray:
        if path not in self.content:
            raise self._refusal(f"{path} is missing in it")
        return np.asarray(self.content[path], np.float32)

    def _pair(self, path: str) -> list[np.ndarray]:
        """Return kernel and bias, or the two weights of a normalization. A bias that the model does not have is 0."""
        kernel = self._array(f"{path}/vars/0")
        bias = f"{path}/vars/1"
        return [kernel, self._array(bias) if bias in self.content else np.zeros(kernel.shape[-1], np.float32)]

    def _scaled(self, pair: list[np.ndarray], path: str) -> list[np.ndarray]:
        """Return a kernel and a bias with the LayerScale after them folded in (Touvron et al., 2021)."""
        if f"{path}/vars/0" not in self.content:
            return pair
        scale_D = self._array(f"{path}/vars/0")
        return [weight * scale_D for weight in pair]

    def _projection(self, path: str) -> list[np.ndarray]:
        """Return a projection to queries, keys or values, with the heads side by side: (D, D) and (D,)."""
        width = self.architecture.width
        kernel = self._array(f"{path}/vars/0").reshape(width, -1)
        bias = f"{path}/vars/1"
        return [kernel, self._array(bias).ravel() if bias in self.content else np.zeros(width, np.float32)]

    def _attention(self, name: str, stored: str) -> dict[str, list[np.ndarray]]:
        path = f"{stored}/{self.layout.attention}"
        query, key = self._projection(f"{path}/query_dense"), self._projection(f"{path}/key_dense")
        kernel, bias = self._pair(f"{path}/output_dense")
        project = [kernel.reshape(-1, kernel.shape[-1]), bias]
        return {
            f"{name}_query_key": [np.concatenate(pair, axis=-1) for pair in zip(query, key, strict=True)],
            f"{name}_value": self._projection(f"{path}/value_dense"),
            f"{name}_project": self._scaled(project, f"{stored}/layer_scale1"),
        }

    def _embedding(self, grid: int) -> list[np.ndarray]:
        """Return the kernel of the patches, and a bias (T, D) that has the other tokens and all positions, too."""
        a = self.architecture
        kernel, bias_D = self._pair(f"{self.layout.embedding}/{self.layout.patches}")
        own = self.content.get(f"{self.layout.embedding}/vars", {})
        variables = [self._array(f"{self.layout.embedding}/vars/{k}") for k in range(len(own))]
        tokens = FAMILIES[a.family].tokens
        prefix_TD = np.concatenate([v.reshape(-1, a.width) for v in variables[:tokens]] or [np.zeros((0, a.width))])
        patches_TD = np.tile(bias_D, (grid**2, 1))
        if a.family != "dinov3":
            separate = f"{self.layout.embedding}/position_embedding/vars/0"
            positions_TD = self._array(separate) if separate in self.content else variables[-1].reshape(-1, a.width)
            prefix_TD = prefix_TD + positions_TD[:tokens]
            patches_TD += _resized(positions_TD[tokens:], grid, antialias=a.antialias)
        registers_TD = variables[tokens + a.mask_token].reshape(-1, a.width) if a.registers else prefix_TD[:0]
        return [kernel.reshape(-1, a.width), np.concatenate([prefix_TD, registers_TD, patches_TD])]

    def _pool(self) -> dict[str, list[np.ndarray]]:
        """Return the weights of SigLIP's pooling. Keys are multiplied with the constant query.

        The bias of the keys adds the same to the scores of all tokens, which a softmax does not see.
        """
        a, path = self.architecture, f"{_SIGLIP_LAYERS}/sig_lip_multi_head_attention_pooling"
        kernel, bias = self._projection(f"{path}/attention/query_dense")
        head = a.width // a.heads
        query_HE = ((self._array(f"{path}/vars/0").ravel() @ kernel + bias) / math.sqrt(head)).reshape(a.heads, head)
        key_DHE = self._array(f"{path}/attention/key_dense/vars/0")
        kernel, bias = self._pair(f"{path}/attention/output_dense")
        return {
            "pool_scores": [np.einsum("dhe,he->dh", key_DHE, query_HE)],
            "pool_value": [self._array(f"{path}/attention/value_dense/vars/{k}") for k in range(2)],
            "pool_project": [kernel.reshape(-1, a.width), bias],
            "pool_norm": self._pair(f"{path}/layer_norm"),
            "pool_mlp_1": self._pair(f"{path}/mlp/fc1"),
            "pool_mlp_2": self._pair(f"{path}/mlp/fc2"),
        }


def _resized(positions_TD: np.ndarray, grid: int, *, antialias: bool) -> np.ndarray:
    """Return the positions of a square of patches for another square, `grid` patches wide."""
    import keras

    stored = math.isqrt(len(positions_TD))
    if stored == grid:
        return positions_TD
    positions = positions_TD.reshape(stored, stored, -1)
    resized = keras.ops.image.resize(positions, (grid, grid), interpolation="bicubic", antialias=antialias)
    return keras.ops.convert_to_numpy(resized).reshape(grid**2, -1)
