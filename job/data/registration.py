"""Detection of photos that show the same scene, even if one is cropped, mirrored, framed, slightly turned or recoloured.

The core (the middle) of one photo is searched in the other photo, mirrored or not and at several scales, by normalised
cross-correlation (Lewis, "Fast Normalized Cross-Correlation", 1995). The best match is refined to an affine map by least
squares (Lucas and Kanade, "An Iterative Image Registration Technique", 1981). Then both are compared twice: as they are,
and in their fine detail. Photos that are only similar agree in their light, but not in their detail.
docs/decisions/0006-duplicates-in-feature-space.md has the measurements behind the thresholds.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from scipy.optimize import least_squares

from job.stores.arrays import ArrayStore

MIN_CORRELATION, MIN_DETAIL = 0.95, 0.9
_MIN_COARSE = 0.8
_COARSE_PX, _FINE_PX = 48, 72
_CORE = 0.75  # Side of the core, as a share of the side of the photo.
_CORE_PX = int(_COARSE_PX * _CORE)
_SCALED_CORES_PX = (30, 33, 36)
_PAIRS_AT_ONCE = 128


@dataclass
class _Places:
    """Best match of each pair so far: size and place, and whether the photos are swapped and the searched one mirrored."""

    correlation: np.ndarray
    swapped: np.ndarray
    mirrored: np.ndarray
    side_px: np.ndarray
    y: np.ndarray
    x: np.ndarray


def same_scene(pairs_P2: np.ndarray, images: ArrayStore) -> np.ndarray:
    """Return which pairs of rows of the image store show the same scene. Boolean, shape (P,); about 6 ms per pair."""
    same_P = np.zeros(len(pairs_P2), bool)
    for start in range(0, len(pairs_P2), _PAIRS_AT_ONCE):
        chunk = pairs_P2[start : start + _PAIRS_AT_ONCE]
        photos = [images.rows(chunk[:, side]) for side in (0, 1)]
        coarse, fine = ([_gray(p, side_px) for p in photos] for side_px in (_COARSE_PX, _FINE_PX))
        places = _search(coarse[0], coarse[1])
        for k in np.flatnonzero(places.correlation >= _MIN_COARSE):
            first, second = (fine[0][k], fine[1][k]) if not places.swapped[k] else (fine[1][k], fine[0][k])
            second = second[:, ::-1] if places.mirrored[k] else second
            correlation, detail = _compare(first, second, places.side_px[k], places.y[k], places.x[k])
            same_P[start + k] = correlation >= MIN_CORRELATION and detail >= MIN_DETAIL
    return same_P


def _gray(photos_NHWC: np.ndarray, side_px: int) -> np.ndarray:
    grays = (Image.fromarray(photo).convert("L") for photo in photos_NHWC)
    return np.stack([np.asarray(g.resize((side_px, side_px), Image.Resampling.BOX), np.float32) for g in grays])


def _search(first_PHW: np.ndarray, second_PHW: np.ndarray) -> _Places:
    places = _Places(np.full(len(first_PHW), -1.0), *(np.zeros(len(first_PHW), int) for _ in range(5)))
    for swapped, (of, within) in enumerate(((first_PHW, second_PHW), (second_PHW, first_PHW))):
        for mirrored in (0, 1):
            target = within[:, :, ::-1] if mirrored else within
            for side_px in _SCALED_CORES_PX[: -1 if swapped else None]:  # At scale 1, swapping changes nothing.
                correlation, y, x = _best_place(of, target, side_px)
                better = correlation > places.correlation
                for name, value in (("correlation", correlation), ("y", y), ("x", x)):
                    getattr(places, name)[better] = value[better]
                places.swapped[better], places.mirrored[better], places.side_px[better] = swapped, mirrored, side_px
    return places


def _best_place(of_PHW: np.ndarray, within_PHW: np.ndarray, side_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the best match of each core, scaled to `side_px`. Return correlations, rows and columns, each of shape (P,)."""
    margin = (_COARSE_PX - _CORE_PX) // 2
    core = of_PHW[:, margin : margin + _CORE_PX, margin : margin + _CORE_PX]
    scale = side_px / _CORE_PX
    core = zoom(core, (1, scale, scale), order=1) if scale != 1 else core
    core = core - core.mean((1, 2), keepdims=True)
    num_places, area = _COARSE_PX - side_px + 1, side_px**2
    spectrum = np.fft.rfft2(within_PHW) * np.fft.rfft2(core, s=(_COARSE_PX, _COARSE_PX)).conj()
    products = np.fft.irfft2(spectrum, s=(_COARSE_PX, _COARSE_PX))[:, :num_places, :num_places]
    energy = _window_sums(within_PHW**2, side_px) - _window_sums(within_PHW, side_px) ** 2 / area
    core_energy = np.maximum((core**2).sum((1, 2)), area)[:, None, None]  # A flat core correlates with nothing.
    correlations = (products / np.sqrt(np.maximum(energy, area) * core_energy)).reshape(len(core), -1)
    best = correlations.argmax(1)
    return correlations[np.arange(len(core)), best], *np.divmod(best, num_places)


def _window_sums(values_PHW: np.ndarray, side_px: int) -> np.ndarray:
    sums = np.pad(values_PHW.astype(np.float64).cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    rows = sums[:, side_px:] - sums[:, :-side_px]
    return rows[:, :, side_px:] - rows[:, :, :-side_px]


def _compare(first_HW: np.ndarray, second_HW: np.ndarray, side_px: int, y: int, x: int) -> tuple[float, float]:
    """Fit an affine map from the first core into the second photo. Return the correlations of the pixels and the detail."""
    core_px = int(_FINE_PX * _CORE)
    margin = (_FINE_PX - core_px) // 2
    core = first_HW[margin : margin + core_px, margin : margin + core_px]
    v, u = np.mgrid[-1 : 1 : core_px * 1j, -1 : 1 : core_px * 1j]
    to_fine = _FINE_PX / _COARSE_PX
    half, scale = core_px / 2, side_px / _CORE_PX
    centre_y, centre_x = (y + side_px / 2) * to_fine - 0.5, (x + side_px / 2) * to_fine - 0.5
    smooth = gaussian_filter(second_HW, 0.7)
    wanted = _unit(gaussian_filter(core, 0.7))

    def sample(image: np.ndarray, p: np.ndarray) -> np.ndarray:
        columns = centre_x + half * (p[0] + (scale + p[2]) * u + p[3] * v)
        rows = centre_y + half * (p[1] + p[4] * u + (scale + p[5]) * v)
        return map_coordinates(image, [rows, columns], order=1, mode="nearest")

    def error(p: np.ndarray) -> np.ndarray:
        return _unit(sample(smooth, p)) - wanted

    found = least_squares(error, np.zeros(6), method="lm", diff_step=1e-2, max_nfev=60, xtol=1e-3, ftol=1e-3)
    if np.abs(found.x).max() > 0.35:  # The fit moved far away from the match, to something else.
        return 0.0, 0.0
    window = sample(second_HW, found.x)
    return float(_unit(window) @ _unit(core)), float(_unit(_detail(window)) @ _unit(_detail(core)))


def _detail(image_HW: np.ndarray) -> np.ndarray:
    return (image_HW - gaussian_filter(image_HW, 2))[3:-3, 3:-3]


def _unit(values: np.ndarray) -> np.ndarray:
    """Flatten, subtract the mean and scale to length 1. A flat picture stays near zero."""
    centred = (values - values.mean()).ravel()
    return centred / max(float(np.linalg.norm(centred)), float(len(centred)) ** 0.5)
