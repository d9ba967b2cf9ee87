"""Files with 16-bit values, which Pillow cannot write but for gray ones: PNG and TIFF by hand."""

import struct
import zlib

import numpy as np


def picture(channels: int, bits: int = 12, size: tuple[int, int] = (48, 40), seed: int = 0) -> np.ndarray:
    """Random values below 2**bits, uint16, with height, width and channels as axes. Opacity (of 2 or 4) is random, too."""
    width, height = size
    return np.random.default_rng(seed).integers(0, 2**bits, (height, width, channels)).astype(np.uint16)


def scaled(values: np.ndarray, bit_depth: int) -> np.ndarray:
    """Values of 0 to 2**bit_depth - 1 as 0 to 255, each rounded by itself. uint8."""
    return np.rint(np.minimum(values.astype(float), 2**bit_depth - 1) * 255 / (2**bit_depth - 1)).astype(np.uint8)


def over_white(gray_or_rgb: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """8-bit pixels with 8-bit opacity (H, W, 1), laid over white. float (H, W, 3)."""
    share = opacity.astype(float) / 255
    return np.broadcast_to(gray_or_rgb * share + 255 * (1 - share), (*gray_or_rgb.shape[:2], 3))


def png(values_HWC: np.ndarray, *, clear: tuple[int, ...] = ()) -> bytes:
    """`clear` is the colour that the file declares transparent."""
    height, width, channels = values_HWC.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values_HWC.astype(">u2"))
    transparency = _chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    data = _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + transparency + data


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff(values_HWC: np.ndarray, *, order: str = "<", compressed: bool = False, bits: int = 16) -> bytes:
    """`order` is that of the bytes, < or >. With 12 bits, two gray values share three bytes."""
    height, width, channels = values_HWC.shape
    if bits == 12:
        first, second = values_HWC.reshape(height, -1)[:, ::2], values_HWC.reshape(height, -1)[:, 1::2]
        data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    else:
        data = values_HWC.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compressed else data
    deep = 8 + 2 + 12 * 11 + 4  # Where what is too long for its entry lies: the bits of each channel.
    bits_at = deep if channels > 2 else bits
    compression, photometric = 8 if compressed else 1, 2 if channels > 2 else 1
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits_at), (259, 3, 1, compression)]
    entries += [(262, 3, 1, photometric), (273, 4, 1, deep + 8), (277, 3, 1, channels), (278, 4, 1, height)]
    entries += [(279, 4, 1, len(data)), (284, 3, 1, 1), (338, 3, 1, 2) if channels in (2, 4) else (305, 2, 1, 0)]
    entries.sort()

    def value(kind: int, count: int, number: int) -> bytes:
        is_short = kind == 3 and count == 1
        return struct.pack(f"{order}{'HH' if is_short else 'I'}", *((number, 0) if is_short else (number,)))

    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    directory = struct.pack(f"{order}H", len(entries))
    directory += b"".join(
        struct.pack(f"{order}HHI", tag, kind, count) + value(kind, count, n) for tag, kind, count, n in entries
    )
    return head + directory + bytes(4) + struct.pack(f"{order}4H", *[bits] * 4) + data
