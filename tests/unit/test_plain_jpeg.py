"""Most photos are plain JPEGs and take the short way through the decoder: it has to end where the long one does."""

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageCms

from job.decoding import headers, perceptual
from job.decoding.decode import decode
from job.decoding.rules import BadPhoto, DecodeRules, Photo
from tests import conftest
from tests.conftest import paint

RULES = DecodeRules(image_size=48, resize="squash", max_pixels=1_000_000, min_side_px=8, max_aspect_ratio=20)
EXIF = b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\x03\0\0\0\1\0\x06\0\0\0\0\0\0"
FURTHER_PICTURE = b"\xff\xe2\0\x12MPF\0" + bytes(12)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return Image.open(paint(tmp_path_factory.mktemp("plain") / "a.png", seed=1, size=(160, 120))).convert("RGB")


@pytest.fixture(scope="module")
def jpeg(photo):
    return encoded(photo)


encoded = partial(conftest.encoded, kind="JPEG", quality=90)


def outcome(payload: bytes, rules: DecodeRules = RULES) -> tuple[object, ...]:
    try:
        photo: Photo = decode(payload, rules)
    except BadPhoto as error:
        return error.reason, error.facts, error.is_image
    return photo.pixels_HWC.tobytes(), photo.facts, photo.converted, photo.notes


@pytest.fixture
def on_the_long_way(monkeypatch) -> Callable[..., tuple[object, ...]]:
    def outcome_there(*arguments: object) -> tuple[object, ...]:
        with monkeypatch.context() as patch:
            patch.setattr(headers, "plain_jpeg_size", lambda payload: None)
            return outcome(*arguments)

    return outcome_there


def damaged(jpeg: bytes, seed: int) -> bytes:
    """The photo with something done to it that a file may have suffered or been given."""
    draw = random.Random(seed)
    header_end = jpeg.index(b"\xff\xda")
    at = draw.randrange(2, header_end)
    segments = [at for at in range(2, header_end) if jpeg[at] == 0xFF and jpeg[at + 1] >= 0xC0]
    between = draw.choice(segments)
    return draw.choice(
        (
            jpeg[:at] + bytes([draw.choice((0, 1, 3, 0x11, 0xC0, 0xD8, 0xD9, 0xDA, 0xE1, 0xFF))]) + jpeg[at + 1 :],
            jpeg[:between] + draw.choice((b"\xff", b"\0", b"\xff\xfe\0\2", EXIF, FURTHER_PICTURE)) + jpeg[between:],
            jpeg[: draw.randrange(len(jpeg))],
            jpeg[: draw.randrange(len(jpeg))] + b"\xff\xd9",
            jpeg + draw.choice((b"x", b"\xff\xd9", jpeg)),
        )
    )


def test_short_and_long_way_end_at_the_same_photo_or_the_same_words(jpeg, on_the_long_way):
    payloads = [damaged(jpeg, seed) for seed in range(600)]
    on_the_short = [headers.plain_jpeg_size(p) is not None for p in payloads]
    assert 50 < sum(on_the_short) < 550  # Both kinds are there.
    assert [outcome(p) for p in payloads] == [on_the_long_way(p) for p in payloads]


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("limits", [{}, {"max_pixels": 19_199}, {"min_side_px": 121}, {"max_aspect_ratio": 1.3}])
def test_rules_hold_on_the_short_way(jpeg, resize, limits, on_the_long_way):
    rules = DecodeRules(**{**RULES.__dict__, "resize": resize, **limits})
    assert headers.plain_jpeg_size(jpeg) == (160, 120)
    assert outcome(jpeg, rules) == on_the_long_way(jpeg, rules)


def test_comments_colour_profiles_and_restarts_keep_a_jpeg_plain(photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert headers.plain_jpeg_size(encoded(photo, comment=b"hello", icc_profile=profile)) == (160, 120)
    assert headers.plain_jpeg_size(encoded(photo, restart_marker_blocks=4)) == (160, 120)


@pytest.mark.parametrize("options", [{"progressive": True}, {"exif": EXIF[4:]}, {"keep_rgb": True}])  # Adobe's segment.
def test_what_needs_a_word_is_not_plain(photo, options):
    assert headers.plain_jpeg_size(encoded(photo, **options)) is None
    assert headers.plain_jpeg_size(encoded(photo.convert("L"))) is None
    assert headers.plain_jpeg_size(encoded(photo.convert("CMYK"))) is None


@pytest.mark.parametrize("odd", [0, 1])
def test_end_marker_is_found_at_odd_and_even_places(jpeg, odd):
    behind = jpeg + b"\0" * ((len(jpeg) + odd) % 2) + b"\0\xff\xd9"
    assert headers.plain_jpeg_size(behind) is None and headers.plain_jpeg_size(jpeg) is not None


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\0\0\0\xa0"])
def test_jpeg_that_cannot_have_its_size_is_not_plain(jpeg, size):
    at = jpeg.index(b"\xff\xc0")
    assert headers.plain_jpeg_size(jpeg[: at + 5] + size + jpeg[at + 9 :]) is None


@pytest.mark.parametrize("segment", [EXIF, FURTHER_PICTURE, b"\xff\xe0\0\x12AVI1" + bytes(12)])
def test_segments_that_may_mean_something_make_a_jpeg_not_plain(jpeg, segment):
    assert headers.plain_jpeg_size(jpeg[:2] + segment + jpeg[2:]) is None


def test_beginning_of_a_jpeg_is_not_plain(jpeg):
    assert {headers.plain_jpeg_size(jpeg[:length]) for length in range(len(jpeg))} == {None}


def test_what_libjpeg_refuses_is_said_in_the_words_of_the_long_way(jpeg):
    at = jpeg.index(b"\xff\xdb") + 4
    payload = jpeg[:at] + b"\x10" + jpeg[at + 1 :]  # A table of 16 bits that is too short for it.
    assert headers.plain_jpeg_size(payload)
    assert outcome(payload)[0] == "damaged JPEG: its header cannot be read"


def test_numbers_of_a_photo_follow_their_definitions(photo):
    for size in (48, 160, 224):
        gray = photo.resize((size, size)).convert("L")
        levels = np.asarray(gray, np.float64) / 255
        assert perceptual.brightness_and_contrast(gray) == pytest.approx((levels.mean(), levels.std()), abs=1e-6)
        thumbnail = np.asarray(gray.resize((32, 32), Image.Resampling.BOX), np.float64)
        waves_8x32 = np.cos(np.pi / 32 * (np.arange(32) + 0.5) * np.arange(8)[:, None])
        coefficients = (waves_8x32 @ thumbnail @ waves_8x32.T).ravel()
        bits = "".join("01"[int(c > np.median(coefficients[1:]))] for c in coefficients)
        assert perceptual.hash_of(gray) == int(bits, 2)
    for image in (photo, photo.convert("L")):
        assert np.array_equal(perceptual.pixels_of(image), np.asarray(image))
