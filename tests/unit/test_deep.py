"""16-bit photos in the decoder: all their bits count, scaled by the bit depth of their set."""

import io

import numpy as np
import pytest
from PIL import Image

from job.decoding.decode import decode
from job.decoding.deep import needed_bit_depth
from job.decoding.rules import DecodeRules
from tests.unit.deep_files import over_white, picture, png, scaled, tiff

SIZE = 48
EXACT = (SIZE, SIZE)  # Stored as large as it is, so that nothing is resized.


def rules(bit_depth=16):
    return DecodeRules(SIZE, "squash", 1_000_000, 8, 20, bit_depth)


def file_of(kind, values):
    if kind == "PNG":
        return png(values)
    order, _, compressed = kind.removeprefix("TIFF ").partition(" ")
    return tiff(values, order=order, compressed=bool(compressed))


KINDS = [("PNG", c) for c in (1, 2, 3, 4)]
KINDS += [(f"TIFF {order}{packed}", c) for order in "<>" for packed in ("", " compressed") for c in (1, 3, 4)]


@pytest.mark.parametrize(("kind", "channels"), KINDS)
@pytest.mark.parametrize("bit_depth", [10, 12, 14, 16])
def test_every_bit_counts_in_every_kind_of_file(kind, channels, bit_depth):
    values = picture(channels, bit_depth, EXACT)
    if channels in (2, 4):
        values[..., -1] = 2**bit_depth - 1
    decoded = decode(file_of(kind, values), rules(bit_depth))
    colours = values[..., : 1 if channels < 3 else 3]
    assert np.array_equal(decoded.pixels_HWC, np.broadcast_to(scaled(colours, bit_depth), (*EXACT, 3)))
    assert decoded.facts.peak == colours.max() and f"{bit_depth} bit scaled to 8" in decoded.converted


@pytest.mark.parametrize(("bits_of_opacity", "kind"), [(12, "PNG"), (16, "PNG"), (16, "TIFF <")])
@pytest.mark.parametrize("channels", [2, 4])
def test_opacity_may_use_all_bits_though_the_colours_do_not(bits_of_opacity, kind, channels):
    if kind != "PNG" and channels == 2:
        pytest.skip("Pillow reads no TIFF of gray values with opacity")
    values = picture(channels, 12, EXACT)
    values[..., -1] = picture(1, bits_of_opacity, EXACT, seed=1)[..., 0]
    found = decode(file_of(kind, values), rules(12)).pixels_HWC
    expected = over_white(scaled(values[..., :-1], 12), scaled(values[..., -1:], bits_of_opacity))
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_that_a_png_declares_transparent_is_white(channels):
    values = picture(channels, 12, EXACT)
    values[:10] = 77
    decoded = decode(png(values, clear=(77,) * channels), rules(12))
    assert (decoded.pixels_HWC[:10] == 255).all() and "transparency laid over white" in decoded.converted
    assert np.array_equal(decoded.pixels_HWC[10:], np.broadcast_to(scaled(values, 12), (*EXACT, 3))[10:])


def test_values_above_the_depth_are_white_and_noted():
    values = picture(1, 12, EXACT)
    values[0, 0] = 5000
    decoded = decode(png(values), rules(12))
    assert decoded.pixels_HWC[0, 0, 0] == 255 and decoded.notes == "values above intake.bit_depth became white"
    assert decoded.facts.peak == 5000


def test_tiff_that_says_12_bits_is_scaled_by_these_and_says_nothing_of_its_set():
    values = picture(1, 12, EXACT)
    decoded = decode(tiff(values, bits=12), rules(16))
    assert np.array_equal(decoded.pixels_HWC, np.broadcast_to(scaled(values, 12), (*EXACT, 3)))
    assert decoded.facts.peak == 0 and decoded.converted == "12 bit scaled to 8; TIFF to RGB"


@pytest.mark.parametrize("kind", ["PPM", "JPEG2000"])
def test_gray_pictures_of_rarer_formats_count_as_well(kind):
    values = picture(1, 12, EXACT)[..., 0]
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    decoded = decode(buffer.getvalue(), rules(12))
    assert decoded.facts.peak == values.max()
    assert np.array_equal(decoded.pixels_HWC, np.broadcast_to(scaled(values[..., None], 12), (*EXACT, 3)))


def test_photo_of_8_bits_has_no_peak_and_no_depth():
    buffer = io.BytesIO()
    Image.fromarray(scaled(picture(3, 16, EXACT), 16)).save(buffer, "PNG")
    for bit_depth in (12, 16):
        decoded = decode(buffer.getvalue(), rules(bit_depth))
        assert decoded.facts.peak is None and decoded.converted == ""


def test_turned_tiff_of_16_bits_is_upright():
    values = picture(3, 12, (60, 40))
    upright = decode(tiff(values), rules(12))
    marked = tiff(values).replace(b"\x31\x01\x02\x00", b"\x12\x01\x03\x00")  # The last entry becomes the orientation.
    at = marked.index(b"\x12\x01\x03\x00")
    lying = decode(marked[: at + 8] + b"\x03\0\0\0" + marked[at + 12 :], rules(12))
    assert "orientation 3" in lying.notes and np.array_equal(lying.pixels_HWC, upright.pixels_HWC[::-1, ::-1])


@pytest.mark.parametrize(
    ("peak", "bit_depth"),
    [(0, 16), (1, 9), (511, 9), (512, 10), (1023, 10), (4095, 12), (4096, 13), (2**15, 16), (65535, 16)],
)
def test_depth_is_the_fewest_bits_that_hold_a_value_and_never_below_9(peak, bit_depth):
    assert needed_bit_depth(peak) == bit_depth
