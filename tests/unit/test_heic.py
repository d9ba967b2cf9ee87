"""HEIC, the photos of phones, by the plugin pillow-heif; and what is said where it is not installed."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from job.decoding import decode as decoder
from job.decoding.decode import decode
from job.decoding.headers import picture_format
from job.decoding.rules import BadPhoto, DecodeRules
from tests.conftest import paint
from tests.unit.test_decode import STORED

pillow_heif = pytest.importorskip("pillow_heif", reason="it comes with pip install 'transfer-job[heif]'")

RULES = DecodeRules(image_size=48, resize="squash", max_pixels=1_000_000, min_side_px=8, max_aspect_ratio=20)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return Image.open(paint(tmp_path_factory.mktemp("photo") / "a.png", seed=5, size=(160, 120))).convert("RGB")


def heic(image, **options):
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def difference(found, photo):
    return np.abs(found.pixels_HWC - np.asarray(photo.resize((48, 48), Image.Resampling.BILINEAR), int)).mean()


def reason_of(payload, rules=RULES):
    with pytest.raises(BadPhoto) as caught:
        decode(payload, rules)
    return caught.value.reason


def test_photo_of_a_phone_is_decoded_and_said_so(photo):
    found = decode(heic(photo), RULES)
    assert (found.converted, found.notes) == ("HEIC to RGB", "") and difference(found, photo) < 6
    assert (found.facts.format, found.facts.width, found.facts.height) == ("HEIC", 160, 120)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_photo_is_turned_upright_once(photo, orientation):
    """As phones write it: the picture as the sensor saw it, the turn in the container, and the same turn in the EXIF."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    payload = heic(photo.transpose(STORED[orientation]), exif=exif.tobytes())
    assert b"irot" in payload or b"imir" in payload
    found = decode(payload, RULES)
    assert difference(found, photo) < 6
    assert (found.facts.width, found.facts.height, found.facts.has_exif) == (160, 120, True)


@pytest.mark.parametrize("bits", [10, 12])
def test_more_than_8_bits_are_brought_to_8(photo, bits, monkeypatch):
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    values = np.asarray(photo).astype(np.uint16) * 257
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", photo.size, values.tobytes()).save(buffer, quality=95)
    assert pillow_heif.open_heif(buffer.getvalue()).info["bit_depth"] == bits
    found = decode(buffer.getvalue(), RULES)
    assert difference(found, photo) < 6 and found.facts.peak is None


def test_transparency_is_laid_over_white(photo):
    clear = photo.convert("RGBA")
    clear.putalpha(0)
    found = decode(heic(clear), RULES)
    assert (found.pixels_HWC == 255).all() and found.converted == "transparency laid over white; HEIC to RGB"


def test_main_picture_of_several_is_taken(photo):
    file = pillow_heif.from_pillow(photo.resize((60, 90)))
    file.add_from_pillow(photo)
    buffer = io.BytesIO()
    file.save(buffer, quality=95, primary_index=1)
    assert difference(decode(buffer.getvalue(), RULES), photo) < 6


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.99])
def test_cut_file_is_refused(photo, share):
    payload = heic(photo)
    assert reason_of(payload[: int(share * len(payload))]) == "cut off: the HEIC ends before the picture does"


@pytest.mark.parametrize("size", [(60_000, 60_000), (40_000, 30)])
def test_size_in_the_header_is_held_against_the_limits_before_anything_is_decoded(photo, size, monkeypatch):
    payload = bytearray(heic(photo))
    at = payload.index(b"ispe")
    payload[at + 8 : at + 16] = struct.pack(">II", *size)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it is decoded"))
    assert reason_of(bytes(payload)).startswith(f"claims {size[0]}x{size[1]} pixels")


@pytest.mark.parametrize("size", [(5, 100), (300, 10)])
def test_small_and_long_photos_are_refused(photo, size):
    assert f"{size[0]}x{size[1]} pixels" in reason_of(heic(photo.resize(size)))


def test_damage_costs_an_answer_and_no_crash(photo):
    payload, rng = heic(photo), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(payload)
        for place in rng.integers(0, len(payload), 3):
            damaged[place] = rng.integers(0, 256)
        try:
            decode(bytes(damaged), RULES)
        except BadPhoto as refusal:
            assert "HEIC" in refusal.reason or "pixels" in refusal.reason


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1", b"hevc"])
def test_container_is_known_by_its_brand(brand):
    assert picture_format(b"\0\0\0\x18ftyp" + brand) == "HEIC"


def test_without_the_plugin_the_message_says_what_to_install(photo, monkeypatch):
    monkeypatch.setattr(decoder, "_readable_formats", lambda: ("JPEG", "PNG"))
    assert reason_of(heic(photo)) == (
        "a HEIC picture, which this job does not read without its plugin: "
        "pip install 'transfer-job[heif]', or convert it to JPEG or PNG"
    )


def test_plugin_that_is_not_installed_takes_away_only_heic(monkeypatch):
    with_it = decoder._readable_formats()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIC")
    decoder._readable_formats.cache_clear()
    try:
        assert set(with_it) - set(decoder._readable_formats()) == {"HEIC"}
    finally:
        decoder._readable_formats.cache_clear()
