"""The rules of decoding, and its results: facts about a file, the photo, or the refusal of a photo."""

from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import numpy as np

from job.decoding.deep import FULL_BIT_DEPTH
from job.sections import IntakeConfig


@dataclass(frozen=True)
class DecodeRules:
    """The size and shape of decoded photos, and the limits for photos. Sizes are in pixels.

    Values of 16-bit photos are scaled by `bit_depth`, 9 to 16, the bit depth of their data set.
    """

    image_size: int
    resize: Literal["squash", "crop", "pad"]
    max_pixels: int
    min_side_px: int
    max_aspect_ratio: float
    bit_depth: int = FULL_BIT_DEPTH

    @classmethod
    def of(cls, config: IntakeConfig, bit_depth: int) -> Self:
        """Return the rules that a configuration asks for, with the bit depth that was found."""
        names = {field.name for field in fields(cls)} - {"bit_depth"}
        return cls(**{name: getattr(config, name) for name in names}, bit_depth=bit_depth)


@dataclass(frozen=True)
class Facts:
    """Facts about a file. Width and height are of the upright photo; brightness and contrast are from 0 to 1.

    `peak` is the largest colour value of a 16-bit photo, 0 if the file states its bit depth; None for all other photos.
    """

    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    has_exif: bool = False
    phash: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    peak: int | None = None


@dataclass(frozen=True)
class Photo:
    """A decoded photo: uint8 pixels of shape (image_size, image_size, 3).

    `converted` says what had to change to get RGB pixels, `notes` what else is worth knowing; both may be empty.
    """

    pixels_HWC: np.ndarray
    facts: Facts
    converted: str = ""
    notes: str = ""


class BadPhoto(Exception):
    """The refusal of a photo, with the reason in plain words. `is_image` is False if the bytes are no picture at all."""

    def __init__(self, reason: str, facts: Facts = Facts(), *, is_image: bool = True) -> None:
        super().__init__(reason)
        width, height = (min(side, 2**31 - 1) for side in (facts.width, facts.height))  # The table has 32-bit columns.
        self.reason, self.facts, self.is_image = reason, replace(facts, width=width, height=height), is_image


def check_pixels(facts: Facts, rules: DecodeRules) -> None:
    """Refuse a photo with more pixels than the rules allow. Raises: BadPhoto."""
    if facts.width * facts.height > rules.max_pixels:
        size = f"{facts.width}x{facts.height}"
        raise BadPhoto(f"claims {size} pixels, more than intake.max_pixels ({rules.max_pixels:,})", facts)


def check_size(facts: Facts, rules: DecodeRules) -> None:
    """Refuse a photo with too many pixels, or a side that is too short, or too long for the other. Raises: BadPhoto."""
    check_pixels(facts, rules)
    width, height = facts.width, facts.height
    size = f"{width}x{height}"
    if min(width, height) < rules.min_side_px:
        raise BadPhoto(f"{size} pixels: a side is shorter than intake.min_side_px ({rules.min_side_px})", facts)
    if max(width, height) > rules.max_aspect_ratio * min(width, height):
        raise BadPhoto(f"{size} pixels: longer than intake.max_aspect_ratio ({rules.max_aspect_ratio:g}) allows", facts)
