"""The decoder of the exported graph. It turns encoded bytes into pixels with operations of TensorFlow only.

It follows the rules of the canonical decoder (job/decoding/decode.py): it checks the limits on the header first, uses the
accurate DCT, scales JPEGs while decoding by the same factors, applies the EXIF orientation of JPEGs, takes the first frame,
lays transparency over white, and resizes and rounds as Pillow does. The differences that are left are in parity.json.

The bytes of a refused picture are replaced by an empty string, for which TensorFlow's decoders raise InvalidArgumentError.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from job.decoding import jpeg
from job.decoding.deep import FULL_BIT_DEPTH
from job.serving.graph_exif import orientation, upright

_Pair = Sequence[tf.Tensor | float]

# The formats that the graph decodes, and their first bytes. For WebP, bytes 8 to 11 are checked, too.
FORMATS = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8", "BMP": b"BM", "WebP": b"RIFF"}

# The marker of a scan, and the first byte of its length. Two bytes alone also occur by chance in a video behind a photo.
_JPEG_SCAN = b"\xff\xda\x00"
_GIF_PIECES_AT_ONCE = 256
_PIXELS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The limits for pictures that the graph decodes.

    The first three are those of intake, so the model was trained within them. The other four refuse small files that would
    take minutes or gigabytes to decode (docs/decisions/0018-hostile-bytes.md).
    """

    max_pixels: int
    min_side_px: int
    max_aspect_ratio: float
    max_encoded_bytes: int = 1 << 28
    max_jpeg_scans: int = 64
    max_png_texts: int = 16
    max_gif_steps: int = 10_000

    def allow(self, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        """Return whether the sides of a picture, in pixels, are within the limits: a bool scalar."""
        sides = tf.cast([height, width], tf.int64)
        short, long = tf.reduce_min(sides), tf.reduce_max(sides)
        is_long = tf.cast(long, tf.float64) > self.max_aspect_ratio * tf.cast(short, tf.float64)
        return (short >= self.min_side_px) & (short * long <= self.max_pixels) & ~is_long


def pixels_of(image_bytes: tf.Tensor, size: int, resize: str, limits: Limits, bit_depth: int = FULL_BIT_DEPTH) -> tf.Tensor:
    """Decode one encoded picture to uint8 pixels of shape (size, size, 3). Values of 16 bits are scaled by `bit_depth`.

    Raises:
        InvalidArgumentError: when the graph runs, if it cannot decode the bytes, or the picture exceeds `limits`.
    """
    image_bytes = _where(tf.strings.length(image_bytes) <= limits.max_encoded_bytes, image_bytes)
    decoders: dict[str, Callable[[], tf.Tensor]] = {
        "JPEG": lambda: _jpeg(image_bytes, size, resize, limits),
        "PNG": lambda: _png(image_bytes, limits, bit_depth),
        "GIF": lambda: _gif(image_bytes, limits),
        "BMP": lambda: _bmp(image_bytes, limits),
        "WebP": lambda: _webp(image_bytes, limits),
    }
    begins = {name: tf.strings.substr(image_bytes, 0, len(magic)) == magic for name, magic in FORMATS.items()}
    image = tf.case([(begins[name], decoders[name]) for name in FORMATS], default=lambda: _decode_any(tf.constant(b"")))
    image.set_shape([None, None, None])
    return _to_square(image, size, resize)


def _where(allowed: tf.Tensor, image_bytes: tf.Tensor) -> tf.Tensor:
    """Return the bytes if they are allowed, or else an empty string, which every decoder refuses."""
    return tf.where(allowed, image_bytes, tf.constant(b""))


def _decode_any(image_bytes: tf.Tensor, channels: int = 3) -> tf.Tensor:
    return tf.io.decode_image(image_bytes, channels=channels, expand_animations=False)


def _jpeg(image_bytes: tf.Tensor, size: int, resize: str, limits: Limits) -> tf.Tensor:
    """Return the pixels of a JPEG, upright, scaled while decoding as in the canonical decoder (`jpeg.reduction_for`)."""
    stored = tf.io.extract_jpeg_shape(image_bytes)
    num_scans = _count(image_bytes, _JPEG_SCAN, limits.max_jpeg_scans)
    allowed = limits.allow(stored[0], stored[1]) & (num_scans <= limits.max_jpeg_scans)
    image_bytes = _where(allowed, image_bytes)
    sides = tf.cast(stored[:2], tf.float32)
    needed = (
        tf.maximum(1.0, tf.round(size * sides / tf.reduce_max(sides))) if resize == "pad" else tf.constant([size * 1.0] * 2)
    )
    # The canonical decoder leaves CMYK to Pillow, and does not scale it while decoding.
    fits = [tf.reduce_all(tf.math.ceil(sides / r) >= needed) & (stored[2] != 4) for r in jpeg.REDUCTIONS]

    def decoded(reduction: int) -> Callable[[], tf.Tensor]:
        return lambda: tf.io.decode_jpeg(image_bytes, channels=3, ratio=reduction, dct_method="INTEGER_ACCURATE")

    image = tf.case([(fit, decoded(r)) for fit, r in zip(fits, jpeg.REDUCTIONS, strict=True)], default=decoded(1))
    return upright(image, orientation(image_bytes))


def _png(image_bytes: tf.Tensor, limits: Limits, bit_depth: int) -> tf.Tensor:
    """Return the pixels of a PNG, RGB or RGBA. Each compressed text in it can take 8 MB in libpng, so few are allowed."""
    width, height = tf.unstack(_numbers(image_bytes, 16, 2, tf.int32, little_endian=False), 2)
    num_texts = sum(_count(image_bytes, kind, limits.max_png_texts) for kind in (b"zTXt", b"iTXt"))
    allowed = limits.allow(height, width) & (num_texts <= limits.max_png_texts)
    image_bytes = _where(allowed, image_bytes)
    bits = _numbers(image_bytes, 24, 1, tf.uint8)[0]
    # With channels=4, TensorFlow would give a picture of 1 bit the opacity 1, and one of 4 bits 15. Opaque is 255.
    is_opaque = (bits < 8) & (_count(image_bytes, b"tRNS", 1) == 0)
    return tf.case(
        [
            (is_opaque, lambda: tf.io.decode_png(image_bytes, channels=3)),
            (bits == 16, lambda: _to_8_bit(tf.io.decode_png(image_bytes, channels=4, dtype=tf.uint16), bit_depth)),
        ],
        default=lambda: tf.io.decode_png(image_bytes, channels=4),
    )


def _to_8_bit(image: tf.Tensor, bit_depth: int) -> tf.Tensor:
    """Scale RGBA values of 16 bits as the canonical decoder does (`deep.DeepPicture.to_8_bit`)."""
    top = 2**bit_depth - 1
    top_of_opacity = tf.where(tf.reduce_max(image[:, :, 3]) > top, 2**FULL_BIT_DEPTH - 1, top)
    tops = tf.stack([top, top, top, top_of_opacity])

    def scaled(band: tf.Tensor) -> tf.Tensor:
        return tf.cast((tf.minimum(tf.cast(band, tf.int32), tops) * 510 + tops) // (2 * tops), tf.uint8)

    return _in_bands(image, scaled, num_channels=4)


def _bmp(image_bytes: tf.Tensor, limits: Limits) -> tf.Tensor:
    """Return the pixels of an uncompressed BMP of 8, 24 or 32 bits. For 8 bits, TensorFlow returns palette indices."""
    header = _numbers(image_bytes, 14, 9, tf.int32)
    header_bytes, width, height, _, compression, _, _, _, num_colours = tf.unstack(header, 9)
    bits = _numbers(image_bytes, 28, 1, tf.uint16)[0]
    is_plain = (header_bytes >= 40) & (compression == 0)
    image_bytes = _where(limits.allow(tf.abs(height), width) & is_plain, image_bytes)

    def through_palette() -> tf.Tensor:
        num = tf.where(num_colours == 0, 256, num_colours)
        blue_green_red_0 = tf.reshape(_numbers(image_bytes, 14 + header_bytes, 4 * num, tf.uint8), (num, 4))
        numbers = tf.io.decode_bmp(image_bytes)[:, :, 0]
        return tf.gather(blue_green_red_0[:, 2::-1], tf.cast(numbers, tf.int32))

    return tf.cond(bits == 8, through_palette, lambda: _decode_any(image_bytes))


def _webp(image_bytes: tf.Tensor, limits: Limits) -> tf.Tensor:
    """Return the pixels of a still WebP, RGB or RGBA. Each of the three kinds of WebP has its size at another place."""
    kind = tf.strings.substr(image_bytes, 12, 4)
    data = tf.cast(_numbers(image_bytes, 20, 10, tf.uint8), tf.int32)
    extended = [1 + data[k] + 0x100 * data[k + 1] + 0x10000 * data[k + 2] for k in (4, 7)]
    lossy = [(data[k] + 0x100 * data[k + 1]) % 0x4000 for k in (6, 8)]
    bits = data[1] + 0x100 * data[2] + 0x10000 * data[3] + 0x1000000 * (data[4] % 0x10)
    lossless = [1 + bits % 0x4000, 1 + bits // 0x4000]
    width, height = tf.unstack(tf.where(kind == b"VP8X", extended, tf.where(kind == b"VP8L", lossless, lossy)))
    is_webp = tf.strings.substr(image_bytes, 8, 4) == b"WEBP"
    is_animated = (kind == b"VP8X") & (data[0] // 2 % 2 == 1)
    return _decode_any(_where(is_webp & ~is_animated & limits.allow(height, width), image_bytes), channels=0)


def _gif(image_bytes: tf.Tensor, limits: Limits) -> tf.Tensor:
    """Return the first frame of a GIF, if it fills the canvas. TensorFlow would allocate memory for all frames."""
    frame, end = _first_gif_frame(tf.io.decode_raw(image_bytes, tf.uint8), limits.max_gif_steps)
    width, height = tf.unstack(tf.cast(_numbers(image_bytes, 6, 2, tf.uint16), tf.int32), 2)
    corner_and_size = tf.cast(_numbers(image_bytes, frame + 1, 4, tf.uint16), tf.int32)
    fills_canvas = tf.reduce_all(corner_and_size == [0, 0, width, height])
    alone = tf.strings.join([tf.strings.substr(image_bytes, 0, end), b";"])
    return _decode_any(_where(fills_canvas & limits.allow(height, width), alone))


def _first_gif_frame(data: tf.Tensor, max_steps: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the offsets of the first frame and of its end, as int32 scalars; the frame is -1 if there is none.

    A GIF is a chain of blocks. Each has a header and pieces of data. A piece is a length of one byte and that many bytes. A
    length of 0 ends the block. If the frame does not end within `max_steps`, its end is 0.
    """
    length = tf.size(data)

    def at(place: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.gather(data, tf.minimum(place, length - 1)), tf.int32)

    def palette_bytes(flags: tf.Tensor) -> tf.Tensor:
        return tf.where(flags >= 0x80, 3 * 2 ** (flags % 8 + 1), 0)

    def behind_pieces(place: tf.Tensor) -> tf.Tensor:
        """Return the place behind a piece and the pieces of the same length that follow it, which takes one step."""
        size = 1 + at(place)
        ahead = at(place + size * tf.range(1, _GIF_PIECES_AT_ONCE))
        others = tf.concat([tf.cast(1 + ahead != size, tf.int32), [1]], axis=0)
        num = tf.where(size == 1, 1, 1 + tf.argmax(others, output_type=tf.int32))
        return place + num * size

    def step(place: tf.Tensor, in_pieces: tf.Tensor, frame: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        value = at(place)
        begins_frame = ~in_pieces & (value == ord(","))
        header = tf.where(begins_frame, 11 + palette_bytes(at(place + tf.where(begins_frame, 9, 0))), 2)
        following = tf.where(in_pieces, behind_pieces(place), place + header)
        return following, ~in_pieces | (value != 0), tf.where(begins_frame, place, frame)

    def goes_on(place: tf.Tensor, in_pieces: tf.Tensor, frame: tf.Tensor) -> tf.Tensor:
        begins_block = (at(place) == ord(",")) | (at(place) == ord("!"))
        return (place < length) & (in_pieces | ((frame < 0) & begins_block))

    start = 13 + palette_bytes(at(tf.constant(10)))
    state = (start, tf.constant(False), tf.constant(-1))
    end, in_pieces, frame = tf.while_loop(goes_on, step, state, maximum_iterations=max_steps)
    return frame, tf.where(in_pieces, 0, end)


def _numbers(
    image_bytes: tf.Tensor, place: tf.Tensor | int, count: tf.Tensor | int, dtype: tf.DType, *, little_endian: bool = True
) -> tf.Tensor:
    """Return `count` numbers from a place in a header. If the bytes end before, the graph raises InvalidArgumentError."""
    return tf.io.decode_raw(tf.strings.substr(image_bytes, place, count * dtype.size), dtype, little_endian=little_endian)


def _count(image_bytes: tf.Tensor, sought: bytes, limit: int) -> tf.Tensor:
    """Return how often some bytes occur, as an int32 scalar. To save memory, it stops counting at `limit` + 1."""
    # tf.strings.split does the same, and adds twenty operations for a ragged tensor.
    parts = tf.raw_ops.StringSplitV2(input=[image_bytes], sep=sought, maxsplit=limit + 1)
    return tf.size(parts.values) - 1


def _to_square(image: tf.Tensor, size: int, resize: str) -> tf.Tensor:
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
    return tf.ensure_shape(resized, (size, size, 3))


def _resample(image: tf.Tensor, size: _Pair, scale: _Pair, translation: _Pair) -> tf.Tensor:
    """Resample a picture as Pillow does: antialiased bilinear, first along rows, then along columns, rounding each time.

    `size`, `scale` and `translation` from input to output pixels are (y, x). Rows are resampled in bands, because TensorFlow
    needs 12 bytes of float32 for each of their pixels.
    """

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
        return tf.cast(tf.clip_by_value(tf.floor(resampled + 0.5), 0, 255), tf.uint8)

    return along(0, _in_bands(image, lambda band: along(1, _over_white(band)), num_channels=3))


def _in_bands(image: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor], num_channels: int) -> tf.Tensor:
    """Apply a function to bands of rows, and join its uint8 results. So the function needs memory only for one band."""
    height, width = tf.unstack(tf.shape(image)[:2])
    num_rows = tf.maximum(1, _PIXELS_AT_ONCE // width)

    def next_band(top: tf.Tensor, bands: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        return top + num_rows, bands.write(top // num_rows, function(image[top : top + num_rows]))

    num_bands = (height + num_rows - 1) // num_rows
    bands = tf.TensorArray(tf.uint8, num_bands, infer_shape=False, element_shape=(None, None, num_channels))
    _, bands = tf.while_loop(lambda top, _: top < height, next_band, (tf.constant(0), bands), parallel_iterations=1)
    return bands.concat()


def _over_white(image: tf.Tensor) -> tf.Tensor:
    """Return RGB pixels. RGBA pixels are laid over white, rounded as Pillow rounds."""

    def blended() -> tf.Tensor:
        rgba = tf.cast(image, tf.int32)
        opacity = rgba[:, :, 3:]
        return tf.cast((rgba[:, :, :3] * opacity + 255 * (255 - opacity) + 127) // 255, tf.uint8)

    rgb = tf.cond(tf.shape(image)[2] == 4, blended, lambda: image)
    return tf.ensure_shape(rgb, (None, None, 3))
