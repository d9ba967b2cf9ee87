"""The exported graph against the canonical decoder."""

import numpy as np
import pytest
from PIL import Image

from job.decoding.decode import decode
from job.decoding.rules import DecodeRules
from job.serving import graph_decode, graph_exif
from tests.conftest import encoded, paint
from tests.unit.deep_files import picture, png, scaled

LIMITS = graph_decode.Limits(max_pixels=10**8, min_side_px=8, max_aspect_ratio=20)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return Image.open(paint(tmp_path_factory.mktemp("photo") / "a.png", seed=5, size=(150, 110))).convert("RGB")


def difference(payload, size=64, resize="squash", bit_depth=16):
    rules = DecodeRules(size, resize, LIMITS.max_pixels, LIMITS.min_side_px, LIMITS.max_aspect_ratio, bit_depth)
    ours = decode(payload, rules).pixels_HWC.astype(int)
    return np.abs(np.asarray(graph_decode.pixels_of(payload, size, resize, LIMITS, bit_depth)).astype(int) - ours)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [64, 100, 200])
def test_resize_is_the_decoders_to_a_level(photo, resize, size):
    found = difference(encoded(photo, "PNG"), size, resize)
    assert found.max() <= 1 and found.mean() < 0.3


@pytest.mark.parametrize("size", [(150, 110), (111, 149), (64, 64), (37, 300)])
def test_crop_and_pad_agree_for_odd_shapes(photo, size):
    for resize in ("crop", "pad"):
        assert difference(encoded(photo.resize(size), "PNG"), 64, resize).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("little_endian", [True, False])
def test_exif_orientation_is_read_in_the_graph(photo, orientation, little_endian):
    exif = Image.Exif()
    exif.endian = "<" if little_endian else ">"
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    payload = encoded(photo, "JPEG", quality=95, exif=exif)
    assert int(graph_exif.orientation(payload)) == orientation
    assert difference(payload, 100).mean() < 0.3


@pytest.mark.parametrize(
    "payload", [b"\xff\xd8", b"\xff\xd8\xff\xe1\0\x10Exif\0\0MM\0*\xff\xff\xff\xff", b"\xff\xd8\xff\xe1\xff\xff"]
)
def test_broken_exif_counts_as_upright(payload):
    assert int(graph_exif.orientation(payload)) == 1


def test_transparency_is_laid_over_white_in_the_graph(photo):
    rgba = photo.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(photo.size))
    assert difference(encoded(rgba, "PNG"), 100).max() <= 2
    palette = encoded(photo.convert("P"), "PNG", transparency=3)
    assert difference(palette, 100).max() <= 2


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("PNG", "L"),
        ("BMP", "RGB"),
        ("BMP", "P"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("WEBP", "RGBA"),
    ],
)
def test_every_kind_that_tensorflow_decodes_agrees(photo, kind, mode):
    found = difference(encoded(photo.convert(mode), kind), 100)
    assert found.mean() < 1.0


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("scale", [1, 2, 3, 5, 9])
def test_large_jpegs_are_scaled_while_decoding_by_the_same_rule(photo, scale, resize):
    large = photo.resize((151 * scale, 111 * scale), Image.Resampling.BICUBIC)
    found = difference(encoded(large, "JPEG", quality=90), 64, resize)
    assert found.max() <= 1 and found.mean() < 0.3


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("bits", "bit_depth"), [(10, 10), (12, 12), (14, 14), (16, 16), (12, 16), (16, 12)])
def test_png_of_16_bits_has_the_decoders_pixels(channels, bits, bit_depth):
    import tensorflow as tf

    smooth = np.asarray(Image.fromarray(picture(1, bits, (9, 7))[..., 0].astype(np.float32)).resize((150, 110)))
    values = (smooth[..., None] + picture(channels, bits - 3, (150, 110))).clip(0, 2**bits - 1).astype(np.uint16)
    by_libpng = tf.io.encode_png(values).numpy()  # With its filters; those below have none.
    for payload in (by_libpng, png(values)):
        assert payload[24] == 16 and difference(payload, bit_depth=bit_depth).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_png_of_16_bits_with_a_transparent_colour_has_the_decoders_pixels(channels):
    values = picture(channels, 12, (64, 64))
    values[:20] = 77
    assert difference(png(values, clear=(77,) * channels), bit_depth=12).max() <= 1


@pytest.mark.parametrize("bits_of_opacity", [12, 16])
def test_opacity_of_16_bits_is_scaled_as_in_the_decoder(bits_of_opacity):
    values = picture(4, 12, (64, 64))
    values[..., 3:] = picture(1, bits_of_opacity, (64, 64), seed=1)
    assert difference(png(values), bit_depth=12).max() <= 1


def test_png_of_12_bits_keeps_its_gray_levels_in_the_graph():
    values = np.arange(64 * 64).astype(np.uint16).reshape(64, 64, 1)
    found = np.asarray(graph_decode.pixels_of(png(values), 64, "squash", LIMITS, 12))
    assert len(np.unique(found)) == 256
    assert np.array_equal(found, np.broadcast_to(scaled(values, 12), (64, 64, 3)))


def test_large_png_of_16_bits_is_scaled_band_by_band_like_a_small_one():
    values = picture(1, 12, (1500, 1500))
    assert difference(png(values), bit_depth=12).max() <= 1
