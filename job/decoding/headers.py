"""Checks of the bytes of a file before any decoder reads them: its format, its size, and the place where a JPEG ends.

These functions allocate no memory for a size that a file claims. They raise nothing: if the bytes end too early, they return
None, and the decoder says what is wrong.
"""

import re
import struct
import zlib
from collections.abc import Container
from dataclasses import dataclass

import numpy as np

_PICTURE_MAGIC = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\1\0", "ICO"),
)
# Pictures that Pillow does not open by itself.
_OTHER_PICTURES = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"qoif", "QOI"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
DICOM = (
    "a DICOM file, which this job does not read: convert it to PNG with its window and level, for example with "
    "dcm2img --use-window"
)
UNKNOWN = "not a picture of any kind known here"
_DOCUMENTS = (
    (b"%PDF", "a PDF document: save the photos in it as JPEG or PNG"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"\x1f\x8b", "a compressed archive: unpack it"),
)
# Every marker, except what may be inside the scan of a JPEG: 0xFF followed by a stuffed zero, a restart or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_END = re.compile(rb"\xff\xd9")  # Three times as fast as bytes.find.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Segments that Pillow and libjpeg read the same way and that change no pixel: marker, first bytes, smallest length.
_JPEG_PASSED_OVER = {
    0xE0: (b"JFIF\0", 16),
    0xE2: (b"ICC_PROFILE\0", 16),
    0xFE: (b"", 2),
    0xDB: (b"", 67),
    0xC4: (b"", 19),
    0xDD: (b"", 4),
}


@dataclass(frozen=True)
class Claim:
    """The size that a header claims, in pixels as (width, height): of the whole picture, and of its first frame.

    `corner` is the place (x, y) of the upper left corner of that frame.
    """

    format: str
    canvas: tuple[int, int]
    frame: tuple[int, int]
    corner: tuple[int, int] = (0, 0)

    @property
    def agrees(self) -> bool:
        return self.frame == self.canvas and self.corner == (0, 0)


@dataclass(frozen=True)
class JpegLayout:
    """The kind of a JPEG, and the offset behind its end marker, -1 if it has none."""

    is_progressive: bool
    is_huffman: bool
    end: int

    def can_hold(self, num_pixels: int, num_bytes: int) -> bool:
        """Return whether so many bytes can hold a picture: a Huffman code has at least a bit for each block of 64 pixels."""
        return not self.is_huffman or num_pixels <= num_bytes * 8 * 64


def picture_format(payload: bytes) -> str:
    """Return the format that the first bytes announce, by Pillow's name (HEIC for HEIF); empty if there is none."""
    if payload[:4] == b"RIFF" and payload[8:12] == b"WEBP":
        return "WEBP"
    if payload[4:8] == b"ftyp" and payload[8:12] in (b"avif", b"avis"):
        return "AVIF"
    if payload[4:8] == b"ftyp" and payload[8:12] in _HEIF_BRANDS:
        return "HEIC"
    return next((name for magic, name in _PICTURE_MAGIC if payload.startswith(magic)), "")


def ends_early(payload: bytes) -> bool:
    """Return whether the bytes of a WebP are fewer than its header says. False for other formats."""
    return payload[:4] == b"RIFF" and int.from_bytes(payload[4:8], "little") + 8 > len(payload)


def claim(payload: bytes) -> Claim | None:
    """Return the size that a PNG, GIF or WebP claims; None for other formats, for which opening allocates nothing."""
    readers = {"PNG": _png_claim, "GIF": _gif_claim, "WEBP": _webp_claim}
    reader = readers.get(picture_format(payload))
    try:
        return reader(payload) if reader else None
    except (struct.error, IndexError):
        return None


def _png_claim(payload: bytes) -> Claim | None:
    """Return the size in the IHDR chunk, and that in the fcTL chunk of an APNG whose animation begins with the picture."""
    canvas: tuple[int, int] | None = None
    place = 8
    while True:
        length, kind = struct.unpack_from(">I4s", payload, place)
        if kind == b"IHDR":
            canvas = struct.unpack_from(">II", payload, place + 8)
        elif canvas and kind == b"fcTL":
            width, height, x, y = struct.unpack_from(">4I", payload, place + 12)
            return Claim("PNG", canvas, (width, height), (x, y))
        elif kind in (b"IDAT", b"IEND"):
            return Claim("PNG", canvas, canvas) if canvas else None
        place += 12 + length


