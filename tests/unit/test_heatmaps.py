"""Pictures of heatmaps, copies of photos in which something is hidden, and what the answers to them say."""

import numpy as np
import pytest

from job.measure.occlusion import COPIES, copy_of, marked, verdicts
from job.reporting.gallery import with_heatmap

PHOTO = np.random.default_rng(0).integers(1, 256, (80, 80, 3)).astype(np.uint8)
HEATMAP = np.arange(25, dtype=np.float32).reshape(5, 5)  # The last row of cells is the highest.


def copy(kind, photo=PHOTO):
    return copy_of(photo, HEATMAP, kind, np.random.default_rng(1))


def changed(kind):
    return (copy(kind) != PHOTO).any(axis=2)


def test_a_fifth_of_the_cells_is_marked_those_with_the_highest_values():
    assert marked(HEATMAP).sum(axis=1).tolist() == [0, 0, 0, 0, 5]
    assert marked(np.zeros((7, 7))).sum() == 10 and marked(np.zeros((2, 2))).sum() == 1


def test_marked_cells_are_blurred_and_nothing_else():
    assert changed("without_marked")[64:].mean() > 0.9 and not changed("without_marked")[:64].any()
    assert changed("without_random").mean() == pytest.approx(0.2, abs=0.02)


def test_middle_and_surroundings_together_are_the_photo():
    inner, outer = copy("inner"), copy("outer")
    is_inner = (inner == PHOTO).all(axis=2)
    assert (is_inner ^ (outer == PHOTO).all(axis=2)).all() and is_inner.mean() == pytest.approx(0.55**2, abs=0.01)
    assert is_inner[40, 40] and not is_inner[0, 0] and (inner[0, 0] == 128).all()


def test_shuffled_copy_has_the_same_patches_at_other_places():
    def patches(photo):
        return sorted(photo[y : y + 20, x : x + 20].tobytes() for y in range(0, 80, 20) for x in range(0, 80, 20))

    assert changed("shuffled").any() and patches(copy("shuffled")) == patches(PHOTO)
    odd = PHOTO[:43, :43]
    assert copy("shuffled", odd).shape == odd.shape and (copy("shuffled", odd)[40:] == odd[40:]).all()


def answers(**probability_of_first):
    """Probabilities of two classes for twenty photos of the first one, and for their copies."""
    before = np.tile([0.9, 0.1], (20, 1))
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, (20, len(COPIES)))
    first = np.asarray([probability_of_first.get(kind, 0.8) for kind in COPIES]) + noise
    return verdicts(before, np.stack([first, 1 - first], axis=2))


def test_deletion_test_says_how_much_more_the_marked_part_matters():
    deletion, _ = answers(without_marked=0.5)
    assert deletion["drop_marked"] == pytest.approx(0.4, abs=0.02) and deletion["drop_random"] == pytest.approx(
        0.1, abs=0.02
    )
    low, high = deletion["difference_ci95"]
    assert low < 0.3 < high and high - low < 0.05 and deletion["verdict"] == "passed"


@pytest.mark.parametrize(("probability", "verdict"), [(0.9, "failed"), (0.7, "passed")])
def test_marked_part_that_matters_less_than_a_random_one_fails(probability, verdict):
    assert answers(without_marked=probability)[0]["verdict"] == verdict


def test_background_decides_if_the_surroundings_alone_keep_more_answers_than_the_middle():
    _, background = answers(inner=0.3, outer=0.9)
    assert (background["inner"], background["outer"], background["decides"]) == (0, 1, True)
    assert not answers(inner=0.9, outer=0.3)[1]["decides"] and not answers()[1]["decides"]


def test_drawn_heatmap_is_bright_where_its_values_are_high_and_black_where_they_are_zero():
    grey = np.full((80, 80, 3), 128, np.uint8)
    picture = np.asarray(with_heatmap(grey, HEATMAP, 50)).astype(int)
    assert picture.shape == (50, 50, 3) and picture[-1].sum(axis=1).min() > picture[0].sum(axis=1).max()
    nothing = np.asarray(with_heatmap(grey, np.zeros((5, 5), np.float32), 50))
    assert (nothing == nothing[0, 0]).all()
