"""The EXIF orientation of JPEGs in the exported graph, with operations of TensorFlow only."""

import tensorflow as tf

# The EXIF segment of a JPEG has at most 64 kB and comes before the picture. It is looked for in these first bytes.
_BYTES_SEARCHED_FOR_EXIF = 1 << 18
_SEGMENTS_SEARCHED_FOR_EXIF = 500  # A colour profile may take 255 of them.


def orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """Return the EXIF orientation of a JPEG, 1 to 8, as an int32 scalar; 1 if there is none or it cannot be read."""
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(image_bytes, 0, _BYTES_SEARCHED_FOR_EXIF), tf.uint8), tf.int32)
    length = tf.size(data)

    def at(place: tf.Tensor) -> tf.Tensor:
        return tf.gather(data, tf.clip_by_value(place, 0, length - 1))

    def is_exif(place: tf.Tensor) -> tf.Tensor:
        return (at(place + 1) == 0xE1) & tf.reduce_all(at(place + 4 + tf.range(6)) == list(b"Exif\0\0"))

    def segment_goes_on(place: tf.Tensor) -> tf.Tensor:
        inside = (place + 10 < length) & (at(place) == 0xFF) & (at(place + 1) != 0xDA)
        return inside & ~is_exif(place)

    place = tf.while_loop(
        segment_goes_on,
        lambda p: [p + 2 + at(p + 2) * 256 + at(p + 3)],
        [tf.constant(2)],
        maximum_iterations=_SEGMENTS_SEARCHED_FOR_EXIF,
    )[0]
    found = (place + 10 < length) & (at(place) == 0xFF) & is_exif(place)
    tiff = place + 10
    little_endian = at(tiff) == ord("I")

    def number(place: tf.Tensor, num_bytes: int) -> tf.Tensor:
        """Return the numbers at some places."""
        big = [256**k for k in reversed(range(num_bytes))]
        weights = tf.where(little_endian, big[::-1], big)
        return tf.reduce_sum(at(place[..., None] + tf.range(num_bytes)) * weights, axis=-1)

    directory = tiff + tf.clip_by_value(number(tiff + 4, 4), 0, length)
    entries = directory + 2 + 12 * tf.range(tf.clip_by_value(number(directory, 2), 0, 200))
    matching = tf.boolean_mask(entries, number(entries, 2) == 0x0112)
    value = tf.cond(tf.size(matching) > 0, lambda: number(matching[0] + 8, 2), lambda: tf.constant(1))
    valid = found & (value >= 1) & (value <= 8)
    return tf.where(valid, value, 1)


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Return a picture as its EXIF orientation wants it: 5 to 8 swap rows and columns, then others are mirrored."""

    def turned() -> tf.Tensor:
        swapped = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
        mirrored = [tf.reduce_any(orientation == those) for those in ([3, 4, 7, 8], [2, 3, 6, 7])]  # Rows, columns.
        return tf.raw_ops.Reverse(tensor=swapped, dims=tf.stack([*mirrored, False]))

    return tf.cond(orientation == 1, lambda: image, turned)
