"""Class folders of drawn pictures for `demo`, made from a seed without a network. They contain faults for the report.

Every class is a scalar field over the picture, and the figure is where the field is highest. The area of the figure,
colours, light, noise and blur have the same distributions for all classes. So the mean and the spread of the colours say
almost nothing about the class; shape and texture do.

Each picture has its own random generator, so that it depends only on the seed, its class and its number. Arrays are made
only with operations that IEEE 754 rounds in one way (no sine, no matrix product), so that all processors agree.
"""

import colorsys
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from PIL.ExifTags import Base

Field = NDArray[np.float32]

# Out of focus, a triangle looks like a dot. So even a good model makes some mistakes, which the report can show.
_OUT_OF_FOCUS_SHARE = 0.05

_README = """# Drawn pictures

`transfer-job demo` drew these pictures. Files without a number are unusual on purpose. Their names say why.
"""
_HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>No such photo.</body></html>\n"


def draw(folder: Path, *, seed: int, photos_per_class: int = 80, side_px: int = 128) -> None:
    """Fill `folder` with a class folder for each of `CLASSES`. The same arguments and library versions give the same bytes.

    The sides of a picture are 0.88 to 1.3 times `side_px`. Planted files come in addition to `photos_per_class`; the job
    must quarantine exactly five of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for class_name in CLASSES:
        (folder / class_name).mkdir(exist_ok=True)
        for number in range(photos_per_class):
            picture, rng = _picture(class_name, number, seed, side_px)
            is_png, quality = rng.random() < 0.1, int(rng.integers(55, 96))
            file = folder / class_name / f"{class_name}-{number:03}.{'png' if is_png else 'jpg'}"
            file.write_bytes(_encoded(picture, "PNG" if is_png else "JPEG", quality=quality))
    for path, payload in _planted(seed, side_px).items():
        (folder / path).write_bytes(payload)


def _planted(seed: int, side_px: int) -> dict[str, bytes]:
    """Return files that are broken, unusual or copied, by path. Their pictures differ from the numbered ones."""

    def drawn(class_name: str, number: int) -> Image.Image:
        return _picture(class_name, 1_000_000 + number, seed, side_px)[0]

    dots, rings, stars = (_encoded(drawn(name, 0)) for name in ("dots", "rings", "stars"))
    near = drawn("waves", 0)
    smaller = near.resize((near.width * 3 // 4, near.height * 3 // 4), Image.Resampling.LANCZOS)
    faded = drawn("stars", 1)
    faded.putalpha(Image.linear_gradient("L").resize(faded.size))
    return {
        # Quarantined: a truncated download, an empty file, and an error page instead of a photo.
        "dots/cut off half-way.jpg": dots[: len(dots) // 2],
        "grids/0 bytes.jpg": b"",
        "rings/html page.jpg": _HTML,
        # Both are quarantined: the same bytes under two labels, so one of the labels must be wrong.
        "stars/also among triangles.jpg": stars,
        "triangles/also among stars.jpg": stars,
        # Used: the content decides about the format, not the name.
        "waves/a png really.jpg": _encoded(drawn("waves", 1), "PNG"),
        # Used after conversion to RGB.
        "stripes/grayscale.jpg": _encoded(drawn("stripes", 0).convert("L")),
        "stars/transparent.png": _encoded(faded, "PNG"),
        # Used after rotation: cameras store upright photos on their side and say so in the EXIF data.
        "triangles/lying on its side.jpg": _lying(drawn("triangles", 0)),
        # A group of exact copies and a group of near copies. All photos of a group must go into one split.
        "rings/copied.jpg": rings,
        "rings/copied (1).jpg": rings,
        "waves/original.jpg": _encoded(near, quality=92),
        "waves/original, smaller.jpg": _encoded(smaller, quality=50),
        # Used, and listed as suspicious: it has only one colour.
        "dots/constant.jpg": _encoded(Image.new("RGB", (side_px, side_px), "steelblue")),
        # Used: its name has spaces and an umlaut.
        "grids/schönes altes Gitter.jpg": _encoded(drawn("grids", 0)),
        # Ignored: files that systems and people leave beside photos.
        "stripes/.DS_Store": b"\x00\x00\x00\x01Bud1" + bytes(4088),
        "README.md": _README.encode(),
    }


@dataclass(frozen=True)
class _Lattice:
    """Coordinates in units of cells: the integer part is the cell of a pixel, the rest its place in that cell."""

    u_HW: Field
    v_HW: Field
    rng: np.random.Generator

    def in_cells(self) -> tuple[Field, Field]:
        """Return coordinates relative to the middle of each cell's figure. Figures differ in place, angle and size."""
        rows_HW = np.floor(self.v_HW)
        u_HW = self.u_HW + rows_HW * np.float32(self.rng.uniform())
        columns_HW = np.floor(u_HW)
        # 16 x 16 variations are enough: no picture shows more cells in a row.
        cell_HW = (rows_HW.astype(np.intp) % 16) * 16 + columns_HW.astype(np.intp) % 16
        x_HW = u_HW - columns_HW - self._varied(0.42, 0.58)[cell_HW]
        y_HW = self.v_HW - rows_HW - self._varied(0.42, 0.58)[cell_HW]
        size, sine = self._varied(0.9, 1.1), self._varied(-0.3, 0.3)
        cosine_HW, sine_HW = (np.sqrt(1 - sine * sine) / size)[cell_HW], (sine / size)[cell_HW]
        return x_HW * cosine_HW - y_HW * sine_HW, x_HW * sine_HW + y_HW * cosine_HW

    def _varied(self, low: float, high: float) -> Field:
        return self.rng.uniform(low, high, 256).astype(np.float32)


