"""Architectures of KerasHub's vision transformers as numbers: the families, and the numbers in a preset's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass as validated

# Scaling of RGB pixels from 0 to 255, as in the pre-training of backbones: factors and summands of the channels.
Rescaling = Literal["tf", "torch"]
Channels = float | list[float]

_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # Of ImageNet.
RESCALINGS: Mapping[Rescaling, tuple[Channels, Channels]] = {
    "tf": (1 / 127.5, -1.0),
    "torch": ([1 / (255 * d) for d in _DEVIATIONS], [-m / d for m, d in zip(_MEANS, _DEVIATIONS, strict=True)]),
}

Features = Literal["class", "mean", "both"]
FamilyName = Literal["vit", "deit", "dinov2", "dinov3", "siglip"]


@dataclass(frozen=True)
class Family:
    """Properties that all models of a family share.

    `tokens` are the tokens before the patches, without registers. `features` are those of its authors' linear classifier.
    `scaling` is that of pixels in the pre-training, one of `RESCALINGS`. `licence` is that of the weights, `stated_in` the
    page where they say so. Papers: arXiv 2010.11929 (ViT), 2012.12877, 2304.07193, 2508.10104, 2303.15343 (SigLIP).
    """

    backbone: str
    tokens: int
    scaling: Rescaling
    features: Features
    licence: str
    stated_in: str
    rotary: bool = False
    tanh_gelu: bool = False


_GOOGLE, _META = "https://huggingface.co/google", "https://github.com/facebookresearch"
_DINOV3_LICENCE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license"
FAMILIES: Mapping[FamilyName, Family] = {
    "vit": Family("ViTBackbone", 1, "tf", "class", "Apache-2.0", f"{_GOOGLE}/vit-base-patch16-224"),
    "deit": Family("DeiTBackbone", 2, "torch", "class", "Apache-2.0", f"{_META}/deit/blob/main/README_deit.md"),
    "dinov2": Family("DINOV2Backbone", 1, "torch", "both", "Apache-2.0", f"{_META}/dinov2/blob/main/MODEL_CARD.md"),
    "dinov3": Family("DINOV3Backbone", 1, "torch", "both", "DINOv3 License", _DINOV3_LICENCE, rotary=True),
    "siglip": Family("SigLIPBackbone", 0, "tf", "class", "Apache-2.0", f"{_GOOGLE}/siglip-base-patch16-224", tanh_gelu=True),
}


def _side(shape: object) -> object:
    """Return the side of a square given as (side, side) or (side, side, channels), and a number unchanged."""
    if not isinstance(shape, list | tuple):
        return shape
    if shape[:1] != shape[1:2]:
        raise ValueError(f"{shape} is no square")
    return shape[0]


Side = Annotated[PositiveInt, BeforeValidator(_side)]


@validated(frozen=True, config=ConfigDict(validate_by_name=True, validate_by_alias=True))
class Architecture:
    """The numbers that a vision transformer is built from. Their aliases are their names in a preset's `config.json`.

    `image_size` is the side in pixels of the photos that the position embedding was trained with. `antialias` says how
    DINOv2 resizes it. A model with `mask_token` has a variable more in its weights file.
    """

    family: FamilyName
    patch_size: Side
    depth: PositiveInt = Field(validation_alias=AliasChoices("num_layers"))
    width: PositiveInt = Field(validation_alias=AliasChoices("hidden_dim"))
    heads: PositiveInt = Field(validation_alias=AliasChoices("num_heads"))
    mlp_width: PositiveInt = Field(validation_alias=AliasChoices("intermediate_dim", "mlp_dim"))
    image_size: Side = Field(default=224, validation_alias=AliasChoices("position_embedding_shape", "image_shape"))
    registers: int = Field(default=0, ge=0, validation_alias=AliasChoices("num_register_tokens"))
    epsilon: float = Field(default=1e-6, gt=0, validation_alias=AliasChoices("layer_norm_epsilon", "layer_norm_eps"))
    antialias: bool = Field(default=False, validation_alias=AliasChoices("antialias_in_interpolation"))
    mask_token: bool = Field(default=False, validation_alias=AliasChoices("use_mask_token"))
    rope_theta: float = Field(default=100.0, gt=0)

    @property
    def prefix(self) -> int:
        """The number of tokens before those of the patches."""
        return FAMILIES[self.family].tokens + self.registers

    def __str__(self) -> str:
        return f"{self.family} of {self.depth} blocks, {self.width} wide, with patches of {self.patch_size} px"

    def size_mistake(self, image_size: int) -> str:
        """Return what is wrong with a side of photos in pixels, and what to take instead; empty if it can be used."""
        below = image_size // self.patch_size * self.patch_size
        if image_size == below:
            return ""
        near = " or ".join(str(size) for size in (below, below + self.patch_size) if size)
        return f"needs a multiple of its patch size, {self.patch_size} px; take {near}"


class _Saved(BaseModel):
    """An object that Keras has serialized."""

    registered_name: str
    config: dict[str, object]


# Variants that no preset of the sizes S and B has, and the only value that is built.
_ONLY: Mapping[str, object] = {
    "use_class_token": True,
    "use_swiglu_ffn": False,
    "use_gated_mlp": False,
    "hidden_activation": "gelu",
    "intermediate_activation": "gelu_approximate",
}


def from_config(content: bytes) -> Architecture:
    """Return the architecture that the content of a preset's `config.json` describes. Only numbers are read from it.

    Raises:
        ValueError: if this is no model that can be built; its text says why.
    """
    saved = _Saved.model_validate_json(content)
    kinds: dict[str, FamilyName] = {f"keras_hub>{family.backbone}": name for name, family in FAMILIES.items()}
    if saved.registered_name not in kinds:
        raise ValueError(f"it is a {saved.registered_name}; known are {', '.join(kinds)}")
    family = kinds[saved.registered_name]
    if family == "siglip":
        saved = _Saved.model_validate(saved.config.get("vision_encoder"))
    for key, value in _ONLY.items():
        if saved.config.get(key, value) != value:
            raise ValueError(f"{key} is {saved.config[key]!r}; only {value!r} can be built")
    architecture = TypeAdapter(Architecture).validate_python({**saved.config, "family": family})
    if architecture.width % architecture.heads:
        raise ValueError(f"hidden_dim {architecture.width} is no multiple of num_heads {architecture.heads}")
    if FAMILIES[family].rotary and (head := architecture.width // architecture.heads) % 4:
        raise ValueError(f"{head} features of a head are no multiple of 4")
    return architecture
