"""SVG charts that are readable on light and dark pages."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

# These colours are readable on white and on near-black. Ink and grid change with the colour scheme of the page.
SERIES = ("#3b7dd8", "#d9822b", "#2a9d73", "#c8507a", "#8a6fd1", "#7d8590")
_INK, _GRID = "#24292f", "#d0d7de"
_DARK_INK, _DARK_GRID = "#e6edf3", "#3d444d"
_STYLE = (
    f"text{{font:13px sans-serif;fill:{_INK}}}.grid{{stroke:{_GRID};stroke-width:.8}}.ink{{stroke:{_INK};fill:none}}"
    f"@media(prefers-color-scheme:dark){{text{{fill:{_DARK_INK}}}.grid{{stroke:{_DARK_GRID}}}.ink{{stroke:{_DARK_INK}}}}}"
)
_LINE_PX, _CHARACTER_PX = 18, 7.5
_MARGIN = 0.05  # Empty share of an axis on each side of the values.
_MOST_OVERLAID = 8  # So many transparent dots on one place look opaque.

Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Axis:
    """The scale of an axis, which may run downwards, and the text of its ticks."""

    low: float
    high: float
    ticks: Mapping[float, str]
    is_log: bool = False

    @classmethod
    def linear(cls, values: Numbers, limits: tuple[float, float] | None = None, *, whole: bool = False) -> Self:
        """Return an axis that shows all values, or what is between the limits. It has at most seven round ticks.

        With `whole`, ticks are whole numbers.
        """
        low, high = limits or _widened(values)
        least = max((high - low) / 6, float(whole))
        unit = 10.0 ** math.floor(math.log10(least))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= least)
        places = max(0, -math.floor(math.log10(step)))
        ticks = (step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1))
        return cls(low, high, {tick: f"{tick:.{places}f}" for tick in ticks})

    @classmethod
    def logarithmic(cls, values: Numbers, ticks: Mapping[float, str] | None = None) -> Self:
        """Return an axis for positive values. Without `ticks`, these are powers of ten, or also 2 and 5 times those."""
        start, end = _widened(np.log10(values))
        low, high = 10.0**start, 10.0**end
        factors = (1,) if end - start > 2 else (1, 2, 5)
        rounded = (factor * 10.0**power for power in range(math.floor(start), math.ceil(end)) for factor in factors)
        return cls(low, high, ticks or {tick: f"{tick:g}" for tick in rounded if low <= tick <= high}, is_log=True)

    def share(self, values: Numbers) -> np.ndarray:
        """Return where values are on the axis: 0 at its begin, 1 at its end."""
        scaled = np.asarray([self.low, self.high, *values], float)
        low, high, *others = np.log(scaled) if self.is_log else scaled
        return (np.asarray(others) - low) / (high - low)


def _widened(values: Numbers) -> tuple[float, float]:
    low, high = (float(np.min(values)), float(np.max(values))) if len(values) else (0.0, 1.0)
    margin = _MARGIN * (high - low or abs(high) or 1)
    return low - margin, high + margin


class Chart:
    """A chart with one plot. `labels` are those of the two axes, `legend` has the colour of each series by its name.

    Pages show charts at their natural size, so that text has one size in all of them.
    """

    def __init__(
        self,
        size_px: tuple[int, int],
        x: Axis,
        y: Axis,
        title: str = "",
        labels: tuple[str, str] = ("", ""),
        legend: Mapping[str, str] | None = None,
    ) -> None:
        self._size_px, self._x, self._y = size_px, x, y
        x_widths, y_widths = ([_CHARACTER_PX * len(tick) for tick in axis.ticks.values()] for axis in (x, y))
        self._top = 6 + _LINE_PX * (bool(title) + bool(legend))
        self._bottom = size_px[1] - 6 - _LINE_PX * (bool(x.ticks) + bool(labels[0]))
        self._left = 8 + _LINE_PX * bool(labels[1]) + max(y_widths, default=0)
        self._right = size_px[0] - 4 - max(x_widths, default=0) / 2
        self._parts: list[str] = []
        self._draw_axes(title, labels)
        self._draw_legend(legend or {})

    def line(self, xs: Numbers, ys: Numbers, colour: str, *, is_dashed: bool = False) -> None:
        """Draw a line through points."""
        points = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(self._across(xs), self._down(ys), strict=True))
        dashes = ' stroke-dasharray="4 3"' if is_dashed else ""
        self._parts.append(f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>')

    def dots(
        self, xs: Numbers, ys: Numbers, colour: str, radius_px: float | Numbers = 3, *, are_rings: bool = False
    ) -> None:
        """Draw dots, or rings."""
        painted = f'fill="none" stroke="{colour}" stroke-width="1.5"' if are_rings else f'fill="{colour}"'
        places = zip(self._across(xs), self._down(ys), np.broadcast_to(radius_px, len(xs)), strict=True)
        circles = (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>' for x, y, radius in places)
        self._parts.append(f"<g {painted}>{''.join(circles)}</g>")

    def cloud(self, xs: np.ndarray, ys: np.ndarray, colour: str) -> None:
        """Draw many transparent dots: one for each pixel that has any, less transparent the more points are there."""
        pixels = np.stack([self._across(xs), self._down(ys)], axis=1).round().astype(int)
        spots, counts = np.unique(pixels, axis=0, return_counts=True)
        for count in np.unique(counts := np.minimum(counts, _MOST_OVERLAID)):
            path = "".join(f"M{x} {y}h0" for x, y in spots[counts == count])
            drawn = f'stroke-width="4.5" stroke-linecap="round" stroke-opacity="{1 - 0.75**count:.2f}"'
            self._parts.append(f'<path d="{path}" stroke="{colour}" {drawn}/>')

    def intervals(self, xs: Numbers, lows: Numbers, highs: Numbers, colour: str) -> None:
        """Draw a vertical line at each x."""
        ends = zip(self._across(xs), self._down(lows), self._down(highs), strict=True)
        path = "".join(f"M{x:.1f} {low:.1f}V{high:.1f}" for x, low, high in ends)
        self._parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="1.2"/>')

    def bars(self, edges: np.ndarray, heights: np.ndarray, colour: str) -> None:
        """Draw a histogram. There is one edge more than bars."""
        sides, foot = self._across(edges), f"V{self._bottom}"
        bars = zip(sides[:-1], sides[1:] - 0.5, self._down(heights), strict=True)
        path = "".join(f"M{left:.1f} {self._bottom}V{top:.1f}H{right:.1f}{foot}" for left, right, top in bars)
        self._parts.append(f'<path d="{path}" fill="{colour}"/>')

    def image(self, colours_HW4: np.ndarray) -> None:
        """Fill the plot with uint8 pixels: red, green, blue, opacity. However large a pixel is, its edges are sharp."""
        buffer = io.BytesIO()
        Image.fromarray(colours_HW4).save(buffer, "PNG")
        place = f'x="{self._left}" y="{self._top}" width="{self._right - self._left}" height="{self._bottom - self._top}"'
        content = f'href="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"'
        self._parts.append(f'<image {place} preserveAspectRatio="none" style="image-rendering:pixelated" {content}/>')

    def frame(self, start: float, end: float) -> None:
        """Draw a square on the diagonal of the plot."""
        (left, right), (top, bottom) = self._across([start, end]), self._down([start, end])
        self._parts.append(f'<path class="ink" d="M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"/>')

    def note(self, x: float, y: float, text: str, shift_px: tuple[float, float], anchor: str = "start") -> None:
        """Write a text beside a point. `anchor` is the end of the text that is at the point: start or end."""
        self._text(self._across([x])[0] + shift_px[0], self._down([y])[0] + shift_px[1], text, anchor)

    def svg(self) -> str:
        """Return the chart. It has no background."""
        width, height = self._size_px
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        return f"{head}<style>{_STYLE}</style>{''.join(self._parts)}</svg>\n"

    def save(self, path: Path) -> None:
        """Write the chart. The same chart always gives the same bytes."""
        path.write_text(self.svg(), encoding="utf-8")

    def _draw_axes(self, title: str, labels: tuple[str, str]) -> None:
        lines = [f"M{self._left} {self._top}V{self._bottom}H{self._right}"]
        for x, text in zip(self._across([*self._x.ticks]), self._x.ticks.values(), strict=True):
            lines.append(f"M{x:.1f} {self._top}V{self._bottom}")
            self._text(x, self._bottom + 16, text, "middle")
        for y, text in zip(self._down([*self._y.ticks]), self._y.ticks.values(), strict=True):
            lines.append(f"M{self._left} {y:.1f}H{self._right}")
            self._text(self._left - 5, y + 4.5, text, "end")
        self._parts.append(f'<path class="grid" fill="none" d="{"".join(lines)}"/>')
        middle = (self._left + self._right) / 2
        self._text(middle, 15, title, "middle")
        self._text(middle, self._size_px[1] - 6, labels[0], "middle")
        self._text(14, (self._top + self._bottom) / 2, labels[1], "middle", is_upward=True)

    def _draw_legend(self, legend: Mapping[str, str]) -> None:
        start = 4.0
        for name, colour in legend.items():
            self._parts.append(f'<path d="M{start:.1f} {self._top - 10}h14" stroke="{colour}" stroke-width="2"/>')
            self._text(start + 18, self._top - 6, name)
            start += 20 + _CHARACTER_PX * len(name)

    def _across(self, xs: Numbers) -> np.ndarray:
        """Return the distance of points from the left edge of the chart, in pixels."""
        return self._left + self._x.share(xs) * (self._right - self._left)

    def _down(self, ys: Numbers) -> np.ndarray:
        """Return the distance of points from the upper edge of the chart, in pixels."""
        return self._bottom - self._y.share(ys) * (self._bottom - self._top)

    def _text(self, x: float, y: float, text: str, anchor: str = "start", *, is_upward: bool = False) -> None:
        turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if is_upward else ""
        if text:
            self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{escape(text)}</text>')
