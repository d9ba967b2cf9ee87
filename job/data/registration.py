"""Detection of photos that show the same scene, even if one is cropped, mirrored, framed, slightly turned or recoloured.

The core (the middle) of one photo is searched in the other photo, mirrored or not and at several scales, by normalised
cross-correlation. The best match is refined to an affine map that maximises the correlation (Evangelidis and Psarakis,
"Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization", 2008). Then both are compared twice: as
they are, and in their fine detail. Photos that are only similar agree in their light, but not in their detail.

All of this is done on tiny pictures first, which rules out most pairs. The fit goes on from there on larger ones.
docs/decisions/0006-duplicates-in-feature-space.md and 0027-large-sets.md have the measurements behind the thresholds.

P pairs of photos, H height and W width of pictures, A pixels of a core.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from job.stores.arrays import ArrayStore

MIN_CORRELATION, MIN_DETAIL = 0.95, 0.9
_CORE = 0.75  # Side of the core, as a share of the side of the photo.
_CORE_SCALES = (30 / 36, 33 / 36, 1.0)
_SMALL_PX, _FINE_PX = 16, 72
# A fit that moves the centre or an edge of the core by more than this share of the side finds something else.
_FARTHEST = 0.13
# What tiny pictures of copies reach: after the search, and after the fit in correlation and in detail.
_MIN_FOUND, _MIN_SMALL, _MIN_SMALL_DETAIL = 0.7, 0.85, 0.6
_SMALL_DEVIATION, _DEVIATION = 1.0, 2.0  # Detail is what a Gaussian filter of so many pixels takes away.
_PHOTOS_AT_ONCE, _PAIRS_AT_ONCE, _FITS_AT_ONCE = 256, 512, 16  # The arrays of more pairs do not fit into a core's cache.
_MAX_ITERATIONS, _MAX_DAMPING, _TOLERANCE = 12, 1e4, 1e-3


class _Matches(NamedTuple):
    """Places of the core of one photo of each pair in the other photo.

    `maps_P23` has two rows, for x and y: centre, and change to the right and to the lower edge of the core, as shares of the
    side of the photo. `swapped_P`: the core is of the second photo. `mirrored_P`: the photo around it is mirrored.
    """

    correlation_P: np.ndarray
    swapped_P: np.ndarray
    mirrored_P: np.ndarray
    maps_P23: np.ndarray

    def of(self, chosen: np.ndarray | slice) -> "_Matches":
        return _Matches(*(values[chosen] for values in self))

    def cores_and_photos(self, first_PHW: np.ndarray, second_PHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cores, and the photos that `maps_P23` lead into."""
        swapped, mirrored = self.swapped_P[:, None, None], self.mirrored_P[:, None, None]
        of, within = np.where(swapped, second_PHW, first_PHW), np.where(swapped, first_PHW, second_PHW)
        return _cores(of), np.where(mirrored, within[:, :, ::-1], within)


def same_scene(pairs_P2: np.ndarray, images: ArrayStore, between: Callable[[], None] = lambda: None) -> np.ndarray:
    """Return which pairs of rows of the image store show the same scene. Boolean, (P,). `between` is called now and then."""
    same_P = np.zeros(len(pairs_P2), bool)
    rows_U, place_P2 = np.unique(pairs_P2, return_inverse=True)
    place_P2 = place_P2.reshape(pairs_P2.shape)
    parts = [rows_U[k : k + _PHOTOS_AT_ONCE] for k in range(0, len(rows_U), _PHOTOS_AT_ONCE)]
    small_UHW = np.concatenate([_grays(images, part, _SMALL_PX) for part in parts]) if parts else np.empty(0)
    for start in range(0, len(pairs_P2), _PAIRS_AT_ONCE):
        between()
        chunk = slice(start, start + _PAIRS_AT_ONCE)
        found, likely = _likely(*(small_UHW[place_P2[chunk, side]].astype(np.float32) for side in (0, 1)))
        for k in range(0, len(likely), _FITS_AT_ONCE):
            some = slice(k, k + _FITS_AT_ONCE)
            photos = (_grays(images, pairs_P2[start + likely[some], side], _FINE_PX).astype(np.float32) for side in (0, 1))
            same_P[start + likely[some]] = _is_confirmed(found.of(some), *photos)
    return same_P


