"""The graph that is exported: encoded bytes in, probabilities and class names out, without any Python behind it.

It does what the canonical decoder (job/data/decode.py) does: accurate DCT, scaled while decoding by the same rule, EXIF
orientation of JPEGs, transparency over white, Pillow's resize with its rounding. parity.json has what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from job.data.decode import JPEG_REDUCTIONS
from job.model.network import fit_as_constants, with_constant_weights

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Enough of a JPEG to hold its EXIF segment, which must come before the picture and fits into 64 kB.
_BYTES_SEARCHED_FOR_EXIF = 1 << 18


def save(classifier: keras.Model, folder: Path, *, image_size: int, resize: str, class_names: tuple[str, ...]) -> None:
    """Write a SavedModel with the signatures `serving_default` (bytes) and `pixels` (uint8 arrays).

    `classifier` takes uint8 pixels (N, size, size, 3) and gives probabilities (N, C). Both signatures answer with
    `probabilities` (N, C), `class_names` (N, C) and the most probable `label` (N).
    """
    import tensorflow as tf

    names = tf.constant(class_names)
    forward = with_constant_weights(classifier)

    pixels_spec = tf.TensorSpec([None, image_size, image_size, 3], tf.uint8, name="pixels")

    @tf.function(input_signature=[pixels_spec], autograph=False)
    def answer(pixels: tf.Tensor) -> dict[str, tf.Tensor]:  # Traced once, for both signatures.
        probabilities = forward(pixels)
        count = tf.shape(probabilities)[0]
        return {
            "probabilities": probabilities,
            "class_names": tf.broadcast_to(names[None, :], (count, len(class_names))),
            "label": tf.gather(names, tf.argmax(probabilities, axis=1)),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")], autograph=False)
    def from_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        one = tf.TensorSpec([image_size, image_size, 3], tf.uint8)
        return answer(tf.map_fn(lambda b: pixels_of(b, image_size, resize), image_bytes, fn_output_signature=one))

    @tf.function(input_signature=[pixels_spec], autograph=False)
    def from_pixels(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(pixels)

    module = tf.Module()
    module.weights = [] if fit_as_constants(classifier) else [variable.value for variable in classifier.variables]
    module.from_bytes, module.from_pixels = from_bytes, from_pixels
    tf.saved_model.save(module, folder, signatures={"serving_default": from_bytes, "pixels": from_pixels})


def pixels_of(image_bytes: tf.Tensor, size: int, resize: Literal["squash", "crop", "pad"] | str) -> tf.Tensor:
    """One encoded picture as uint8 pixels of shape (size, size, 3), in the graph."""
    import tensorflow as tf

    is_png = tf.strings.substr(image_bytes, 0, 4) == b"\x89PNG"
    image = tf.case(
        [
            (tf.io.is_jpeg(image_bytes), lambda: _upright_jpeg(image_bytes, size, resize)),
            (is_png, lambda: _png_over_white(image_bytes)),
        ],
        default=lambda: tf.io.decode_image(image_bytes, channels=3, expand_animations=False),
    )
    image.set_shape([None, None, 3])
    return _to_square(image, size, resize)


def _upright_jpeg(image_bytes: tf.Tensor, size: int, resize: str) -> tf.Tensor:
    """Scaled while decoding as the canonical decoder does it (`decode.jpeg_reduction`)."""
    import tensorflow as tf

    stored = tf.io.extract_jpeg_shape(image_bytes)
    sides = tf.cast(stored[:2], tf.float32)
    needed = (
        tf.maximum(1.0, tf.round(size * sides / tf.reduce_max(sides))) if resize == "pad" else tf.constant([size * 1.0] * 2)
    )
    # A CMYK picture, which Pillow decodes, is never scaled there.
    fits = [tf.reduce_all(tf.math.ceil(sides / r) >= needed) & (stored[2] != 4) for r in JPEG_REDUCTIONS]

    def decoded(reduction: int) -> Callable[[], tf.Tensor]:
        return lambda: tf.io.decode_jpeg(image_bytes, channels=3, ratio=reduction, dct_method="INTEGER_ACCURATE")

    image = tf.case([(fit, decoded(r)) for fit, r in zip(fits, JPEG_REDUCTIONS, strict=True)], default=decoded(1))
    turned: list[Any] = [
        lambda: image,
        lambda: tf.image.flip_left_right(image),
        lambda: tf.image.rot90(image, 2),
        lambda: tf.image.flip_up_down(image),
        lambda: tf.transpose(image, (1, 0, 2)),
        lambda: tf.image.rot90(image, 3),
        lambda: tf.image.rot90(tf.transpose(image, (1, 0, 2)), 2),
        lambda: tf.image.rot90(image, 1),
    ]
    return tf.switch_case(orientation(image_bytes) - 1, turned, default=turned[0])


def _png_over_white(image_bytes: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    rgba = tf.cast(tf.io.decode_png(image_bytes, channels=4), tf.float32)
    opacity = rgba[:, :, 3:] / 255.0
    return tf.cast(tf.round(rgba[:, :, :3] * opacity + 255.0 * (1.0 - opacity)), tf.uint8)


def _to_square(image: tf.Tensor, size: int, resize: str) -> tf.Tensor:
    import tensorflow as tf

    height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(image)[:2]))
    if resize == "squash":
        resized = _resample(image, (size, size), (size / height, size / width), (0.0, 0.0))
    elif resize == "crop":
        scale = size / tf.minimum(height, width)
        offset = (-(height * scale - size) / 2, -(width * scale - size) / 2)
        resized = _resample(image, (size, size), (scale, scale), offset)
    else:
        scale = size / tf.maximum(height, width)
        inner = [tf.maximum(1, tf.cast(tf.round(side * scale), tf.int32)) for side in (height, width)]
        factors = [tf.cast(i, tf.float32) / side for i, side in zip(inner, (height, width), strict=True)]
        small = _resample(image, inner, factors, (0.0, 0.0))
        resized = tf.image.pad_to_bounding_box(small, (size - inner[0]) // 2, (size - inner[1]) // 2, size, size)
    return tf.ensure_shape(tf.cast(resized, tf.uint8), (size, size, 3))


def _resample(image: tf.Tensor, size: Any, scale: Any, translation: Any) -> tf.Tensor:
    """Antialiased bilinear resampling as Pillow does it: along the rows, to whole levels, along the columns, to whole
    levels. `size`, `scale` and `translation` from input to output pixels are (y, x)."""
    import tensorflow as tf

    def along(axis: int, picture: tf.Tensor) -> tf.Tensor:
        sides, factors, offsets = list(tf.unstack(tf.shape(picture)[:2])), [1.0, 1.0], [0.0, 0.0]
        sides[axis], factors[axis], offsets[axis] = size[axis], scale[axis], translation[axis]
        resampled = tf.raw_ops.ScaleAndTranslate(
            images=picture[None],
            size=tf.stack(sides),
            scale=tf.stack([tf.cast(s, tf.float32) for s in factors]),
            translation=tf.stack([tf.cast(t, tf.float32) for t in offsets]),
            kernel_type="triangle",
            antialias=True,
        )[0]
        return tf.clip_by_value(tf.floor(resampled + 0.5), 0, 255)

    return along(0, along(1, image))


def orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """EXIF orientation of a JPEG, 1 to 8, as an int32 scalar; 1 where there is none or it cannot be read."""
    import tensorflow as tf

    data = tf.cast(tf.io.decode_raw(tf.strings.substr(image_bytes, 0, _BYTES_SEARCHED_FOR_EXIF), tf.uint8), tf.int32)
    length = tf.size(data)

    def at(place: tf.Tensor) -> tf.Tensor:
        return data[tf.clip_by_value(place, 0, length - 1)]

    def is_exif(place: tf.Tensor) -> tf.Tensor:
        wanted = tf.constant(list(b"Exif\0\0"), tf.int32)
        return (at(place + 1) == 0xE1) & tf.reduce_all(
            tf.gather(data, tf.clip_by_value(place + 4 + tf.range(6), 0, length - 1)) == wanted
        )

    def segment_goes_on(place: tf.Tensor) -> tf.Tensor:
        inside = (place + 10 < length) & (at(place) == 0xFF) & (at(place + 1) != 0xDA)
        return inside & ~is_exif(place)

    place = tf.while_loop(segment_goes_on, lambda p: [p + 2 + at(p + 2) * 256 + at(p + 3)], [tf.constant(2)])[0]
    found = (place + 10 < length) & (at(place) == 0xFF) & is_exif(place)
    tiff = place + 10
    little_endian = at(tiff) == ord("I")

    def number(place: tf.Tensor, num_bytes: int) -> tf.Tensor:
        big = sum(at(place + k) * 256 ** (num_bytes - 1 - k) for k in range(num_bytes))
        little = sum(at(place + k) * 256**k for k in range(num_bytes))
        return tf.where(little_endian, little, big)

    directory = tiff + tf.clip_by_value(number(tiff + 4, 4), 0, length)
    entries = directory + 2 + 12 * tf.range(tf.clip_by_value(number(directory, 2), 0, 200))
    tags = tf.map_fn(lambda e: number(e, 2), entries)
    matching = tf.boolean_mask(entries, tags == 0x0112)
    value = tf.cond(tf.size(matching) > 0, lambda: number(matching[0] + 8, 2), lambda: tf.constant(1))
    valid = found & (value >= 1) & (value <= 8)
    return tf.where(valid, value, 1)
