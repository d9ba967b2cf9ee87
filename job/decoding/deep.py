"""Pictures with 16 bits in a channel: their values, and how these become 8 bits.

Pillow keeps 16 bits only in pictures with one channel. If there are more channels, it keeps only the first byte of each
value. So such a picture is decoded twice, the second time with the bytes swapped.
"""

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

MIN_BIT_DEPTH, FULL_BIT_DEPTH = 9, 16
STATED_BIT_DEPTHS = {"I;12": 12}  # Layouts of TIFF that state their bit depth.
_FULL_SCALE = 2**FULL_BIT_DEPTH - 1
_STRIP_PIXELS = 1 << 20
_SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_COLOURS = ("RGB;16", "RGBA;16", "RGBX;16")


def needed_bit_depth(peak: int) -> int:
    """Return the smallest bit depth, from 9 to 16, that can hold the value `peak`; 16 for the value 0."""
    return max(MIN_BIT_DEPTH, peak.bit_length()) if peak else FULL_BIT_DEPTH


def strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes (left, top, right, bottom) that cover a picture from top to bottom. Working in them saves memory."""
    width, height = size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)


def layout(image: Image.Image) -> str:
    """Return Pillow's name for the layout of 16-bit values in an opened picture, such as RGB;16B; empty if it has none.

    Call it before the picture is loaded, because loading removes this information.
    """
    arguments = image.tile[0].args if image.tile else ""
    stored = str(arguments[0] if isinstance(arguments, tuple) else arguments)
    is_gray = image.mode.startswith("I;16") or (image.format, image.mode) == ("PPM", "I")
    is_deep = is_gray or stored == "LA;16B" or stored[:-1] in _COLOURS
    return (stored or image.mode) if is_deep else ""


def load(image: Image.Image, payload: bytes, stored: str) -> "DeepPicture":
    """Decode an opened picture whose `layout` is `stored`. It raises what Pillow raises."""
    image.load()
    if stored == "LA;16B":  # The four bytes of a pixel are read as the four channels of an 8-bit picture.
        return DeepPicture(_loaded_as(payload, image, "RGBA"), None, "LA")
    key = image.info.get("transparency")
    clear = None if key is None else np.atleast_1d(key)
    if image.mode.startswith("I"):
        return DeepPicture(image, None, "L", clear)
    swapped = _loaded_as(payload, image, stored[:-1] + _SWAPPED[stored[-1]])
    return DeepPicture(image, swapped, image.mode, clear)


def _loaded_as(payload: bytes, image: Image.Image, stored: str) -> Image.Image:
    """Decode the picture once more, with its bytes taken in another layout."""
    again = Image.open(io.BytesIO(payload), formats=[str(image.format)])
    again.tile = [
        tile._replace(args=(stored, *tile.args[1:]) if isinstance(tile.args, tuple) else stored) for tile in again.tile
    ]
    again.load()
    return again


@dataclass(frozen=True)
class DeepPicture:
    """A picture with 16 bits in each channel of `mode`: L, LA, RGB or RGBA.

    For L, `first` has the values (mode I;16 or I). For LA, it has both bytes of both values. Otherwise it has the high bytes
    and `second` has the low bytes. `clear` is the value of the transparent pixels, None if there are none.
    """

    first: Image.Image
    second: Image.Image | None
    mode: str
    clear: np.ndarray | None = None

    def _values(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """Return the values in a part of the picture: uint16 of shape (height, width, channels)."""
        first = np.asarray(self.first.crop(box))
        if self.mode == "L":
            return first.astype(np.uint16)[..., None]
        if self.second is None:
            high, low = first[..., ::2], first[..., 1::2]
        else:
            high, low = first, np.asarray(self.second.crop(box))
        return high.astype(np.uint16) << 8 | low

    @cached_property
    def peaks(self) -> tuple[int, int]:
        """The largest value of the colours, and of the opacity (0 if the picture has no opacity)."""
        num_colours, peaks = len(self.mode.rstrip("A")), (0, 0)
        for values in map(self._values, strips(self.first.size)):
            colours, opacity = values[..., :num_colours], values[..., num_colours:]
            peaks = max(peaks[0], int(colours.max())), max(peaks[1], int(opacity.max(initial=0)))
        return peaks

    def to_8_bit(self, bit_depth: int) -> Image.Image:
        """Return the picture in 8 bits, in mode L, LA, RGB or RGBA. The value 2**bit_depth - 1 and larger ones become 255.

        Opacity is scaled by 16 bits if one of its values needs more than `bit_depth` bits.
        """
        table = _table(bit_depth)
        of_opacity = _table(FULL_BIT_DEPTH) if self.peaks[1] >= 2**bit_depth else table
        mode = self.mode if self.clear is None else f"{self.mode}A"
        width, height = self.first.size
        scaled = np.empty((height, width, len(mode)), np.uint8)
        for box in strips(self.first.size):
            values, part = self._values(box), scaled[box[1] : box[3]]
            part[..., : values.shape[-1]] = table[values]
            if self.clear is not None:
                part[..., -1] = 255 * (values != self.clear).any(axis=-1)
            elif mode.endswith("A"):
                part[..., -1] = of_opacity[values[..., -1]]
        return Image.fromarray(scaled[..., 0] if mode == "L" else scaled)


def _table(bit_depth: int) -> np.ndarray:
    """Return the 8-bit value for each 16-bit value, rounded. uint8 (65536,). The exported graph computes the same."""
    top = 2**bit_depth - 1
    return ((np.minimum(np.arange(_FULL_SCALE + 1), top) * 510 + top) // (2 * top)).astype(np.uint8)