def _grays(images: ArrayStore, rows: np.ndarray, side_px: int) -> np.ndarray:
    """Return these photos in gray, uint8 (len(rows), side_px, side_px)."""
    grays = (Image.fromarray(photo).convert("L") for photo in images.rows(rows))
    return np.stack([np.asarray(gray.resize((side_px, side_px), Image.Resampling.BOX)) for gray in grays])


def _likely(first_PHW: np.ndarray, second_PHW: np.ndarray) -> tuple[_Matches, np.ndarray]:
    """Compare tiny pictures. Return the matches of pairs that may be the same scene, and the positions of these pairs."""
    found = _search(first_PHW, second_PHW)
    likely = np.flatnonzero(found.correlation_P >= _MIN_FOUND)
    found = found.of(likely)
    if not len(likely):
        return found, likely
    cores, photos = found.cores_and_photos(first_PHW[likely], second_PHW[likely])
    found = found._replace(maps_P23=_fitted(cores, photos, found.maps_P23))
    correlation_P, detail_P = _agreement(cores, photos, found.maps_P23, _SMALL_DEVIATION)
    agree = (correlation_P >= _MIN_SMALL) & (detail_P >= _MIN_SMALL_DETAIL)
    return found.of(agree), likely[agree]


def _is_confirmed(found: _Matches, first_PHW: np.ndarray, second_PHW: np.ndarray) -> np.ndarray:
    """Return which pairs agree after their match was refined. Boolean, shape (P,)."""
    smooth = (gaussian_filter(photos, (0, 0.7, 0.7)) for photos in (first_PHW, second_PHW))
    maps_P23 = _fitted(*found.cores_and_photos(*smooth), found.maps_P23)
    correlation_P, detail_P = _agreement(*found.cores_and_photos(first_PHW, second_PHW), maps_P23, _DEVIATION)
    return (correlation_P >= MIN_CORRELATION) & (detail_P >= MIN_DETAIL)


def _search(first_PHW: np.ndarray, second_PHW: np.ndarray) -> _Matches:
    """Compare the core of each photo, at each scale and mirrored or not, with all windows of its size in the other photo."""
    pairs_P = np.arange(len(first_PHW))
    nowhere = np.zeros((len(pairs_P), 2, 3))
    best = _Matches(np.full(len(pairs_P), -1.0), np.zeros(len(pairs_P), bool), np.zeros(len(pairs_P), bool), nowhere)
    for swapped, (of_PHW, within_PHW) in enumerate(((first_PHW, second_PHW), (second_PHW, first_PHW))):
        for scale in _CORE_SCALES[: -1 if swapped else None]:  # At scale 1, swapping changes nothing.
            correlations = _correlations(_cores(of_PHW), within_PHW, scale)
            place_P = correlations.reshape(len(pairs_P), -1).argmax(axis=1)
            y, x, mirrored = np.unravel_index(place_P, correlations.shape[1:])
            correlation_P = correlations[pairs_P, y, x, mirrored]
            last_place = correlations.shape[1] - 1
            half = (1 - last_place / of_PHW.shape[1]) / 2  # Of the side of the window, as a share of that of the photo.
            x = np.where(mirrored, last_place - x, x)
            maps = np.tile([[0, half, 0], [0, 0, half]], (len(pairs_P), 1, 1))
            maps[:, :, 0] = np.stack([x, y], axis=1) / of_PHW.shape[1] + half
            better = correlation_P > best.correlation_P
            for kept, new in zip(best, (correlation_P, np.full(len(pairs_P), swapped), mirrored, maps), strict=True):
                kept[better] = new[better]
    return best


