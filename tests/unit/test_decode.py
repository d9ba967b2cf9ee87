import io

import numpy as np
import pytest
from PIL import Image

from job.decoding.decode import decode
from job.decoding.rules import BadPhoto, DecodeRules
from tests.conftest import encoded, paint

RULES = DecodeRules(image_size=48, resize="squash", max_pixels=1_000_000, min_side_px=8, max_aspect_ratio=20)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("jpeg") / "a.jpg", seed=1, size=(160, 120), quality=92).read_bytes()


@pytest.fixture(scope="module")
def photo(jpeg):
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


def reason_of(payload: bytes, rules: DecodeRules = RULES) -> str:
    with pytest.raises(BadPhoto) as caught:
        decode(payload, rules)
    return caught.value.reason


def test_plain_jpeg_has_pillows_pixels(jpeg, photo):
    expected = photo.resize((48, 48), Image.Resampling.BILINEAR)
    rules = DecodeRules(**{**RULES.__dict__, "image_size": 100})  # Too large for a scaled decode.
    assert np.array_equal(decode(jpeg, rules).pixels_HWC, photo.resize((100, 100), Image.Resampling.BILINEAR))
    assert np.abs(decode(jpeg, RULES).pixels_HWC.astype(int) - np.asarray(expected)).mean() < 6


@pytest.mark.parametrize("keep", [20, 120, 0.5, -2, -40])
def test_cut_jpeg_is_refused(jpeg, keep):
    assert reason_of(jpeg[: int(len(jpeg) * keep)] if isinstance(keep, float) else jpeg[:keep])


def test_garbage_inside_the_scan_is_refused_on_the_decoders_warning(jpeg):
    damaged = jpeg[:-2] + bytes(100) + jpeg[-2:]
    Image.open(io.BytesIO(damaged)).load()  # Pillow takes it without a word.
    assert "the decoder had to repair it" in reason_of(damaged)


def test_junk_behind_a_jpeg_does_no_harm(jpeg):
    assert np.array_equal(decode(jpeg + b"junk" * 99, RULES).pixels_HWC, decode(jpeg, RULES).pixels_HWC)


# How a picture is stored, by its EXIF orientation.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])  # Pillow turns a TIFF by itself while it loads it.
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_turned_upright_once(photo, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = photo.transpose(STORED[orientation]) if orientation > 1 else photo
    turned = decode(encoded(lying, kind, exif=exif), RULES)
    assert np.array_equal(turned.pixels_HWC, decode(encoded(photo), RULES).pixels_HWC)
    assert (turned.facts.width, turned.facts.height) == (160, 120)
    assert ("turned upright" in turned.notes) == (orientation > 1)


def test_orientation_counts_where_the_rest_of_the_exif_is_malformed(photo):
    one_of_two_tags = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\1\0\x06\0\0\0\0\0\0"
    decoded = decode(encoded(photo, "JPEG", exif=one_of_two_tags), RULES)
    assert decoded.notes == "malformed EXIF; turned upright (EXIF orientation 6)"


def test_thumbnail_in_the_exif_is_not_taken_for_the_end(jpeg, photo):
    thumbnail = encoded(photo.resize((16, 12)), "JPEG")
    segment = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    payload = jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]
    assert decode(payload, RULES).notes == "" and decode(payload + b"xyz", RULES).notes.startswith("3 bytes behind")


def test_end_of_a_progressive_jpeg_is_that_of_its_last_scan(photo):
    payload = encoded(photo, "JPEG", progressive=True)
    assert payload.count(b"\xff\xda") > 1
    assert decode(payload, RULES).notes == "" and decode(payload + b"xyz", RULES).notes.startswith("3 bytes behind")


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    decoded = decode(encoded(Image.fromarray(ramp)), RULES)
    assert decoded.converted == "16 bit scaled to 8"
    assert 120 < decoded.pixels_HWC.mean() < 135 and decoded.pixels_HWC.max() > 245


