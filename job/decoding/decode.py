"""The canonical decoder. Only this module decodes photos; the exported graph repeats its rules (`serving/graph_decode.py`).

The rules, in this order:

- The content decides the format, never the file name.
- The limits are checked on the size in the header, before pixels are decoded.
- Of several frames, the first one is taken. A photo whose first frame does not fill the canvas is refused.
- 16 bits are scaled to 8 by the bit depth of the data set, transparency is laid over white, all else becomes RGB.
- The EXIF orientation is applied, and one antialiased bilinear resize makes the square.

Plain JPEGs are decoded by libjpeg-turbo itself (`jpeg.py`). Most photos need no other parser at all (`_decode_plainest`).

RGB in 8 bits as a sequential JPEG, a PNG or a 24-bit BMP has the status `used`. All other photos are `converted`.
"""

import io
import re
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from job.decoding import deep, headers, jpeg, perceptual
from job.decoding.deep import strips
from job.decoding.rules import BadPhoto, DecodeRules, Facts, Photo, check_pixels, check_size

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "ICO", "PPM", "JPEG2000", "HEIC")
MAX_FRAMES = 1000
# Raise it when the same bytes give other pixels, facts or words. Then all stored photos are decoded again. If only a few
# kinds of files are concerned, let `processes.is_outdated` recognise their records instead, so that all others stay valid.
SCHEMA = 2

_PLAIN_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB")
_MODE_NAMES = {"L": "grayscale", "1": "black and white", "P": "palette", "RGB": "", "RGBA": "", "LA": "", "PA": ""}

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


def decode(payload: bytes, rules: DecodeRules) -> Photo:
    """Decode the bytes of a file. Raises: BadPhoto, if they are no picture, are damaged, or exceed a limit of the rules."""
    if not payload:
        raise BadPhoto("0 bytes", is_image=False)
    photo = _decode_plainest(payload, rules)
    if photo is not None:
        return photo
    facts, in_header = Facts(headers.picture_format(payload)), True
    converted: list[str] = []
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = _open(payload, facts.format, rules)
            facts = _facts(image)
            in_header = False
            check_size(facts, rules)
            _take_first_frame(image, facts, converted)
            stored = deep.layout(image)
            in_jpeg = jpeg.checked_layout(payload, facts, notes) if facts.format in ("JPEG", "MPO") else None
            if facts.format in ("PNG", "HEIC"):
                facts = _loaded(image, payload, facts, rules)
            orientation = _orientation(image, complaints, notes)
            bit_depth = deep.STATED_BIT_DEPTHS.get(stored, rules.bit_depth)
            _say_what_changes(image, payload, in_jpeg, bit_depth if stored else None, converted)
            if stored:
                image, facts = _deep_to_8_bit(image, payload, stored, bit_depth, facts, notes)
            rgb = _to_rgb(image, payload, _needed_size(image.size, rules), facts)
            if orientation in _UPRIGHT:
                notes.append(f"turned upright (EXIF orientation {orientation})")
                if facts.format == "TIFF":  # Pillow turns these by itself while it loads them.
                    orientation = 1
                else:
                    rgb = rgb.transpose(_UPRIGHT[orientation])
            return _finish(rgb, rules, facts, swap_sides=orientation >= 5, converted=converted, notes=notes)
        except BadPhoto:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise BadPhoto("a picture inside it claims more than intake.max_pixels", facts) from None
        except MemoryError:
            raise BadPhoto("needs more memory to decode than intake.worker_memory_mb allows", facts) from None
        except Exception as error:  # Damaged bytes can make Pillow raise almost any exception.
            cut = in_header and headers.ends_early(payload)
            reason = _in_words(EOFError() if cut else error, facts.format or "picture", in_header=in_header)
            raise BadPhoto(reason, facts) from error


def _decode_plainest(payload: bytes, rules: DecodeRules) -> Photo | None:
    """Decode a JPEG with the simplest kind of header; None for other bytes and for bad photos, which `decode` explains."""
    size = headers.plain_jpeg_size(payload)
    if size is None:
        return None
    facts = Facts("JPEG", *size, "RGB")
    try:
        check_size(facts, rules)
        rgb = jpeg.decode(payload, _needed_size(size, rules), facts)
        return rgb and _finish(rgb, rules, facts, swap_sides=False, converted=[], notes=[])
    except (BadPhoto, MemoryError):
        return None