def _dots(lattice: _Lattice) -> Field:
    x_HW, y_HW = lattice.in_cells()
    return -(x_HW * x_HW + y_HW * y_HW)


def _grids(lattice: _Lattice) -> Field:
    return np.maximum(_ridges(lattice.u_HW), _ridges(lattice.v_HW))


def _rings(lattice: _Lattice) -> Field:
    x_HW, y_HW = lattice.in_cells()
    return -np.abs(np.sqrt(x_HW * x_HW + y_HW * y_HW) - np.float32(0.34))


def _stars(lattice: _Lattice) -> Field:
    """Return pentagrams. A point is in one if it is beyond at most one of five lines, so the second distance decides."""
    _, second = _two_largest_distances(5, *lattice.in_cells())
    return -second


def _stripes(lattice: _Lattice) -> Field:
    return _ridges(lattice.v_HW)


def _triangles(lattice: _Lattice) -> Field:
    """Return filled triangles, or sometimes outlines, which look much like rings."""
    largest, _ = _two_largest_distances(3, *lattice.in_cells())
    return -np.abs(largest - np.float32(0.2)) if lattice.rng.random() < 0.2 else -largest


def _waves(lattice: _Lattice) -> Field:
    depth, length = lattice.rng.uniform(0.1, 0.5), lattice.rng.uniform(1.2, 2.6)
    slope_HW = _ridges(lattice.u_HW / np.float32(length))
    return _ridges(lattice.v_HW + np.float32(depth) * slope_HW * slope_HW * (3 - 2 * slope_HW))


@dataclass(frozen=True)
class _Class:
    """A class: its figure, its least and most cells along the shorter side, and its angle, plus or minus 9 degrees."""

    field: Callable[[_Lattice], Field]
    num_cells: tuple[float, float]
    angle_deg: float = 0.0


# As with real things, sizes and angles differ between the classes, and overlap. Even an untrained network can use them.
CLASSES = {
    "dots": _Class(_dots, (8, 11)),
    "grids": _Class(_grids, (4.5, 7), 45),
    "rings": _Class(_rings, (2.5, 3.8)),
    "stars": _Class(_stars, (1.8, 2.8)),
    "stripes": _Class(_stripes, (3.2, 5), 90),
    "triangles": _Class(_triangles, (4.2, 6.5)),
    "waves": _Class(_waves, (5.5, 8.5)),
}


def _ridges(x: Field) -> Field:
    """Return a triangle wave: 1 at whole numbers, 0 half-way between them."""
    return np.asarray(np.abs(x - np.floor(x) - np.float32(0.5)) * 2, np.float32)