def test_transparency_is_laid_over_white():
    clear = decode(encoded(Image.new("RGBA", (64, 64), (255, 0, 0, 0))), RULES)
    assert (clear.pixels_HWC == 255).all() and clear.converted == "transparency laid over white"


def test_large_pictures_are_converted_strip_by_strip_like_small_ones():
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 255, (700, 4000, 4)).astype(np.uint8))  # Three strips.
    expected = Image.alpha_composite(Image.new("RGBA", large.size, "white"), large).convert("RGB")
    rules = DecodeRules(**{**RULES.__dict__, "image_size": 256, "max_pixels": 10**7})
    got = decode(encoded(large, compress_level=1), rules).pixels_HWC.astype(int)
    assert np.abs(got - np.asarray(expected.resize((256, 256), Image.Resampling.BILINEAR), int)).max() <= 1
    ramp = np.linspace(0, 65535, 700 * 4000).reshape(700, 4000).astype(np.uint16)
    got = decode(encoded(Image.fromarray(ramp), compress_level=1), rules).pixels_HWC[..., 0].astype(int)
    scaled = Image.fromarray(np.rint(ramp / 257).astype(np.uint8)).resize((256, 256), Image.Resampling.BILINEAR)
    assert np.abs(got - np.asarray(scaled, int)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("1", "PNG"), ("P", "GIF"), ("LA", "PNG"), ("L", "TIFF")]
)
def test_other_modes_are_converted_and_said_so(photo, mode, kind):
    assert decode(encoded(photo.convert(mode), kind), RULES).converted


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "PNG", "AVIF", "PPM", "JPEG2000"])
def test_content_decides_the_format(photo, kind):
    decoded = decode(encoded(photo, kind), RULES)
    plain = np.asarray(photo.resize((48, 48), Image.Resampling.BILINEAR), int)
    assert np.abs(decoded.pixels_HWC - plain).mean() < 12


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "WEBP"])
def test_format_that_the_installed_pillow_lacks_is_named_with_a_hint(photo, kind, monkeypatch):
    payload = encoded(photo, kind)
    monkeypatch.setattr("job.decoding.decode._readable_formats", lambda: ("JPEG", "PNG"))
    assert reason_of(payload) == f"a {kind} picture, which this job does not read: convert it to JPEG or PNG"


def test_first_of_several_frames_is_taken(photo):
    frames = [photo.rotate(90 * k).convert("P") for k in range(3)]
    payload = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    decoded = decode(payload, RULES)
    assert "first of 3 frames" in decoded.converted
    assert np.abs(decoded.pixels_HWC.astype(int) - decode(encoded(frames[0]), RULES).pixels_HWC).mean() < 6


@pytest.mark.parametrize(("resize", "border", "middle"), [("squash", 200, 200), ("crop", 200, 200), ("pad", 0, 200)])
def test_resize_rules(resize, border, middle):
    rules = DecodeRules(**{**RULES.__dict__, "resize": resize})
    pixels = decode(encoded(Image.new("RGB", (200, 100), (200, 200, 200))), rules).pixels_HWC
    assert pixels.shape == (48, 48, 3) and pixels[24, 24, 0] == middle and pixels[2, 24, 0] == border


def test_crop_takes_the_middle():
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    rules = DecodeRules(**{**RULES.__dict__, "resize": "crop"})
    assert decode(encoded(image), rules).pixels_HWC[:, 2:-2].min() > 250


def test_perceptual_hash_survives_resizing_and_recompression(photo):
    first = decode(encoded(photo), RULES).facts.phash
    again = decode(encoded(photo.resize((90, 70)), "JPEG", quality=50), RULES).facts.phash
    other = decode(encoded(photo.rotate(90)), RULES).facts.phash
    assert (first ^ again).bit_count() <= 4 < (first ^ other).bit_count()
