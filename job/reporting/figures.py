"""SVG charts that are readable on light and dark pages, and contact sheets of photos."""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from job.runtime.telemetry import spent_once

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# These colours are readable on white and on near-black. Ink and grid change with the colour scheme of the page.
SERIES = ("#3b7dd8", "#d9822b", "#2a9d73", "#c8507a", "#8a6fd1", "#7d8590")
INK, _GRID = "#24292f", "#d0d7de"
_DARK_INK, _DARK_GRID = "#e6edf3", "#3d444d"
_FONT_PT = 10


def new_figure(width_in: float, height_in: float) -> tuple["Figure", "Axes"]:
    """Make a figure with one plot in the style of the report.

    All text has the same size. Pages show figures at their natural size, so that text has one size in all of them.
    """
    with spent_once("imports"):
        import matplotlib
        from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "transfer-job",
            "font.family": "sans-serif",
            **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize"), _FONT_PT),
            **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), _FONT_PT),
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": _GRID,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": _GRID,
            "grid.linewidth": 0.6,
        }
    )
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    ax = figure.add_subplot()
    ax.grid(True)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def save_svg(figure: "Figure", path: Path) -> None:
    """Write the figure as SVG with a transparent background. The same figure always gives the same bytes."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    swap = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in ((INK, _DARK_INK), (_GRID, _DARK_GRID))
        for kind in ("fill", "stroke")
    )
    rules = f"<style>@media (prefers-color-scheme: dark){{{swap}}}</style>"
    path.write_text(re.sub(r"(<svg[^>]*>)", lambda m: m[1] + rules, svg, count=1), encoding="utf-8")


def contact_sheet(photos: np.ndarray, columns: int, side_px: int, gap_px: int = 4) -> Image.Image:
    """Arrange square photos (uint8, NHWC) in rows of `columns`, each `side_px` wide, on a gray background."""
    rows = -(-len(photos) // columns)
    step = side_px + gap_px
    sheet = Image.new("RGB", (min(columns, len(photos)) * step - gap_px, rows * step - gap_px), (128, 128, 128))
    for k, photo in enumerate(photos):
        tile = Image.fromarray(photo).resize((side_px, side_px), Image.Resampling.LANCZOS)
        sheet.paste(tile, ((k % columns) * step, (k // columns) * step))
    return sheet
