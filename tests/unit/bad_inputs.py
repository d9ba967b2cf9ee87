"""The inputs of the contract's rows 1 to 25, each made by code: what it is called, how it is made, what becomes of it."""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, features

from tests.conftest import encoded

TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
TURNS |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
SIDE = (72, 60)


@dataclass(frozen=True)
class Case:
    """`make` gives the bytes of a file, or puts something else in its place. `status` is empty for what is not listed."""

    row: int
    name: str | bytes
    make: Callable[[], bytes] | Callable[[Path], None]
    status: str
    reason: str = ""
    puts: bool = False

    def put(self, folder: Path) -> Path:
        path = folder / os.fsdecode(self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.puts:
            self.make(path)  # type: ignore[call-arg, arg-type]
        else:
            path.write_bytes(self.make())  # type: ignore[call-arg, arg-type]
        return path


def photo(seed: int, size: tuple[int, int] = SIDE) -> Image.Image:
    """Another picture for every seed: coarse colours, so that no two are near-duplicates, and some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 7, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) * 0.9 + rng.integers(0, 25, (size[1], size[0], 3))).astype(np.uint8))


def file(seed: int, kind: str = "JPEG", mode: str = "RGB", **options: object) -> Callable[[], bytes]:
    return lambda: encoded(photo(seed).convert(mode), kind, **options)


def part(make: Callable[[], bytes], share: float = 1.0, less: int = 0) -> Callable[[], bytes]:
    """The first `share` of a file, without its last `less` bytes."""
    return lambda: (payload := make())[: int(len(payload) * share) - less]


def text(content: str | bytes) -> Callable[[], bytes]:
    return lambda: content.encode() if isinstance(content, str) else content


def damaged(make: Callable[[], bytes], place: float, junk: bytes, *, insert: bool = False) -> Callable[[], bytes]:
    def made() -> bytes:
        payload = make()
        at = int(len(payload) * place)
        return payload[:at] + junk + payload[at if insert else at + len(junk) :]

    return made


def turned(seed: int, orientation: int, kind: str = "JPEG") -> Callable[[], bytes]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = photo(seed).transpose(getattr(Image.Transpose, TURNS[orientation]))
    return lambda: encoded(lying, kind, exif=exif)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, *before: bytes, rows: bytes | None = None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    if rows is None:
        line = width * channels * depth // 8
        noise = np.random.default_rng(colour).integers(0, 255, (height, line + 1)).astype(np.uint8)
        noise[:, 0] = 0
        rows = noise.tobytes()
    body = chunk(b"IHDR", header) + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def animation(seed: int, kind: str, frames: int = 3, mode: str = "RGB") -> Callable[[], bytes]:
    pictures = [photo(seed + k).convert(mode) for k in range(frames)]
    return lambda: encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])


def apng_with_a_small_first_frame() -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, 20, 20, 4, 4, 1, 10, 0, 0)
    return png(40, 40, 8, 2, chunk(b"acTL", struct.pack(">II", 1, 0)), chunk(b"fcTL", control))


def webp_with_another_canvas() -> bytes:
    payload = bytearray(animation(60, "WEBP")())
    payload[24] += 40
    return bytes(payload)


def gif_of_many_frames() -> bytes:
    """A thousand and one times the same small frame."""
    still = encoded(Image.new("P", (40, 40)), "GIF")
    start = still.index(b",", 13 + (3 << (still[10] & 7) + 1))
    frame = still[start : still.rindex(b";")]
    return still[:start] + frame * 1001 + b";"


def bmp_header(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 1000, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def webp_header(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_of_size(width: int, height: int) -> Callable[[], bytes]:
    def made() -> bytes:
        payload = bytearray(file(70)())
        frame = payload.index(b"\xff\xc0")
        payload[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
        return bytes(payload)

    return made


def icon_around(picture: Callable[[], bytes]) -> Callable[[], bytes]:
    def made() -> bytes:
        inside = picture()
        return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(inside), 22) + inside

    return made


@cache
def bomb() -> bytes:
    return png(20000, 20000, 1, 0, rows=bytes(20000 * 2501))


def socket_at(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # A socket's whole path may have 108 bytes.
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def folder_of(photo_name: str, seed: int) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.mkdir()
        (path / photo_name).write_bytes(file(seed)())

    return put


HTML = "<!DOCTYPE html><html><body>404</body></html>"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NOISE = np.random.default_rng(4).integers(0, 255, 4096).astype(np.uint8).tobytes()
CUT = "^cut off: the {} ends before the picture does$".format
CONVERT = "this job does not read: convert it to JPEG or PNG$"
Q, U, C, I = "quarantined", "used", "converted", "ignored"  # noqa: E741
AVIF = (C, "^AVIF to RGB$") if features.check("avif") else (Q, CONVERT)
HEIC = "^damaged HEIC: its header cannot be read$" if find_spec("pillow_heif") else r"pip install 'transfer-job\[heif\]'"
DICOM = "^a DICOM file, which this job does not read: convert it to PNG with its window and level"
J2K = (C, "^JPEG2000 to RGB$") if features.check("jpg_2000") else (Q, CONVERT)
JUNK = ("._x.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "README", "README.md", "LICENSE", "LICENSE.txt")
NAMES = ("two words.jpg", "ünï 🌼.jpg", "new\nline.jpg", "quo'te\".jpg", "<img onerror=alert(1)>.jpg", "-rf.jpg", "=1+1.jpg")
NAMES += ("%s%n.jpg", "[x]*?.jpg", "$HOME`id`.jpg", "back\\slash.jpg", "a: b, #c.jpg", "n" * 251 + ".jpg")

CASES = (
    Case(1, "empty.jpg", text(""), Q, "^0 bytes$"),
    Case(1, "first-20.jpg", lambda: file(1)()[:20], Q, "^damaged JPEG: its header cannot be read$"),
    Case(1, "first-120.jpg", lambda: file(1)()[:120], Q, CUT("JPEG")),
    Case(1, "zeros.jpg", lambda: bytes(4096), Q, "^only zero bytes$"),
    Case(1, "noise.jpg", lambda: NOISE, Q, "^not a picture of any kind known here$"),
    Case(2, "half.jpg", part(file(2), 0.5), Q, CUT("JPEG")),
    Case(2, "no-end.jpg", part(file(2), less=2), Q, CUT("JPEG")),
    Case(2, "cut.png", part(file(2, "PNG"), 0.6), Q, "^cut off: the PNG ends before its end marker$"),
    Case(2, "crc.png", damaged(file(2, "PNG"), 0.5, b"\0\1\2\3"), Q, "^damaged PNG: the checksum of its IDAT chunk"),
    Case(2, "no-iend.png", part(file(2, "PNG"), less=12), Q, "^cut off: the PNG ends before its end marker$"),
    Case(2, "cut.bmp", part(file(2, "BMP"), 0.9), Q, CUT("BMP")),
    Case(2, "cut.webp", part(file(2, "WEBP"), 0.6), Q, CUT("WEBP")),
    Case(2, "cut.gif", part(file(2, "GIF"), 0.6), Q, CUT("GIF")),
    Case(2, "cut.tif", part(file(2, "TIFF"), 0.6), Q, CUT("TIFF")),
    Case(3, "repaired.jpg", damaged(file(3), 0.95, bytes(99), insert=True), Q, r"the decoder had to repair it \(.+\)$"),
    Case(3, "repaired-cmyk.jpg", damaged(file(3, mode="CMYK"), 0.95, bytes(99), insert=True), Q, "had to repair it"),
    Case(4, "trailing.jpg", lambda: file(4)() + b"junk" * 300, U, "^1,200 bytes behind the end of the picture$"),
    Case(4, "glued.jpg", lambda: file(5)() + file(6)(), U, r"^[\d,]+ bytes behind the end of the picture$"),
    Case(4, "mpo.jpg", animation(7, "MPO", 2), U, "^$"),
    Case(5, "page.jpg", text(HTML), Q, "^an HTML page"),
    Case(5, "error.jpg", text("<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"), Q, "^an XML document"),
    Case(5, "notes.jpg", text("remember the milk\n"), Q, "^text$"),
    Case(5, "drawing.jpg", text("<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"), Q, "^an SVG drawing"),
    Case(5, "paper.jpg", text(b"%PDF-1.4\n%\xe2\xe3"), Q, "^a PDF document"),
    Case(5, "film.jpg", text(b"\0\0\0\x18ftypmp42" + bytes(40)), Q, "^a video"),
    Case(6, "pointer.jpg", text(LFS), Q, "^a git-LFS pointer.*git lfs pull"),
    *(Case(7, name, text("x"), I, "^a file that systems and people leave") for name in JUNK),
    Case(7, ".ipynb_checkpoints/a.jpg", file(8), ""),
    Case(7, "@eaDir/a.jpg", file(8), ""),
    Case(8, "png-named.jpg", file(11, "PNG"), U, "^$"),
    Case(8, "jpeg-named.png", file(12), U, "^$"),
    Case(8, "jpeg-named.txt", file(13), U, "^$"),
    Case(8, "no-extension", file(14), U, "^$"),
    Case(8, "shout.JPEG", file(15), U, "^$"),
    Case(8, "x.jfif", file(16), U, "^$"),
    Case(8, "bmp-named.jpg", file(17, "BMP"), U, "^$"),
    Case(9, "gray.jpg", file(20, mode="L"), C, "^grayscale JPEG to RGB$"),
    Case(9, "progressive.jpg", file(21, progressive=True), C, "^progressive JPEG$"),
    Case(9, "cmyk.jpg", file(22, mode="CMYK"), C, "^CMYK JPEG to RGB$"),
    Case(9, "one-bit.png", file(23, "PNG", "1"), C, "^black and white PNG to RGB$"),
    Case(9, "la.png", file(24, "PNG", "LA"), C, "^transparency laid over white$"),
    Case(9, "rgba.png", file(25, "PNG", "RGBA"), C, "^transparency laid over white$"),
    Case(9, "p.png", file(26, "PNG", "P", transparency=0), C, "^transparency laid over white; palette PNG to RGB$"),
    Case(9, "gray16.png", lambda: png(64, 48, 16, 0), C, "^16 bit scaled to 8$"),
    Case(9, "rgb16.png", lambda: png(64, 48, 16, 2), C, "^16 bit scaled to 8$"),
    Case(9, "32-bit.bmp", file(27, "BMP", "RGBA"), C, "^32-bit BMP to RGB$"),
    Case(9, "palette.bmp", file(28, "BMP", "P"), C, "^palette BMP to RGB$"),
    Case(9, "still.webp", file(29, "WEBP"), C, "^WEBP to RGB$"),
    Case(9, "still.tif", file(30, "TIFF"), C, "^TIFF to RGB$"),
    *(Case(10, f"{k}.jpg", turned(30 + k, k), U, rf"^turned upright \(EXIF orientation {k}\)$") for k in TURNS),
    Case(10, "6.tif", turned(39, 6, "TIFF"), C, r"^TIFF to RGB; turned upright \(EXIF orientation 6\)$"),
    Case(
        10, "ifd.jpg", file(40, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(8)), U, "^malformed EXIF: taken as stored$"
    ),
    Case(10, "junk.jpg", file(41, exif=b"Exif\0\0no EXIF at all"), U, "^malformed EXIF: taken as stored$"),
    Case(11, "x.gif", animation(42, "GIF", mode="P"), C, "^first of 3 frames; .*palette GIF to RGB$"),
    Case(11, "x.webp", animation(45, "WEBP"), C, "^first of 3 frames; WEBP to RGB$"),
    Case(11, "x.png", animation(48, "PNG"), C, "^first of 3 frames$"),
    Case(11, "x.tif", animation(51, "TIFF"), C, "^first of 3 frames; TIFF to RGB$"),
    Case(11, "canvas.png", apng_with_a_small_first_frame, Q, r"^the canvas of 40x40 .*20x20 at \(4, 4\)$"),
    Case(11, "canvas.gif", damaged(file(54, "GIF"), 0, b"GIF89a\x50\0"), Q, "^the canvas of 80x60 .* frame of 72x60"),
    Case(11, "canvas.webp", webp_with_another_canvas, Q, "^the canvas of 112x60 .* frame of 72x60"),
    Case(11, "many.gif", gif_of_many_frames, Q, "^1,001 frames, more than 1,000$"),
    Case(12, "x.avif", file(61, "AVIF") if features.check("avif") else text(b"\0\0\0\x1cftypavif" + bytes(99)), *AVIF),
    Case(12, "x.jp2", file(62, "JPEG2000") if features.check("jpg_2000") else text(b"\0\0\0\x0cjP  "), *J2K),
    Case(12, "x.ico", lambda: encoded(photo(63, (64, 64)), "ICO"), C, "ICO to RGB$"),
    Case(12, "x.ppm", file(64, "PPM"), C, "^PPM to RGB$"),
    Case(12, "x.heic", text(b"\0\0\0\x18ftypheic" + bytes(99)), Q, HEIC),
    Case(12, "x.jxl", text(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)), Q, "^a JPEG XL picture, which " + CONVERT),
    Case(12, "x.dcm", text(bytes(128) + b"DICM" + bytes(99)), Q, DICOM),
    Case(12, "no-extension-dicom", text(bytes(128) + b"DICM" + bytes(99)), Q, DICOM),
    Case(12, "no-preamble.DCM", text(b"\x08\0\5\0CS\n\0ISO_IR 100" + NOISE), Q, DICOM),
    Case(12, "jpeg-named.dcm", file(65), U, "^$"),
    Case(13, "bomb.png", bomb, Q, r"^claims 20000x20000 pixels, more than intake.max_pixels \(50,000,000\)$"),
    Case(
        13, "bomb.gif", text(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + bytes(99)), Q, "^claims 65535"
    ),
    Case(13, "bomb.bmp", lambda: bmp_header(30000, 30000), Q, "^claims 30000x30000"),
    Case(13, "bomb.webp", lambda: webp_header(16000, 16000), Q, "^claims 16000x16000"),
    Case(13, "bomb.jpg", jpeg_of_size(60000, 60000), Q, "^claims 60000x60000"),
    Case(
        13,
        "bomb.tif",
        lambda: encoded(Image.new("1", (20000, 20000)), "TIFF", compression="group4"),
        Q,
        "^claims 20000x20000",
    ),
    Case(13, "bomb.ico", icon_around(bomb), Q, "^a picture inside it claims more than intake.max_pixels$"),
    Case(13, "just-inside.jpg", jpeg_of_size(60000, 3300), Q, "^claims 60000x3300"),
    Case(13, "short.jpg", jpeg_of_size(7000, 7000), Q, CUT("JPEG")),
    Case(14, "1x1.png", lambda: encoded(Image.new("RGB", (1, 1)), "PNG"), Q, "^1x1 pixels: a side is shorter"),
    Case(14, "3000x60.png", lambda: encoded(Image.new("RGB", (3000, 60)), "PNG"), Q, "^3000x60 pixels: longer than"),
    Case(
        14, "200000x1.png", lambda: encoded(Image.new("RGB", (200000, 1)), "PNG"), Q, "^200000x1 pixels: a side is shorter"
    ),
    Case(15, "constant.jpg", lambda: encoded(Image.new("RGB", SIDE, (90, 90, 90)), "JPEG"), U, "^$"),
    Case(16, "dangling.jpg", link_to("nowhere.jpg"), Q, "^a link that points to nothing$", puts=True),
    Case(16, "leaving.jpg", link_to("/etc/hostname"), Q, "^a link that leaves the source folder$", puts=True),
    Case(16, "pipe.jpg", os.mkfifo, I, "^not a regular file$", puts=True),
    Case(16, "socket.jpg", socket_at, I, "^not a regular file$", puts=True),
    Case(16, "folder.jpg", folder_of("in-it.jpg", 66), I, "^a folder named like a photo$", puts=True),
    Case(17, "loop", link_to("."), "", puts=True),
    Case(17, "own-tail.jpg", link_to("own-tail.jpg"), Q, "^a link that points to nothing$", puts=True),
    *(Case(18, name, file(100 + k), U, "^$") for k, name in enumerate(NAMES)),
    Case(18, b"not-utf-8-\xff\xfe.jpg", file(99), U, "^$"),
    Case(19, "../stray.jpg", file(98), I, "^outside every class folder$"),
    Case(20, "deep/er/still/nested.jpg", file(97), U, "^$"),
    Case(24, "copy.jpg", file(96), U, "^$"),
    Case(24, "copy-again.jpg", file(96), U, "^$"),
    Case(25, "conflict.jpg", file(95), Q, "^label conflict: the same bytes as checks/conflict.jpg$"),
    Case(25, "../checks/conflict.jpg", file(95), Q, "^label conflict: the same bytes as stripes/conflict.jpg$"),
)