def _gif_claim(payload: bytes) -> Claim | None:
    width, height, flags = struct.unpack_from("<HHB", payload, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while True:
        if payload[place] == ord(","):
            x, y, frame_width, frame_height = struct.unpack_from("<4H", payload, place + 1)
            return Claim("GIF", (width, height), (frame_width, frame_height), (x, y))
        if payload[place] == ord(";"):
            return None
        if payload[place] == ord("!"):
            place += 2
            while payload[place]:
                place += 1 + payload[place]
        place += 1


def _webp_claim(payload: bytes) -> Claim | None:
    kind = payload[12:16]
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", payload, 21)
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return Claim("WEBP", size, size)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", payload, 26)
        return Claim("WEBP", (width & 0x3FFF, height & 0x3FFF), (width & 0x3FFF, height & 0x3FFF))
    if kind != b"VP8X":
        return None
    canvas = _int24(payload, 24) + 1, _int24(payload, 27) + 1
    place = 30
    while place + 24 <= len(payload):
        (length,) = struct.unpack_from("<I", payload, place + 4)
        if payload[place : place + 4] == b"ANMF":
            corner = 2 * _int24(payload, place + 8), 2 * _int24(payload, place + 11)
            return Claim("WEBP", canvas, (_int24(payload, place + 14) + 1, _int24(payload, place + 17) + 1), corner)
        place += 8 + length + length % 2
    return Claim("WEBP", canvas, canvas)


def _int24(payload: bytes, place: int) -> int:
    return int.from_bytes(payload[place : place + 3], "little")


def bits_per_pixel(payload: bytes) -> int:
    """Return the bits per pixel of a BMP; 0 if its header is too short."""
    place = 24 if payload[14:18] == b"\x0c\0\0\0" else 28
    return int.from_bytes(payload[place : place + 2], "little")


def png_damage(payload: bytes) -> str:
    """Return in words what is wrong with a PNG; empty if nothing is.

    It checks the checksums of all chunks up to IEND. Pillow does not check those of the picture data.
    """
    place = 8
    while place + 12 <= len(payload):
        length, kind = struct.unpack_from(">I4s", payload, place)
        if not kind.isalpha():
            return "damaged PNG: something that is no chunk lies between its chunks"
        end = place + 8 + length
        if end + 4 > len(payload):
            break
        if zlib.crc32(memoryview(payload)[place + 4 : end]) != int.from_bytes(payload[end : end + 4], "big"):
            return f"damaged PNG: the checksum of its {kind.decode()} chunk is wrong"
        if kind == b"IEND":
            return ""
        place = end + 4
    return "cut off: the PNG ends before its end marker"


def jpeg_layout(payload: bytes) -> JpegLayout:
    """Return the layout of a JPEG, from its segments and the first end marker. No end marker can be inside a scan."""
    place, frame, end = 2, 0, -1
    while (found := _JPEG_MARKER.search(payload, place)) is not None:
        kind = payload[found.start() + 1]
        if kind in _JPEG_FRAMES:
            frame = frame or kind
        if kind == 0xD9:
            end = found.end()
            break
        place = found.end() + int.from_bytes(payload[found.end() : found.end() + 2], "big")
        if kind == 0xDA and (last := _JPEG_END.search(payload, place)) and last.end() == len(payload):
            end = len(payload)  # The usual case: nothing follows the picture.
            break
    return JpegLayout(frame in (0xC2, 0xC6, 0xCA, 0xCE), 0xC0 <= frame < 0xC8, end)


def plain_jpeg_size(payload: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG with the simplest kind of header; None for all other bytes.

    Such a JPEG is baseline and has three components. Before its scan it has only segments that change no pixel and no gaps
    between them, so no EXIF and no further pictures. It has enough bytes for its size, and none behind the first end marker.
    """
    size, place = (0, 0), 2 if payload.startswith(b"\xff\xd8") else len(payload)
    while place + 4 <= len(payload) and payload[place] == 0xFF:
        kind, length = payload[place + 1], int.from_bytes(payload[place + 2 : place + 4], "big")
        start, place = place + 4, place + 2 + length
        beginning, least = _JPEG_PASSED_OVER.get(kind, (b"", 1 << 16))
        if kind == 0xDA:
            layout = JpegLayout(False, True, len(payload))
            is_whole = all(size) and layout.can_hold(size[0] * size[1], layout.end) and _is_end(payload, place)
            return size if is_whole else None
        if kind == 0xC0 and size == (0, 0) and length == 17 and place < len(payload):
            height, width = struct.unpack_from(">HH", payload, start + 1)
            size = (width, height)
        elif length < least or not payload.startswith(beginning, start):
            return None
    return None


def _is_end(payload: bytes, place: int) -> bool:
    """Return whether the first end marker after a place is at the end of the bytes."""
    if not 0 < place <= len(payload) - 2 or payload[-2:] != b"\xff\xd9":
        return False
    starts = (place, place + 1)  # Comparing pairs of bytes with NumPy is three times as fast as a regular expression.
    pairs = [np.frombuffer(payload, "<u2", (len(payload) - start) // 2, start) for start in starts]
    return sum(int(np.count_nonzero(p == 0xD9FF)) for p in pairs) == 1


def what_it_is(payload: bytes, readable: Container[str]) -> tuple[str, str]:
    """Return the format (empty if it is no picture) and the reason, in words, of bytes that Pillow does not open."""
    name = picture_format(payload)
    if name in readable:
        return name, f"damaged {name}: its header cannot be read"
    if name == "HEIC":
        return name, (
            "a HEIC picture, which this job does not read without its plugin: "
            "pip install 'transfer-job[heif]', or convert it to JPEG or PNG"
        )
    if payload[128:132] == b"DICM":
        return "DICOM", DICOM
    if name := name or next((name for magic, name in _OTHER_PICTURES if payload.startswith(magic)), ""):
        return name, f"a {name} picture, which this job does not read: convert it to JPEG or PNG"
    start = payload[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = start.lower()
    if start.startswith(b"version https://git-lfs"):
        return "", "a git-LFS pointer, not the photo: run `git lfs pull` in the source folder"
    if b"<!doctype html" in lower or b"<html" in lower:
        return "", "an HTML page"
    if b"<svg" in lower:
        return "", "an SVG drawing: convert it to PNG"
    if lower.startswith(b"<?xml"):
        return "", "an XML document, perhaps the error page of a download"
    if not payload.strip(b"\0"):
        return "", "only zero bytes"
    if payload[4:8] == b"ftyp":
        return "", "a video: save pictures of it as JPEG or PNG"
    reason = "text" if _is_text(payload[:1024]) else UNKNOWN
    return "", next((known for magic, known in _DOCUMENTS if payload.startswith(magic)), reason)


def _is_text(start: bytes) -> bool:
    if re.search(rb"[\x00-\x08\x0e-\x1f]", start):
        return False
    try:
        start[: max(1, len(start) - 3)].decode()  # The last character may be cut in two.
    except UnicodeDecodeError as error:
        return error.start > len(start) - 8 and len(start) > 16
    return True