def _open(payload: bytes, kind: str, rules: DecodeRules) -> Image.Image:
    """Return the picture, opened but not decoded. Raises: BadPhoto."""
    claimed = headers.claim(payload)
    if claimed is not None:  # Checked here because, for these formats, Pillow allocates the canvas when it opens a file.
        facts = Facts(claimed.format, *claimed.canvas)
        check_pixels(facts, rules)
        if not claimed.agrees:
            (width, height), (x, y) = claimed.frame, claimed.corner
            raise BadPhoto(
                f"the canvas of {facts.width}x{facts.height} pixels disagrees with the first frame of {width}x{height} at "
                f"({x}, {y})",
                facts,
            )
    # Pillow decodes an ICO while it opens it, so Pillow must check it. `check_pixels` checks all others, in better words.
    Image.MAX_IMAGE_PIXELS = rules.max_pixels if kind == "ICO" else None
    try:
        image = Image.open(io.BytesIO(payload), formats=_readable_formats())
    except UnidentifiedImageError:
        name, reason = headers.what_it_is(payload, _readable_formats())
        raise BadPhoto(reason, Facts(name), is_image=bool(name)) from None
    Image.MAX_IMAGE_PIXELS = rules.max_pixels  # Pillow checks further pictures inside the file by it.
    return image


def _facts(image: Image.Image) -> Facts:
    width, height = image.size
    return Facts(str(image.format), width, height, image.mode, bool(image.info.get("exif")))


@cache
def _readable_formats() -> tuple[str, ...]:
    """Return the `FORMATS` that the installed Pillow can read, with HEIC if its plugin is installed."""
    Image.init()
    with suppress(ImportError):
        _register_heic()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def can_read_heic() -> bool:
    """Return whether the plugin for HEIC is installed."""
    return "HEIC" in _readable_formats()


def _register_heic() -> None:
    """Let Pillow read HEIC with libheif, which turns photos upright and scales 10 and 12 bits to 8."""
    import pillow_heif

    pillow_heif.libheif_version()  # Raises ImportError if the library behind it cannot be loaded.

    class HeicFile(pillow_heif.HeifImageFile):  # type: ignore[misc]
        format = "HEIC"  # The name that people know. Pillow would say HEIF.

    options = pillow_heif.options
    options.DECODE_THREADS = 1  # There is a decode process for each core.
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    Image.register_open(HeicFile.format, HeicFile, lambda start: headers.picture_format(start) == "HEIC")


def _finish(
    rgb: Image.Image, rules: DecodeRules, facts: Facts, *, swap_sides: bool, converted: list[str], notes: list[str]
) -> Photo:
    square = _to_square(rgb, rules)
    gray = square.convert("L")
    width, height = (facts.height, facts.width) if swap_sides else (facts.width, facts.height)
    looks = perceptual.hash_of(gray), *perceptual.brightness_and_contrast(gray)
    complete = Facts(facts.format, width, height, facts.mode, facts.has_exif, *looks, facts.peak)
    return Photo(perceptual.pixels_of(square), complete, "; ".join(converted), "; ".join(notes))


def _take_first_frame(image: Image.Image, facts: Facts, converted: list[str]) -> None:
    if facts.format in ("MPO", "HEIC"):  # Cameras add further pictures, such as a preview. The photo itself is open already.
        return
    frames = getattr(image, "n_frames", 1)
    if frames > MAX_FRAMES:
        raise BadPhoto(f"{frames:,} frames, more than {MAX_FRAMES:,}", facts)
    if frames > 1:
        image.seek(0)
        converted.append(f"first of {frames} frames")


def _loaded(image: Image.Image, payload: bytes, facts: Facts, rules: DecodeRules) -> Facts:
    """Decode a PNG, whose EXIF may be behind its pixels, or a HEIC, whose header may have a wrong size. Return its facts."""
    if facts.format == "PNG" and (damage := headers.png_damage(payload)):
        raise BadPhoto(damage, facts)
    image.load()
    if facts.format == "HEIC":
        facts = _facts(image)
        check_size(facts, rules)
    return facts


def _orientation(image: Image.Image, complaints: list[warnings.WarningMessage], notes: list[str]) -> int:
    """Return the EXIF orientation, 1 to 8. A malformed EXIF block is read as far as possible, and noted."""
    raw = image.info.get("exif", b"")
    raw = re.sub(rb"^(Exif\0\0)+", b"", raw) if isinstance(raw, bytes) else b""
    is_malformed = bool(raw) and not raw.startswith((b"II", b"MM"))
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Malformed EXIF raises in many ways.
        value, is_malformed = 1, True
    is_malformed |= any("exif" in str(c.message).lower() for c in complaints)
    if not isinstance(value, int) or not 0 <= value <= 8:
        value, is_malformed = 1, True
    if is_malformed:
        notes.append("malformed EXIF" if value in _UPRIGHT else "malformed EXIF: taken as stored")
    return max(1, value)


