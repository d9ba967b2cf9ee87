"""Random views of photos, in the vocabulary and with the meaning of Keras' ImageDataGenerator.

Rotation, shifts, shear, zoom and flips become one affine warp, computed for a whole batch on the device; then the
channel shift and the brightness follow. What is drawn is a pure function of (seed, example, view).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from job.config import AugmentConfig

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Transforms:
    """Drawn parameters of B views, arrays of shape (B,).

    `tx` and `ty` are shifts in pixels along the width and the height, `zx` and `zy` factors of the sampled area (below 1
    enlarges), angles in degrees, `brightness` a factor, `channel_shift` in levels of 255.
    """

    theta: np.ndarray
    tx: np.ndarray
    ty: np.ndarray
    shear: np.ndarray
    zx: np.ndarray
    zy: np.ndarray
    flip_horizontal: np.ndarray
    flip_vertical: np.ndarray
    channel_shift: np.ndarray
    brightness: np.ndarray

    def matrices(self, size: int) -> np.ndarray:
        """The eight numbers of each projective transform from output to input pixels (x, y), float32 of shape (B, 8).

        The product is ImageDataGenerator's: rotation, shift, shear, zoom about the centre; flips come after them.
        """
        rotation = np.deg2rad(self.theta)
        shear = np.deg2rad(self.shear)
        one, zero = np.ones_like(rotation), np.zeros_like(rotation)

        def stack(*rows: tuple[np.ndarray, ...]) -> np.ndarray:
            return np.stack([np.stack(row, -1) for row in (*rows, (zero, zero, one))], -2)

        cos, sin = np.cos(rotation), np.sin(rotation)
        rotate = stack((cos, -sin, zero), (sin, cos, zero))
        shift = stack((one, zero, self.tx), (zero, one, self.ty))
        slant = stack((one, -np.sin(shear), zero), (zero, np.cos(shear), zero))
        zoom = stack((self.zx, zero, zero), (zero, self.zy, zero))
        flip = stack((1 - 2 * self.flip_horizontal, zero, zero), (zero, 1 - 2 * self.flip_vertical, zero))
        middle = np.full_like(rotation, size / 2 - 0.5)
        to_middle = stack((one, zero, -middle), (zero, one, -middle))
        back = stack((one, zero, middle), (zero, one, middle))
        matrices = back @ rotate @ shift @ slant @ zoom @ flip @ to_middle
        return matrices.reshape(-1, 9)[:, :8].astype(np.float32)


def draw(config: AugmentConfig, keys_B: np.ndarray, views_B: np.ndarray, size: int) -> Transforms:
    """The transforms of these views (1 and up) of the examples with these keys, for pictures of size x size pixels."""
    uniform = np.empty((len(keys_B), 10))
    for row, key, view in zip(uniform, keys_B, views_B, strict=True):
        generator = np.random.Philox(key=[config.seed or 0, int(key)], counter=[0, 0, 0, int(view)])
        row[:] = np.random.Generator(generator).random(10)

    def between(column: int, low: float, high: float) -> np.ndarray:
        return low + (high - low) * uniform[:, column]

    def shift(column: int, extent: float) -> np.ndarray:
        pixels = extent * size if extent < 1 else extent
        return between(column, -pixels, pixels)

    zoom = config.zoom_range
    zoom_low, zoom_high = (1 - zoom, 1 + zoom) if isinstance(zoom, float) else zoom
    return Transforms(
        theta=between(0, -config.rotation_range, config.rotation_range),
        tx=shift(1, config.width_shift_range),
        ty=shift(2, config.height_shift_range),
        shear=between(3, -config.shear_range, config.shear_range),
        zx=between(4, zoom_low, zoom_high),
        zy=between(5, zoom_low, zoom_high),
        flip_horizontal=(uniform[:, 6] < 0.5) & config.horizontal_flip,
        flip_vertical=(uniform[:, 7] < 0.5) & config.vertical_flip,
        channel_shift=between(8, -config.channel_shift_range, config.channel_shift_range),
        brightness=between(9, *(config.brightness_range or (1.0, 1.0))),
    )


def apply(
    config: AugmentConfig,
    images_BHWC: tf.Tensor,
    matrices_B8: tf.Tensor,
    channel_shift_B: tf.Tensor,
    brightness_B: tf.Tensor,
) -> tf.Tensor:
    """Augmented pictures, float32 from 0 to 255, from pictures of the same shape.

    The channel shift is clipped to the warped picture's own range and comes before the brightness, as in Keras.
    """
    import tensorflow as tf

    images = tf.cast(images_BHWC, tf.float32)
    images = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=matrices_B8,
        output_shape=tf.shape(images)[1:3],
        fill_value=config.cval,
        interpolation="BILINEAR",
        fill_mode=config.fill_mode.upper(),
    )
    if config.channel_shift_range:
        low = tf.reduce_min(images, axis=(1, 2, 3), keepdims=True)
        high = tf.reduce_max(images, axis=(1, 2, 3), keepdims=True)
        images = tf.clip_by_value(images + channel_shift_B[:, None, None, None], low, high)
    if config.brightness_range is not None:
        images = tf.clip_by_value(images * brightness_B[:, None, None, None], 0.0, 255.0)
    return images