def _correlations(cores_PHW: np.ndarray, within_PHW: np.ndarray, scale: float) -> np.ndarray:
    """Return the correlations of the scaled cores with the windows at all places: by pair, y, x, and mirrored or not."""
    num_pairs, core_px = cores_PHW.shape[:2]
    side_px = round(core_px * scale)
    resize = zoom(np.eye(core_px, dtype=np.float32), (side_px / core_px, 1), order=1)
    cores = resize @ cores_PHW @ resize.T
    cores_P2A = _unit(np.stack([cores, cores[:, :, ::-1]], axis=1).reshape(num_pairs, 2, side_px**2))
    windows = np.lib.stride_tricks.sliding_window_view(within_PHW, (side_px, side_px), (1, 2))
    windows_PKA = windows.reshape(num_pairs, -1, side_px**2)
    energy_PK = np.einsum("pka,pka->pk", windows_PKA, windows_PKA) - windows_PKA.sum(axis=2) ** 2 / side_px**2
    products_PK2 = windows_PKA @ cores_P2A.transpose(0, 2, 1)
    correlations_PK2 = products_PK2 / np.sqrt(np.maximum(energy_PK, side_px**2))[:, :, None]
    return correlations_PK2.reshape(*windows.shape[:3], 2)


def _fitted(cores_PHW: np.ndarray, photos_PHW: np.ndarray, start_P23: np.ndarray) -> np.ndarray:
    """Return the affine maps that maximise the correlation of the cores with the photos, searched from `start_P23`.

    The method is that of Levenberg and Marquardt, for all pairs at once. A pair is left out as soon as it gains no more.
    """
    num_pairs, photo_px = photos_PHW.shape[:2]
    basis_3A = _basis(photo_px)
    wanted_PA = _unit(cores_PHW.reshape(num_pairs, -1))
    best_P, damping_P, going = np.full(num_pairs, -1.0), np.full(num_pairs, 0.1), np.arange(num_pairs)
    best_P23, tried_P23 = start_P23.copy(), start_P23.copy()
    slope_P6, curvature_P66 = np.zeros((num_pairs, 6)), np.zeros((num_pairs, 6, 6))
    for _ in range(_MAX_ITERATIONS):
        if not len(going):
            break
        correlation, slope, curvature = _derivatives(wanted_PA[going], photos_PHW[going], tried_P23[going], basis_3A)
        is_near = np.abs(tried_P23[going] - start_P23[going]).max(axis=(1, 2)) <= _FARTHEST
        better = is_near & (correlation > best_P[going])
        is_last = better & (correlation - best_P[going] < _TOLERANCE * (1 - correlation))
        k = going[better]
        best_P[k], best_P23[k] = correlation[better], tried_P23[k]
        slope_P6[k], curvature_P66[k] = slope[better], curvature[better]
        damping_P[going] *= np.where(better, 0.1, 10)
        going = going[~is_last & (damping_P[going] < _MAX_DAMPING)]
        damped = curvature_P66[going] * (1 + damping_P[going, None, None] * np.eye(6)) + 1e-6 * np.eye(6)
        tried_P23[going] = best_P23[going] + np.linalg.solve(damped, slope_P6[going, :, None]).reshape(-1, 2, 3)
    return best_P23


