"""Copies of photos in which something is hidden or moved, and what the answers to them say about a classifier.

Axes: N photos, S pixels of a side, G cells of a side, D channels, K kinds of copies, C classes.
"""

import math
from typing import Literal, TypedDict

import numpy as np
from PIL import Image, ImageFilter
from scipy.special import stdtrit

Copy = Literal["without_marked", "without_random", "inner", "outer", "shuffled"]
COPIES: tuple[Copy, ...] = ("without_marked", "without_random", "without_random", "inner", "outer", "shuffled")
FEWEST = 5  # Photos for an interval.
_MARKED_SHARE = 0.2
_BLUR = 0.1  # Radius, as a share of the side. Blurred cells confuse a model less than grey ones, which it has never seen.
_INNER_SIDE = 0.55  # Of the side of the photo, so that the middle has 30% of its area (docs/decisions/0049-heatmaps.md).
_GREY = 128  # Hides colours, too.
_PATCHES = 4  # Of a side.


class Deletion(TypedDict):
    """The deletion test of heatmaps: how much the probability of the answer falls if a fifth of the photo is blurred.

    `drop_marked`: the cells with the highest values; `drop_random`: random ones, drawn twice. Both are means of the photos.
    `difference_ci95` is the 95% interval of their difference. `verdict` says whether it lies above 0.
    """

    num_photos: int
    drop_marked: float
    drop_random: float
    difference_ci95: list[float]
    verdict: Literal["passed", "unclear", "failed"]


class Background(TypedDict):
    """Shares of photos that keep their right answer in copies of which a part is left, or whose patches are shuffled.

    `inner`: all but the middle is grey; `outer`: the middle, 30% of the area, is grey; `shuffled`: 16 patches change places.
    `difference_ci95` is the 95% interval of outer minus inner. `decides`: it lies above 0, so the surroundings say more
    about the class than the middle of the photo does.
    """

    num_photos: int
    inner: float
    outer: float
    shuffled: float
    difference_ci95: list[float]
    decides: bool


def copy_of(photo_SSD: np.ndarray, heatmap_GG: np.ndarray, kind: Copy, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of a photo, uint8 (S, S, D), in which something is hidden or moved."""
    side = len(photo_SSD)
    if kind == "shuffled":
        return _shuffled(photo_SSD, rng)
    if kind in ("inner", "outer"):
        is_inner_S = np.abs(np.arange(side) - (side - 1) / 2) < _INNER_SIDE * side / 2
        is_inner_SS = is_inner_S[:, None] & is_inner_S
        return np.where((is_inner_SS == (kind == "inner"))[..., None], photo_SSD, np.uint8(_GREY))
    values_GG = heatmap_GG if kind == "without_marked" else rng.random(heatmap_GG.shape)
    cell_S = np.arange(side) * len(values_GG) // side
    blurred_SSD = np.asarray(Image.fromarray(photo_SSD).filter(ImageFilter.GaussianBlur(_BLUR * side)))
    return np.where(marked(values_GG)[cell_S][:, cell_S, None], blurred_SSD, photo_SSD)


def marked(heatmap_GG: np.ndarray) -> np.ndarray:
    """Return the fifth of the cells that has the highest values, boolean (G, G)."""
    is_marked = np.zeros(heatmap_GG.size, bool)
    count = max(1, round(_MARKED_SHARE * heatmap_GG.size))
    is_marked[np.argsort(-heatmap_GG, axis=None, kind="stable")[:count]] = True
    return is_marked.reshape(heatmap_GG.shape)


def verdicts(before_NC: np.ndarray, after_NKC: np.ndarray) -> tuple[Deletion, Background]:
    """Return what the probabilities of at least `FEWEST` photos, and of their copies in the order of `COPIES`, say.

    The deletion test is that of RISE (Petsiuk et al., 2018) with a single step, compared with random cells.
    """
    answer_N, kinds = before_NC.argmax(axis=1), np.asarray(COPIES)
    of_answer_NK = np.take_along_axis(after_NKC, answer_N[:, None, None], axis=2)[..., 0]
    drop_NK = before_NC.max(axis=1)[:, None] - of_answer_NK
    of_marked_N, of_random_N = (drop_NK[:, kinds == kind].mean(axis=1) for kind in ("without_marked", "without_random"))
    is_kept_NK = after_NKC.argmax(axis=2) == answer_N[:, None]
    inner_N, outer_N, shuffled_N = (is_kept_NK[:, COPIES.index(kind)] * 1.0 for kind in ("inner", "outer", "shuffled"))
    low, high = _interval(of_marked_N - of_random_N)
    deletion: Deletion = {
        "num_photos": len(before_NC),
        "drop_marked": float(of_marked_N.mean()),
        "drop_random": float(of_random_N.mean()),
        "difference_ci95": [low, high],
        "verdict": "passed" if low > 0 else "unclear" if low + high > 0 else "failed",
    }
    of_surroundings = _interval(outer_N - inner_N)
    background: Background = {
        "num_photos": len(before_NC),
        "inner": float(inner_N.mean()),
        "outer": float(outer_N.mean()),
        "shuffled": float(shuffled_N.mean()),
        "difference_ci95": of_surroundings,
        "decides": of_surroundings[0] > 0,
    }
    return deletion, background


def _shuffled(photo_SSD: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of a photo whose 4 x 4 patches are in random order. A rest at the right and below stays as it is."""
    side, copy_SSD = len(photo_SSD) // _PATCHES, photo_SSD.copy()
    for place, patch in enumerate(rng.permutation(_PATCHES**2)):
        (to_y, to_x), (y, x) = ((side * (int(k) // _PATCHES), side * (int(k) % _PATCHES)) for k in (place, patch))
        copy_SSD[to_y : to_y + side, to_x : to_x + side] = photo_SSD[y : y + side, x : x + side]
    return copy_SSD


def _interval(values_N: np.ndarray) -> list[float]:
    """Return the 95% interval of a mean by Student's t."""
    half = stdtrit(len(values_N) - 1, 0.975) * values_N.std(ddof=1) / math.sqrt(len(values_N))
    return [float(values_N.mean() - half), float(values_N.mean() + half)]
