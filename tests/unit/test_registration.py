"""Copies that no hash finds are the same scene; photos that are only alike are not."""

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from job.data import registration
from job.data.registration import same_scene
from job.errors import Stopped
from job.stores.arrays import ArrayStore, StoreWriter

SIDE = 96


def scene(seed, light=0):
    """A picture with detail at many scales, over a smooth light of its own."""
    rng = np.random.default_rng(seed)
    detail = sum(gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (s, s, 0)) * s * 30 for s in (1.5, 3, 6))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    shade = 120 * np.sin(3 * (x + light)) * np.cos(2 * (y - light))
    return Image.fromarray((128 + shade[..., None] + detail).clip(0, 255).astype(np.uint8))


def cropped(photo, share):
    side = round(SIDE * share)
    return photo.crop((4, 6, 4 + side, 6 + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


CHANGES = {
    "mirrored": ImageOps.mirror,
    "cropped to 90%": lambda p: cropped(p, 0.9),
    "cropped to 85%": lambda p: cropped(p, 0.85),
    "mirrored and cropped": lambda p: ImageOps.mirror(cropped(p, 0.9)),
    "framed": lambda p: ImageOps.expand(p, 8, "white").resize((SIDE, SIDE), Image.Resampling.BILINEAR),
    "gray": lambda p: p.convert("L").convert("RGB"),
    "turned by three degrees": lambda p: p.rotate(3, Image.Resampling.BICUBIC),
    "darker": lambda p: p.point(lambda v: int(v * 0.7)),
}


@pytest.fixture
def stored(tmp_path):
    def store(photos) -> ArrayStore:
        writer = StoreWriter(tmp_path / "store", (SIDE, SIDE, 3), "uint8")
        keys = [str(k) for k in range(len(photos))]
        writer.write(keys, np.stack([np.asarray(p) for p in photos]))
        return writer.finish(keys)

    return store


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copy_is_the_same_scene_either_way_round(stored, change):
    images = stored([scene(1), CHANGES[change](scene(1))])
    assert same_scene(np.asarray([[0, 1], [1, 0]]), images).tolist() == [True, True]


def test_different_scenes_in_the_same_light_are_not_the_same(stored):
    images = stored([scene(seed) for seed in range(12)])
    pairs = np.asarray([(i, j) for i in range(12) for j in range(i)])
    assert not same_scene(pairs, images).any()


def test_smooth_pictures_without_detail_are_not_called_the_same(stored):
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    ramps = [np.repeat((40 + 170 * (x * a + y * (1 - a)))[..., None], 3, 2).astype(np.uint8) for a in (0.2, 0.5, 0.8)]
    flat = [np.full((SIDE, SIDE, 3), v, np.uint8) for v in (10, 200)]
    images = stored(ramps + flat)
    pairs = np.asarray([(i, j) for i in range(5) for j in range(i)])
    assert not same_scene(pairs, images).any()


def test_no_pairs_are_no_pairs(stored):
    assert same_scene(np.empty((0, 2), np.int64), stored([scene(1)])).shape == (0,)


def test_first_search_rules_most_pairs_out_and_loses_no_copy(stored, monkeypatch):
    """Copies of twelve scenes in different light, changed in each way, among all pairs of scenes."""
    photos = [scene(seed, light=0.6 * seed) for seed in range(12)]
    copies = [change(photo) for photo in photos for change in CHANGES.values()]
    images = stored(photos + copies)
    true_pairs = [(k // len(CHANGES), 12 + k) for k in range(len(copies))]
    pairs = np.asarray(true_pairs + [(i, j) for i in range(12) for j in range(i)])
    looked_at = []
    confirm = registration._is_confirmed
    monkeypatch.setattr(
        registration, "_is_confirmed", lambda found, *photos: looked_at.append(len(photos[0])) or confirm(found, *photos)
    )
    found = same_scene(pairs, images)
    for threshold in ("_MIN_FOUND", "_MIN_SMALL", "_MIN_SMALL_DETAIL"):
        monkeypatch.setattr(registration, threshold, -2.0)
    assert (found == same_scene(pairs, images)).all() and found[: len(true_pairs)].mean() > 0.9
    assert sum(looked_at) <= len(true_pairs) + len(pairs)


def test_flat_and_black_pictures_are_no_error(stored):
    """Nothing of a flat picture can be fitted."""
    images = stored([np.zeros((SIDE, SIDE, 3), np.uint8), np.full((SIDE, SIDE, 3), 255, np.uint8), scene(1)])
    assert not same_scene(np.asarray([[0, 1], [0, 2], [1, 2], [0, 0]]), images).any()


def test_search_can_be_stopped(stored):
    def stop():
        raise Stopped("now")

    with pytest.raises(Stopped):
        same_scene(np.asarray([[0, 1]]), stored([scene(1), scene(2)]), stop)