def _two_largest_distances(num_sides: int, x_HW: Field, y_HW: Field) -> tuple[Field, Field]:
    """Return the largest and the second largest signed distance to the sides of a regular polygon about the origin."""
    largest_HW = second_HW = np.full_like(x_HW, -np.inf)
    for k in range(num_sides):
        angle = 2 * math.pi * k / num_sides - math.pi / 2
        distance_HW = x_HW * np.float32(math.cos(angle)) - y_HW * np.float32(math.sin(angle))
        second_HW = np.maximum(second_HW, np.minimum(largest_HW, distance_HW))
        largest_HW = np.maximum(largest_HW, distance_HW)
    return largest_HW, second_HW


def _picture(class_name: str, number: int, seed: int, side_px: int) -> tuple[Image.Image, np.random.Generator]:
    """Return the picture, and its random generator for further choices about the file."""
    rng = np.random.default_rng([seed, list(CLASSES).index(class_name), number])
    width_px = side_px * rng.uniform(0.98, 1.18)
    width, height = int(width_px), int(width_px * rng.uniform(0.9, 1.1))
    figure_HW1 = np.asarray(_figure(CLASSES[class_name], width, height, rng), np.float32)[..., None] / 255
    paper_HWC = _clouded((width, height), rng, saturation=(0.05, 0.3), value=(0.88, 1))
    ink_HWC = _clouded((width, height), rng, saturation=(0.5, 0.9), value=(0.2, 0.42))
    pixels_HWC = paper_HWC + (ink_HWC - paper_HWC) * figure_HW1
    pixels_HWC *= 1 + np.float32(0.1) * _smooth((width, height), rng)
    pixels_HWC += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(1, 10))
    picture = Image.fromarray(np.clip(np.rint(pixels_HWC), 0, 255).astype(np.uint8))
    blur_px = side_px * (rng.uniform(0.02, 0.04) if rng.random() < _OUT_OF_FOCUS_SHARE else rng.uniform(0, 0.006))
    return picture.filter(ImageFilter.GaussianBlur(blur_px)), rng


def _figure(kind: _Class, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Return the figure in white on black. It is drawn at twice the size, so that its edges become smooth."""
    columns, rows = width * 2, height * 2
    bend_px = np.float32(min(columns, rows) / 30)
    x_HW = np.arange(columns, dtype=np.float32)[None, :] + bend_px * _smooth((columns, rows), rng)[..., 0]
    y_HW = np.arange(rows, dtype=np.float32)[:, None] + bend_px * _smooth((columns, rows), rng)[..., 0]
    cell_px = min(columns, rows) / rng.uniform(*kind.num_cells)
    angle = math.radians(kind.angle_deg + rng.uniform(-9, 9))
    cosine, sine = np.float32(math.cos(angle) / cell_px), np.float32(math.sin(angle) / cell_px)
    start_u, start_v = rng.uniform(0, 16, 2).astype(np.float32)
    field_HW = kind.field(_Lattice(x_HW * cosine - y_HW * sine + start_u, x_HW * sine + y_HW * cosine + start_v, rng))
    threshold = np.quantile(field_HW, 1 - rng.uniform(0.24, 0.34))
    return Image.fromarray((field_HW > threshold).astype(np.uint8) * 255).reduce(2)


def _clouded(
    size: tuple[int, int], rng: np.random.Generator, *, saturation: tuple[float, float], value: tuple[float, float]
) -> Field:
    """Return a random colour that changes slowly over the picture. Shape (height, width, 3), in levels of 255."""
    rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value))
    return np.asarray(rgb, np.float32) * 255 + rng.uniform(-14, 14, 3).astype(np.float32) * _smooth(size, rng)


def _smooth(size: tuple[int, int], rng: np.random.Generator) -> Field:
    """Return values from about -1 to 1 that change slowly, like light on a wall. Shape (height, width, 1)."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (3, 3)).astype(np.float32))
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)[..., None]


def _lying(picture: Image.Image) -> bytes:
    """Return a JPEG that is stored turned to the left, with the EXIF orientation (6) that turns it back."""
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    return _encoded(picture.transpose(Image.Transpose.ROTATE_90), exif=exif.tobytes())


def _encoded(picture: Image.Image, kind: Literal["JPEG", "PNG"] = "JPEG", *, quality: int = 85, exif: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=quality, exif=exif)
    return buffer.getvalue()
