"""Random views of photos. The settings have the names and the meaning of Keras' ImageDataGenerator.

Rotation, shifts, shear, zoom and flips are combined into one affine warp, so that a photo is resampled only once. The
channel shift and the brightness follow. The random parameters are a pure function of (seed, example, view) and do not
depend on the engine. docs/augmentation.md lists every argument of ImageDataGenerator and what it means here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from job.sections import AugmentConfig

if TYPE_CHECKING:
    import tensorflow as tf

# Rounding in float32 may move a point from the edge of the photo to slightly outside. It still counts as inside.
_ON_THE_EDGE_PX = 1e-3
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Augmentation:
    """Random views of photos: `host` prepares a batch with NumPy, `device` finishes it in the graph."""

    def __init__(self, config: AugmentConfig, size: int) -> None:
        """Set up augmentation for photos of size x size pixels."""
        self._config, self._size = config, size

    @property
    def changes_nothing(self) -> bool:
        """True if all ranges are off, so that every view is the photo itself."""
        config = self._config
        return (
            config.rotation_range == 0
            and not any(_choices(r).any() for r in (config.width_shift_range, config.height_shift_range))
            and config.shear_range == 0
            and _zoom(config) == (1, 1)
            and config.channel_shift_range == 0
            and config.brightness_range in (None, (1, 1))
            and not config.horizontal_flip
            and not config.vertical_flip
        )

    def host(self, pixels_BHWC: np.ndarray, keys_B: np.ndarray, views_B: np.ndarray) -> tuple[np.ndarray, ...]:
        """Prepare views of uint8 photos (B, size, size, 3) with these keys (uint64). Return the arguments of `device`.

        View 0 is the photo itself. A view does not depend on the rest of its batch.
        """
        return self.prepared(pixels_BHWC, draw(self._config, keys_B, views_B, self._size))

    def prepared(self, pixels_BHWC: np.ndarray, transforms: Transforms) -> tuple[np.ndarray, ...]:
        """Return the arguments of `device` for transforms that are already drawn.

        With engine = batched: the photos, matrices (B, 8), channel shifts (B,) and brightnesses (B,). With engine =
        image_data_generator: finished views, float32, of the same shape as the photos.
        """
        if self._config.engine == "image_data_generator":
            return (self._by_keras(pixels_BHWC, transforms),)
        factors = (transforms.channel_shift.astype(np.float32), transforms.brightness.astype(np.float32))
        return pixels_BHWC, transforms.matrices(self._size), *factors

    def device(self, *batch: tf.Tensor) -> tf.Tensor:
        """Return views, float32 from 0 to 255 of shape (B, size, size, 3). The arguments are the results of `host`."""
        if self._config.engine == "image_data_generator":
            return batch[0]
        return self._compiled(*batch)

    @cached_property
    def _compiled(self) -> Callable[..., tf.Tensor]:
        """The warp and the colour changes, compiled with XLA if there is no GPU.

        On a CPU, XLA fuses them into one loop, which costs a fifth of TensorFlow's own warp. On a GPU, XLA needs parts of
        CUDA that not every machine has, so there the operations run one by one or inside the caller's graph.
        """
        import tensorflow as tf

        compiled = partial(tf.function, jit_compile=not tf.config.list_physical_devices("GPU"), autograph=False)

        def at_once(pixels_BHWC: tf.Tensor, matrices_B8: tf.Tensor, *colours: tf.Tensor) -> tf.Tensor:
            return self._coloured(self._warped(pixels_BHWC, matrices_B8), *colours)

        if not self._config.channel_shift_range:
            return compiled(at_once)
        # The channel shift reads the warped photo three times. In one function, XLA would compute the warp three times.
        warped, coloured = compiled(self._warped), compiled(self._coloured)
        return lambda pixels_BHWC, matrices_B8, *colours: coloured(warped(pixels_BHWC, matrices_B8), *colours)

    def _warped(self, pixels_BHWC: tf.Tensor, matrices_B8: tf.Tensor) -> tf.Tensor:
        """Sample the source of each pixel bilinearly. Sources outside the photo follow the rules of scipy.ndimage."""
        import tensorflow as tf

        size, config = self._size, self._config
        m = tf.unstack(matrices_B8[:, :6, None, None], axis=1)
        column_W, row_H1 = tf.range(size, dtype=tf.float32), tf.range(size, dtype=tf.float32)[:, None]
        x_BHW = m[0] * column_W + (m[1] * row_H1 + m[2])
        y_BHW = m[3] * column_W + (m[4] * row_H1 + m[5])
        inside_x, inside_y = _folded(x_BHW, size, config.fill_mode), _folded(y_BHW, size, config.fill_mode)
        left, top = tf.floor(inside_x), tf.floor(inside_y)
        right_share, lower_share = (inside_x - left)[..., None], (inside_y - top)[..., None]
        first_of_photo_B = tf.range(tf.shape(pixels_BHWC)[0])[:, None, None] * (size * size)
        index_BHW = first_of_photo_B + tf.cast(top * size + left, tf.int32)
        # The neighbours of the last column and row have the weight 0, but their indices must exist: hence the padding.
        flat = tf.pad(tf.reshape(pixels_BHWC, [-1, 3]), [[0, size + 1], [0, 0]])

        def sample(offset: int) -> tf.Tensor:
            return tf.cast(tf.gather(flat, index_BHW + offset), tf.float32)

        upper = sample(0) + right_share * (sample(1) - sample(0))
        lower = sample(size) + right_share * (sample(size + 1) - sample(size))
        images = upper + lower_share * (lower - upper)
        if config.fill_mode == "constant":
            far_off = tf.maximum(tf.abs(x_BHW - inside_x), tf.abs(y_BHW - inside_y)) > _ON_THE_EDGE_PX
            outside = tf.cast(far_off, tf.float32)[..., None]  # Multiplying is faster: tf.where doubles the loop's time.
            images = images * (1.0 - outside) + config.cval * outside
        return images

    def _coloured(self, images_BHWC: tf.Tensor, channel_shift_B: tf.Tensor, brightness_B: tf.Tensor) -> tf.Tensor:
        """Apply the channel shift, clipped to the value range of each warped photo, and then the brightness, as in Keras."""
        import tensorflow as tf

        if self._config.channel_shift_range:
            low = tf.reduce_min(images_BHWC, axis=(1, 2, 3), keepdims=True)
            high = tf.reduce_max(images_BHWC, axis=(1, 2, 3), keepdims=True)
            images_BHWC = tf.clip_by_value(images_BHWC + channel_shift_B[:, None, None, None], low, high)
        if self._config.brightness_range is not None:
            images_BHWC = tf.clip_by_value(images_BHWC * brightness_B[:, None, None, None], 0.0, 255.0)
        return images_BHWC

    def _by_keras(self, pixels_BHWC: np.ndarray, transforms: Transforms) -> np.ndarray:
        """Make the views with ImageDataGenerator itself, one after the other."""
        import tensorflow as tf

        config = self._config
        generator = tf.keras.preprocessing.image.ImageDataGenerator(
            fill_mode=config.fill_mode,
            cval=config.cval,
            interpolation_order=config.interpolation_order,
            data_format="channels_last",
            dtype="float32",
        )
        images_BHWC = pixels_BHWC.astype(np.float32)
        for row, image in enumerate(images_BHWC):
            parameters = transforms.as_keras(row)
            if not config.channel_shift_range:
                del parameters["channel_shift_intensity"]
            if config.brightness_range is None:  # With any brightness, even 1, Keras truncates to whole levels.
                del parameters["brightness"]
            images_BHWC[row] = generator.apply_transform(image, parameters)
        return images_BHWC


@dataclass(frozen=True)
class Transforms:
    """Random parameters of B views, as arrays of shape (B,).

    `tx` and `ty` are shifts in pixels along width and height, `theta` and `shear` angles in degrees, `channel_shift` levels
    of 255, and `brightness` a factor. `zx` and `zy` scale the sampled area: a value below 1 enlarges the photo.
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
        """Return the eight numbers of each projective transform from output to input pixels (x, y), float32 (B, 8).

        The order is that of ImageDataGenerator: rotation, shift, shear and zoom about the centre, then the flips.
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

    def as_keras(self, row: int) -> dict[str, float | bool]:
        """Return the parameters of one view as ImageDataGenerator.apply_transform takes them."""
        names = {"channel_shift": "channel_shift_intensity"}
        return {names.get(name, name): values[row].item() for name, values in vars(self).items()}


def draw(config: AugmentConfig, keys_B: np.ndarray, views_B: np.ndarray, size: int) -> Transforms:
    """Draw the transforms for these views of the examples with these keys, for photos of size x size pixels.

    View 0 is the photo itself. The distributions are those of ImageDataGenerator.get_random_transform.
    """
    uniform = _uniform(config.seed or 0, keys_B, views_B, 12)
    augmented = np.asarray(views_B) != 0

    def between(column: int, low: float, high: float, unchanged: float = 0.0) -> np.ndarray:
        return np.where(augmented, low + (high - low) * uniform[column], unchanged)

    def shift(column: int, extent: float | tuple[float, ...]) -> np.ndarray:
        unit = size if np.max(extent) < 1 else 1
        if isinstance(extent, float):
            return between(column, -extent * unit, extent * unit)
        choices = _choices(extent)
        chosen = choices[(uniform[column] * len(choices)).astype(np.int64)]
        return np.where(augmented, unit * np.where(uniform[column + 1] < 0.5, chosen, -chosen), 0.0)

    def coin(column: int, thrown: bool) -> np.ndarray:
        return (uniform[column] < 0.5) & thrown & augmented

    zoom = _zoom(config)
    return Transforms(
        theta=between(0, -config.rotation_range, config.rotation_range),
        tx=shift(1, config.width_shift_range),
        ty=shift(3, config.height_shift_range),
        shear=between(5, -config.shear_range, config.shear_range),
        zx=between(6, *zoom, unchanged=1.0),
        zy=between(7, *zoom, unchanged=1.0),
        flip_horizontal=coin(8, config.horizontal_flip),
        flip_vertical=coin(9, config.vertical_flip),
        channel_shift=between(10, -config.channel_shift_range, config.channel_shift_range),
        brightness=between(11, *(config.brightness_range or (1.0, 1.0)), unchanged=1.0),
    )


def _choices(extent: float | tuple[float, ...]) -> np.ndarray:
    """Return the values from which a shift is drawn; its sign is drawn afterwards. For a float, return the largest one."""
    if isinstance(extent, int):
        return np.arange(max(extent, 1), dtype=np.float64)
    return np.atleast_1d(np.asarray(extent, np.float64))


def _zoom(config: AugmentConfig) -> tuple[float, float]:
    zoom = config.zoom_range
    return zoom if isinstance(zoom, tuple) else (1 - zoom, 1 + zoom)


def _uniform(seed: int, keys_B: np.ndarray, views_B: np.ndarray, count: int) -> np.ndarray:
    """Return random numbers from 0 to below 1, float64 of shape (count, B).

    They are outputs of SplitMix64, whose state is mixed from the seed, the key and the view. Source: Steele, Lea and Flood,
    Fast splittable pseudorandom number generators, 2014.
    """
    keys_B, views_B = np.asarray(keys_B).astype(np.uint64), np.asarray(views_B).astype(np.uint64)
    state_B = _mixed(keys_B ^ _mixed(np.asarray([seed], np.uint64) + _GOLDEN))
    state_B = _mixed(state_B + views_B * _GOLDEN)
    bits = _mixed(state_B + np.arange(1, count + 1, dtype=np.uint64)[:, None] * _GOLDEN)
    return (bits >> np.uint64(11)) * 2.0**-53


def _mixed(z: np.ndarray) -> np.ndarray:
    """Return SplitMix64's output function: every input bit influences every output bit. uint64 arithmetic wraps around."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _folded(coordinates: tf.Tensor, size: int, fill_mode: str) -> tf.Tensor:
    """Map coordinates outside the photo to coordinates from 0 to size - 1, as `fill_mode` says. The others stay."""
    import tensorflow as tf

    last = size - 1.0
    if fill_mode == "reflect":  # d c b a | a b c d | d c b a: mirrored at the outer pixel edges, with a period of 2 size.
        from_edge = coordinates + 0.5
        from_edge -= 2.0 * size * tf.floor(from_edge / (2.0 * size))
        coordinates = tf.minimum(from_edge, 2.0 * size - from_edge) - 0.5
    elif fill_mode == "wrap":  # As in scipy, the last pixel is also the first one: a period of size - 1.
        wrapped = coordinates - last * tf.floor(coordinates / last)
        is_on_photo = (coordinates >= -_ON_THE_EDGE_PX) & (coordinates <= last + _ON_THE_EDGE_PX)
        coordinates = tf.where(is_on_photo, coordinates, wrapped)
    return tf.clip_by_value(coordinates, 0.0, last)
