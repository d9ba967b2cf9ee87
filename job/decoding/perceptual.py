"""Brightness, contrast and perceptual hash of a decoded photo. Recompressing a photo hardly changes its hash.

They are computed for every photo. For so few numbers, a call of NumPy takes longer than its arithmetic, so calls are few.
"""

from array import array

import numpy as np
from PIL import Image

_LEVELS = np.arange(256) / 255
# The first eight rows of the orthonormal DCT-II of 32 points.
_DCT_8x32 = np.cos(np.pi / 32 * (np.arange(32) + 0.5)[None, :] * np.arange(8)[:, None]).astype(np.float32)


def brightness_and_contrast(gray: Image.Image) -> tuple[float, float]:
    """Return mean and standard deviation of the gray levels, from 0 to 1, rounded to six digits."""
    histogram = np.frombuffer(array("d", gray.histogram())) / (gray.width * gray.height)
    brightness = float(histogram @ _LEVELS)
    return round(brightness, 6), round(float(histogram @ (_LEVELS - brightness) ** 2) ** 0.5, 6)


def hash_of(gray: Image.Image) -> int:
    """Return 64 bits: which of the 8x8 lowest DCT coefficients of a 32x32 thumbnail are above their median.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010).
    """
    thumbnail = pixels_of(gray.resize((32, 32), Image.Resampling.BOX)).astype(np.float32)
    coefficients = (_DCT_8x32 @ thumbnail @ _DCT_8x32.T).ravel()
    median = np.sort(coefficients[1:])[31]  # np.median takes ten times as long.
    return int.from_bytes(np.packbits(coefficients > median).tobytes(), "big")


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return the pixels of an 8-bit picture faster than np.asarray: uint8 (H, W), or (H, W, 3) for RGB; read-only."""
    shape = (image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(shape)
