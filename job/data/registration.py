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
_CORE_SCALES = (30 / 36, 33 / 36, 1.0)
_PAIRS_AT_ONCE = 128
# A first search at a third of the size rules out what is far from a copy. Of 2,160 copies, none was below 0.7
# (docs/decisions/0027-large-sets.md).
_SMALL_PX, _MIN_SMALL = 16, 0.7


@dataclass
class _Places:
    """Best match of each pair so far: scale, and centre as shares of the side of the photo. `swapped`: the core is of the
    second photo. `mirrored`: the photo in which it was searched is mirrored.
    """

    correlation: np.ndarray
    swapped: np.ndarray
    mirrored: np.ndarray
    scale: np.ndarray
    y: np.ndarray
    x: np.ndarray


def same_scene(pairs_P2: np.ndarray, images: ArrayStore) -> np.ndarray:
    """Return which pairs of rows of the image store show the same scene. Boolean, shape (P,); about 6 ms per pair."""
    same_P = np.zeros(len(pairs_P2), bool)
    for start in range(0, len(pairs_P2), _PAIRS_AT_ONCE):
        chunk = pairs_P2[start : start + _PAIRS_AT_ONCE]
        photos = [images.rows(chunk[:, side]) for side in (0, 1)]
        possible = np.flatnonzero(_search(*(_gray(p, _SMALL_PX) for p in photos)).correlation >= _MIN_SMALL)
        if len(possible):
            same_P[start + possible] = _registered(*(p[possible] for p in photos))
    return same_P


def _registered(first_PHWC: np.ndarray, second_PHWC: np.ndarray) -> np.ndarray:
    """Return which pairs agree after the match of their cores was searched and refined."""
    places = _search(_gray(first_PHWC, _COARSE_PX), _gray(second_PHWC, _COARSE_PX))
    same_P = np.zeros(len(first_PHWC), bool)
    likely = np.flatnonzero(places.correlation >= _MIN_COARSE)
    for k, first, second in zip(
        likely, _gray(first_PHWC[likely], _FINE_PX), _gray(second_PHWC[likely], _FINE_PX), strict=True
    ):
        of, within = (second, first) if places.swapped[k] else (first, second)
        within = within[:, ::-1] if places.mirrored[k] else within
        correlation, detail = _compare(of, within, places.scale[k], places.y[k], places.x[k])
        same_P[k] = correlation >= MIN_CORRELATION and detail >= MIN_DETAIL
    return same_P


def _gray(photos_NHWC: np.ndarray, side_px: int) -> np.ndarray:
    if not len(photos_NHWC):
        return np.empty((0, side_px, side_px), np.float32)
    grays = (Image.fromarray(photo).convert("L") for photo in photos_NHWC)
    return np.stack([np.asarray(g.resize((side_px, side_px), Image.Resampling.BOX), np.float32) for g in grays])


def _search(first_PHW: np.ndarray, second_PHW: np.ndarray) -> _Places:
    places = _Places(np.full(len(first_PHW), -1.0), *(np.zeros(len(first_PHW)) for _ in range(5)))
    for swapped, (of, within) in enumerate(((first_PHW, second_PHW), (second_PHW, first_PHW))):
        for mirrored in (0, 1):
            target = within[:, :, ::-1] if mirrored else within
            for scale in _CORE_SCALES[: -1 if swapped else None]:  # At scale 1, swapping changes nothing.
                correlation, y, x = _best_place(of, target, scale)
                better = correlation > places.correlation
                for name, value in (("correlation", correlation), ("y", y), ("x", x)):
                    getattr(places, name)[better] = value[better]
                places.swapped[better], places.mirrored[better], places.scale[better] = swapped, mirrored, scale
    return places


def _best_place(of_PHW: np.ndarray, within_PHW: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the best match of each scaled core. Return correlations, and the centres as shares of the side. Shapes (P,)."""
    photo_px = of_PHW.shape[1]
    core_px = int(photo_px * _CORE)
    side_px, margin = round(core_px * scale), (photo_px - core_px) // 2
    core = of_PHW[:, margin : margin + core_px, margin : margin + core_px]
    core = zoom(core, (1, side_px / core_px, side_px / core_px), order=1) if scale != 1 else core
    core = core - core.mean((1, 2), keepdims=True)
    num_places, area = photo_px - side_px + 1, side_px**2
    spectrum = np.fft.rfft2(within_PHW) * np.fft.rfft2(core, s=(photo_px, photo_px)).conj()
    products = np.fft.irfft2(spectrum, s=(photo_px, photo_px))[:, :num_places, :num_places]
    energy = _window_sums(within_PHW**2, side_px) - _window_sums(within_PHW, side_px) ** 2 / area
    core_energy = np.maximum((core**2).sum((1, 2)), area)[:, None, None]  # A flat core correlates with nothing.
    correlations = (products / np.sqrt(np.maximum(energy, area) * core_energy)).reshape(len(core), -1)
    best = correlations.argmax(1)
    y, x = ((place + side_px / 2) / photo_px for place in np.divmod(best, num_places))
    return correlations[np.arange(len(core)), best], y, x


def _window_sums(values_PHW: np.ndarray, side_px: int) -> np.ndarray:
    sums = np.pad(values_PHW.astype(np.float64).cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    rows = sums[:, side_px:] - sums[:, :-side_px]
    return rows[:, :, side_px:] - rows[:, :, :-side_px]


def _compare(first_HW: np.ndarray, second_HW: np.ndarray, scale: float, y: float, x: float) -> tuple[float, float]:
    """Fit an affine map from the first core into the second photo. Return the correlations of the pixels and the detail."""
    core_px = int(_FINE_PX * _CORE)
    margin = (_FINE_PX - core_px) // 2
    core = first_HW[margin : margin + core_px, margin : margin + core_px]
    v, u = np.mgrid[-1 : 1 : core_px * 1j, -1 : 1 : core_px * 1j]
    half, centre_y, centre_x = core_px / 2, y * _FINE_PX - 0.5, x * _FINE_PX - 0.5
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