def _needed_size(size: tuple[int, int], rules: DecodeRules) -> tuple[int, int]:
    """Return the smallest width and height that a scaled decode may give, so that the resize never enlarges."""
    if rules.resize != "pad":
        return rules.image_size, rules.image_size
    scale = rules.image_size / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _say_what_changes(
    image: Image.Image, payload: bytes, in_jpeg: headers.JpegLayout | None, bit_depth: int | None, converted: list[str]
) -> None:
    """Add to `converted` what has to change: nothing for 8-bit RGB in a sequential JPEG, a PNG or a 24-bit BMP.

    `bit_depth` is the depth by which the values of a 16-bit photo are scaled, None for all other photos.
    """
    name = "JPEG" if image.format == "MPO" else str(image.format)
    mode = _MODE_NAMES.get(image.mode, image.mode)
    if in_jpeg is not None and in_jpeg.is_progressive:
        converted.append("progressive JPEG")
    if bit_depth:
        converted.append(f"{bit_depth} bit scaled to 8")
    elif image.mode in ("I", "F"):
        converted.append("32 bit scaled to 8")
    if image.has_transparency_data:
        converted.append("transparency laid over white")
    if image.mode.startswith("I") or image.mode == "F":
        mode = ""
    elif name == "BMP" and not mode and headers.bits_per_pixel(payload) != 24:
        mode = f"{headers.bits_per_pixel(payload)}-bit"
    if mode or name not in _PLAIN_FORMATS:
        converted.append(f"{mode} {name} to RGB".strip())


def _to_rgb(image: Image.Image, payload: bytes, needed_size: tuple[int, int], facts: Facts) -> Image.Image:
    if facts.format in ("JPEG", "MPO"):
        plain = jpeg.decode(payload, needed_size, facts)
        if plain is not None:
            return plain
    image.load()
    if image.mode in ("I", "F"):
        return _scale_to_8_bit(image, facts).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_to_8_bit(
    image: Image.Image, payload: bytes, stored: str, bit_depth: int, facts: Facts, notes: list[str]
) -> tuple[Image.Image, Facts]:
    """Return a picture of 16-bit values in 8 bits, and the facts with `peak`."""
    picture = deep.load(image, payload, stored)
    peak, _ = picture.peaks
    if peak >= 2**bit_depth:
        notes.append("values above intake.bit_depth became white")
    return picture.to_8_bit(bit_depth), replace(facts, peak=0 if stored in deep.STATED_BIT_DEPTHS else peak)


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    for box in strips(image.size):
        strip = image.crop(box).convert("RGBA")
        white.paste(strip, box, strip)
    return white


def _scale_to_8_bit(image: Image.Image, facts: Facts) -> Image.Image:
    """Scale 32-bit and float values to 8 bits: integers that fit into 16 bits by 65535, others by their own range."""
    low, high = 0.0, 65535.0
    ends = [(values.min(), values.max()) for values in map(np.asarray, map(image.crop, strips(image.size)))]
    if not np.isfinite(ends).all():
        raise BadPhoto("pixels that are not finite numbers", facts)
    darkest, brightest = float(min(e[0] for e in ends)), float(max(e[1] for e in ends))
    if image.mode == "F" or darkest < 0 or brightest > high:
        low, high = darkest, brightest
    scaled = np.empty((image.height, image.width), np.uint8)
    for box in strips(image.size):
        values = np.asarray(image.crop(box)).astype(np.float64)
        scaled[box[1] : box[3]] = np.rint((values - low) * (255 / max(high - low, 1e-12)))
    return Image.fromarray(scaled)


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


def _in_words(error: Exception, name: str, *, in_header: bool) -> str:
    """Return the error of a library in words that the owner of the file understands."""
    message = str(error).lower()
    if message.startswith("memory allocation error"):  # libheif has no exception class for it.
        return "needs more memory to decode than intake.worker_memory_mb allows"
    if isinstance(error, EOFError) or re.search("truncated|not enough image data|end of file|eof", message):
        return f"cut off: the {name} ends before the picture does"
    if re.search("unsupported|not supported|not implemented|not configured|unknown|codec configuration", message):
        return f"a kind of {name} that this job does not read: convert it to JPEG or PNG"
    if in_header:
        return f"damaged {name}: its header cannot be read"
    return f"damaged {name}: its picture data cannot be decoded"
