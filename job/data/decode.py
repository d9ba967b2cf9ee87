"""The canonical decoder: every photo becomes pixels here and nowhere else.

Rules, in this order: content decides the format, never the name; limits are checked from the header, before pixels
exist; the first frame of several; EXIF orientation turned upright; 16 bits scaled (not clipped) to 8; transparency laid
over white; everything else converted to RGB; one antialiased bilinear resize. Plain JPEGs go through libjpeg-turbo
directly (simplejpeg), which gives Pillow's pixels and, unlike Pillow, tells when it had to repair the scan.
"""

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "ICO", "PPM", "JPEG2000")
MAX_FRAMES = 1000
# What libjpeg scales by while it decodes, and TensorFlow's decoder in the exported graph as well.
JPEG_REDUCTIONS = (8, 4, 2)

# Limits are checked against `DecodeRules.max_pixels`; Pillow's own check would warn below and raise above it.
Image.MAX_IMAGE_PIXELS = None

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The first eight rows of the orthonormal DCT-II of 32 points.
_DCT_8x32 = np.cos(np.pi / 32 * (np.arange(32) + 0.5)[None, :] * np.arange(8)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class DecodeRules:
    """What is decoded to, and what is refused. Sizes in pixels."""

    image_size: int
    resize: Literal["squash", "crop", "pad"]
    max_pixels: int
    min_side_px: int
    max_aspect_ratio: float


@dataclass(frozen=True)
class Facts:
    """What is known of a file. Width and height are those of the upright photo; brightness and contrast from 0 to 1."""

    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    has_exif: bool = False
    phash: int = 0
    brightness: float = 0.0
    contrast: float = 0.0


@dataclass(frozen=True)
class Photo:
    """A decoded photo: uint8 pixels of shape (image_size, image_size, 3).

    `converted` says what had to change to get RGB pixels, `notes` what else is worth knowing; both may be empty.
    """

    pixels_HWC: np.ndarray
    facts: Facts
    converted: str = ""
    notes: str = ""


class BadPhoto(Exception):
    """The reason in plain words. `is_image` is false where the bytes are no picture of any kind."""

    def __init__(self, reason: str, facts: Facts = Facts(), *, is_image: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.facts, self.is_image = reason, facts, is_image


def decode(payload: bytes, rules: DecodeRules) -> Photo:
    """Bytes of a file to a photo.

    Raises:
        BadPhoto: where no trustworthy picture can be had from the bytes.
    """
    if not payload:
        raise BadPhoto("0 bytes", is_image=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(payload), formats=FORMATS)
        except UnidentifiedImageError:
            raise _not_opened(payload) from None
        except Exception as error:  # Pillow's header parsers raise whatever the bytes lead them to.
            raise BadPhoto(f"damaged header: {_in_words(error)}") from error
        width, height = image.size
        facts = Facts(str(image.format), width, height, image.mode, bool(image.info.get("exif")))
        _check_limits(facts, rules)
        converted: list[str] = []
        notes: list[str] = []
        try:
            _take_first_frame(image, facts, converted)
            orientation = _orientation(image, notes)
            rgb = _to_rgb(image, payload, _needed_size(image.size, rules), facts, converted)
        except BadPhoto:
            raise
        except MemoryError:
            raise BadPhoto("needs more memory to decode than intake.worker_memory_mb allows", facts) from None
        except Exception as error:  # So do its decoders.
            raise BadPhoto(f"damaged {facts.format}: {_in_words(error)}", facts) from error
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
        notes.append(f"turned upright (EXIF orientation {orientation})")
    return _finish(rgb, rules, facts, swap_sides=orientation >= 5, converted=converted, notes=notes)


def _finish(
    rgb: Image.Image, rules: DecodeRules, facts: Facts, *, swap_sides: bool, converted: list[str], notes: list[str]
) -> Photo:
    square = _to_square(rgb, rules)
    gray = square.convert("L")
    histogram = np.asarray(gray.histogram(), np.float64) / (rules.image_size**2)
    levels = np.arange(256) / 255
    brightness = float(histogram @ levels)
    width, height = (facts.height, facts.width) if swap_sides else (facts.width, facts.height)
    complete = Facts(
        facts.format,
        width,
        height,
        facts.mode,
        facts.has_exif,
        _perceptual_hash(gray),
        round(brightness, 6),
        round(float(np.sqrt(histogram @ (levels - brightness) ** 2)), 6),
    )
    return Photo(np.asarray(square), complete, "; ".join(converted), "; ".join(notes))


def _check_limits(facts: Facts, rules: DecodeRules) -> None:
    width, height = facts.width, facts.height
    size = f"{width}x{height} pixels"
    if width * height > rules.max_pixels:
        raise BadPhoto(f"claims {size}, more than intake.max_pixels ({rules.max_pixels:,})", facts)
    if min(width, height) < rules.min_side_px:
        raise BadPhoto(f"{size}: a side is shorter than intake.min_side_px ({rules.min_side_px})", facts)
    if max(width, height) > rules.max_aspect_ratio * min(width, height):
        raise BadPhoto(f"{size}: longer than intake.max_aspect_ratio ({rules.max_aspect_ratio:g}) allows", facts)


def _take_first_frame(image: Image.Image, facts: Facts, converted: list[str]) -> None:
    if facts.format == "MPO":  # A JPEG with further pictures behind it, as cameras write them: the first is the photo.
        return
    frames = getattr(image, "n_frames", 1)
    if frames > MAX_FRAMES:
        raise BadPhoto(f"{frames:,} frames, more than {MAX_FRAMES:,}", facts)
    if frames > 1:
        image.seek(0)
        converted.append(f"first of {frames} frames")


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Malformed EXIF raises in many ways, and the photo is still good.
        notes.append("malformed EXIF: taken as stored")
        return 1
    return value if isinstance(value, int) else 1


def _needed_size(size: tuple[int, int], rules: DecodeRules) -> tuple[int, int]:
    """The smallest width and height that a scaled decode may give, so that resizing never enlarges."""
    if rules.resize != "pad":
        return rules.image_size, rules.image_size
    scale = rules.image_size / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def jpeg_reduction(size: tuple[int, int], needed_size: tuple[int, int]) -> int:
    """By how much a JPEG is scaled down while it is decoded: at most so far that the resize need not enlarge."""
    for reduction in JPEG_REDUCTIONS:
        if all(-(-side // reduction) >= needed for side, needed in zip(size, needed_size, strict=True)):
            return reduction
    return 1


def _to_rgb(
    image: Image.Image, payload: bytes, needed_size: tuple[int, int], facts: Facts, converted: list[str]
) -> Image.Image:
    if facts.format in ("JPEG", "MPO"):
        plain = _decode_plain_jpeg(payload, needed_size, facts) if image.mode in ("RGB", "L") else None
        if plain is not None:
            if image.mode == "L":
                converted.append("grayscale to RGB")
            return plain
    if facts.format == "PNG":
        _check_png(payload, facts)
    image.load()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        converted.append("16 bit scaled to 8" if image.mode.startswith("I;16") else f"mode {image.mode} scaled to 8 bit")
        return _scale_to_8_bit(image, facts).convert("RGB")
    if image.has_transparency_data:
        converted.append("transparency laid over white")
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode != "RGB":
        names = {"L": "grayscale", "1": "black and white", "P": "palette"}
        converted.append(f"{names.get(image.mode, image.mode)} to RGB")
    return image.convert("RGB")


def _decode_plain_jpeg(payload: bytes, needed_size: tuple[int, int], facts: Facts) -> Image.Image | None:
    """The picture, or None where libjpeg-turbo's simple interface does not know the kind of JPEG."""
    reduction = jpeg_reduction((facts.width, facts.height), needed_size)
    smallest = [-(-side // reduction) for side in (facts.width, facts.height)]
    try:
        pixels = simplejpeg.decode_jpeg(payload, "RGB", min_width=smallest[0], min_height=smallest[1])
    except ValueError as error:
        message = str(error)
        if message.startswith("tj") or "not supported" in message.lower() or "unsupported" in message.lower():
            return None
        if message.startswith("Premature end"):
            raise BadPhoto("cut off: the JPEG ends before the picture does", facts) from None
        raise BadPhoto(f"damaged JPEG: the decoder had to repair it ({message})", facts) from None
    return Image.fromarray(pixels)


def _check_png(payload: bytes, facts: Facts) -> None:
    """Every chunk's checksum up to IEND, which Pillow does not look at where the picture data lies."""
    place = 8
    while place + 12 <= len(payload):
        length, kind = struct.unpack_from(">I4s", payload, place)
        end = place + 8 + length
        if end + 4 > len(payload):
            break
        if zlib.crc32(payload[place + 4 : end]) != int.from_bytes(payload[end : end + 4], "big"):
            raise BadPhoto(f"damaged PNG: the checksum of its {kind.decode('latin-1')} chunk is wrong", facts)
        if kind == b"IEND":
            return
        place = end + 4
    raise BadPhoto("cut off: the PNG ends before its end marker", facts)


def _scale_to_8_bit(image: Image.Image, facts: Facts) -> Image.Image:
    """16-bit values by their full range; 32-bit and float values by the range that the picture itself has."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadPhoto("pixels that are not finite numbers", facts)
    low, high = (
        (0.0, 65535.0) if image.mode != "F" and 0 <= values.min() <= values.max() <= 65535 else (values.min(), values.max())
    )
    return Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


def _to_square(rgb: Image.Image, rules: DecodeRules) -> Image.Image:
    size, (width, height) = rules.image_size, rgb.size
    if rules.resize == "squash":
        return rgb.resize((size, size), Image.Resampling.BILINEAR)
    if rules.resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return rgb.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    scale = size / max(width, height)
    inner = rgb.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size))
    square.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return square


def _perceptual_hash(gray: Image.Image) -> int:
    """64 bits: which of the 8x8 lowest DCT coefficients of a 32x32 thumbnail lie above their median.

    After Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010).
    """
    thumbnail = np.asarray(gray.resize((32, 32), Image.Resampling.BOX), np.float32)
    coefficients = (_DCT_8x32 @ thumbnail @ _DCT_8x32.T).ravel()
    bits = coefficients > np.median(coefficients[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _not_opened(payload: bytes) -> BadPhoto:
    """What bytes that Pillow does not open are, in plain words."""
    start = payload[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = start.lower()
    for offset, magic, name in _OTHER_PICTURES:
        if payload[offset : offset + len(magic)] == magic:
            return BadPhoto(f"{name}, which this job does not read, or damaged: convert it to JPEG or PNG", Facts(name))
    if payload.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")):
        return BadPhoto("damaged: it starts like a picture and its header cannot be read")
    if start.startswith(b"version https://git-lfs"):
        reason = "a git-LFS pointer, not the photo: run `git lfs pull` in the source folder"
    elif lower.startswith((b"<!doctype html", b"<html")):
        reason = "an HTML page"
    elif b"<svg" in lower:
        reason = "an SVG drawing: convert it to PNG"
    elif lower.startswith(b"<?xml"):
        reason = "an XML document, perhaps the error page of a download"
    elif not payload.strip(b"\0"):
        reason = "only zero bytes"
    elif start.isascii() and not re.search(rb"[\x00-\x08\x0e-\x1f]", start):
        reason = "text"
    else:
        reason = "not a picture of any kind known here"
    return BadPhoto(reason, is_image=False)


_OTHER_PICTURES = (
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypavif", "AVIF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (128, b"DICM", "DICOM"),
    (0, b"8BPS", "Photoshop"),
    (0, b"qoif", "QOI"),
)


def _in_words(error: Exception) -> str:
    message = str(error).strip() or type(error).__name__
    if "truncated" in message.lower():
        return "cut off: the file ends before the picture does"
    return message.splitlines()[0][:200]
