"""Short names of KerasHub's presets: a table that needs neither TensorFlow nor KerasHub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from job.model.hub.architecture import Architecture

PREFIX = "hub:"


@dataclass(frozen=True)
class Preset:
    """A preset of KerasHub: its name there, its address for a download, and the numbers that it is built from.

    `architecture` is None if the name is none of the table; then the preset's `config.json` has the numbers.
    """

    name: str
    handle: str
    architecture: Architecture | None


_VIT = Architecture(family="vit", patch_size=16, depth=12, width=768, heads=12, mlp_width=3072)
_DEIT = replace(_VIT, family="deit", epsilon=1e-12)
_DINOV2 = replace(_VIT, family="dinov2", patch_size=14, image_size=518, mask_token=True)
_REGISTERS = replace(_DINOV2, registers=4, antialias=True)
_DINOV3 = replace(_VIT, family="dinov3", registers=4, epsilon=1e-5, mask_token=True)
_SIGLIP = replace(_VIT, family="siglip")


def _small(base: Architecture) -> Architecture:
    return replace(base, width=384, heads=6, mlp_width=1536)


def _kaggle(name: str, version: int, architecture: Architecture) -> Preset:
    return Preset(name, f"kaggle://keras/{architecture.family}/keras/{name}/{version}", architecture)


PRESETS: Mapping[str, Preset] = {
    "vit_base": _kaggle("vit_base_patch16_224_imagenet21k", 3, _VIT),
    "vit_base_patch32": _kaggle("vit_base_patch32_224_imagenet21k", 3, replace(_VIT, patch_size=32)),
    "deit_small": _kaggle("deit_small_distilled_patch16_224_imagenet", 1, _small(_DEIT)),
    "deit_base": _kaggle("deit_base_distilled_patch16_224_imagenet", 1, _DEIT),
    "dinov2_small": _kaggle("dinov2_small", 1, _small(_DINOV2)),
    "dinov2_base": _kaggle("dinov2_base", 1, _DINOV2),
    "dinov2_registers_small": _kaggle("dinov2_with_registers_small", 1, _small(_REGISTERS)),
    "dinov2_registers_base": _kaggle("dinov2_with_registers_base", 1, _REGISTERS),
    "dinov3_small": _kaggle("dinov3_vit_small_lvd1689m", 1, _small(_DINOV3)),
    "dinov3_base": _kaggle("dinov3_vit_base_lvd1689m", 1, _DINOV3),
    "siglip_base": _kaggle("siglip_base_patch16_224", 1, _SIGLIP),
    "siglip2_base": _kaggle("siglip2_base_patch16_224", 1, _SIGLIP),
}


def preset(name: str) -> Preset | None:
    """Return the preset that a value of `backbone.name` means, or None if it is a model of keras.applications.

    A value is a short name of the table, `hub:PRESET` with the name of a preset in KerasHub, or `hub:HANDLE` with the
    address of one: kaggle://OWNER/MODEL/keras/VARIATION or hf://OWNER/MODEL.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not name.startswith(PREFIX):
        return None
    wanted = name.removeprefix(PREFIX)
    for known in PRESETS.values():
        if wanted in (known.name, known.handle):
            return known
    if "://" in wanted:
        return Preset(wanted.rpartition("/")[2], wanted, None)
    family = wanted.partition("_")[0].replace("siglip2", "siglip")
    return Preset(wanted, f"kaggle://keras/{family}/keras/{wanted}", None)