def _derivatives(
    wanted_PA: np.ndarray, photos_PHW: np.ndarray, maps_P23: np.ndarray, basis_3A: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return correlation (P,), its gradient for the maps (P, 6), and its curvature by Gauss and Newton (P, 6, 6)."""
    photo_px, num_pixels = photos_PHW.shape[1], basis_3A.shape[1]
    values_PA, to_right_PA, down_PA = _sampled(photos_PHW, maps_P23, basis_3A)
    rows = np.empty((len(wanted_PA), 9, num_pixels), np.float32)
    rows[:, :3], rows[:, 3:6] = to_right_PA[:, None] * basis_3A, down_PA[:, None] * basis_3A
    rows[:, 6], rows[:, 7], rows[:, 8] = 1, values_PA - values_PA.mean(axis=1, keepdims=True), wanted_PA
    products = (rows @ rows.transpose(0, 2, 1)).astype(np.float64)
    length_P1 = np.sqrt(np.maximum(products[:, 7, 7, None], num_pixels))
    correlation_P, along_P6, sum_P6 = products[:, 7, 8] / length_P1[:, 0], products[:, :6, 7] / length_P1, products[:, :6, 6]
    # The mean and the scale of the values do not change the correlation, so these two directions are taken away.
    slope_P6 = products[:, :6, 8] - along_P6 * correlation_P[:, None]
    outer = along_P6[:, :, None] * along_P6[:, None] + sum_P6[:, :, None] * sum_P6[:, None] / num_pixels
    per_share_P1 = photo_px / length_P1
    return correlation_P, slope_P6 * per_share_P1, (products[:, :6, :6] - outer) * per_share_P1[:, :, None] ** 2


def _sampled(
    photos_PHW: np.ndarray, maps_P23: np.ndarray, basis_3A: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the photos at the mapped pixels of the core, interpolated bilinearly, and their derivatives to x and to y."""
    num_pairs, photo_px = photos_PHW.shape[:2]
    xy_P2A = ((maps_P23 * photo_px).astype(np.float32).reshape(-1, 3) @ basis_3A).reshape(num_pairs, 2, -1) - np.float32(0.5)
    xy_P2A = xy_P2A.clip(0, photo_px - 1)
    corner_P2A = np.minimum(xy_P2A.astype(np.int32), photo_px - 2)
    x, y = (xy_P2A - corner_P2A).swapaxes(0, 1)
    place = corner_P2A[:, 0] + photo_px * corner_P2A[:, 1] + photo_px**2 * np.arange(num_pairs, dtype=np.int32)[:, None]
    upper, upper_right, lower, lower_right = (photos_PHW.ravel().take(place + k) for k in (0, 1, photo_px, photo_px + 1))
    along_upper, along_lower = upper_right - upper, lower_right - lower
    above = upper + x * along_upper
    down = lower + x * along_lower - above
    return above + y * down, along_upper + y * (along_lower - along_upper), down


def _agreement(
    cores_PHW: np.ndarray, photos_PHW: np.ndarray, maps_P23: np.ndarray, deviation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlations of the cores with the photos under them, and of their detail. Shapes (P,)."""
    photo_px = photos_PHW.shape[1]
    windows_PHW = _sampled(photos_PHW, maps_P23, _basis(photo_px))[0].reshape(cores_PHW.shape)
    margin, correlations = photo_px // 24, []
    inner = slice(margin, cores_PHW.shape[1] - margin)
    pictures = [cores_PHW, windows_PHW]
    details = [(p - gaussian_filter(p, (0, deviation, deviation)))[:, inner, inner] for p in pictures]
    for first, second in (pictures, details):
        correlations.append(np.einsum("pa,pa->p", *(_unit(p.reshape(len(p), -1)) for p in (first, second))))
    return correlations[0], correlations[1]


def _cores(photos_PHW: np.ndarray) -> np.ndarray:
    margin = round(photos_PHW.shape[1] * (1 - _CORE) / 2)
    return photos_PHW[:, margin:-margin, margin:-margin]


def _basis(photo_px: int) -> np.ndarray:
    """Return what maps multiply for each pixel of the core: 1, and its place from -1 to 1 in x and in y. Shape (3, A)."""
    core_px = photo_px - 2 * round(photo_px * (1 - _CORE) / 2)
    ticks = (np.arange(core_px, dtype=np.float32) + 0.5) / core_px * 2 - 1
    v, u = np.meshgrid(ticks, ticks, indexing="ij")
    return np.stack([np.ones_like(u), u, v]).reshape(3, -1)


def _unit(values: np.ndarray) -> np.ndarray:
    """Subtract the mean along the last axis and scale to length 1. A flat picture stays near zero."""
    centred = values - values.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.maximum(np.square(centred).sum(axis=-1, keepdims=True), values.shape[-1]))
