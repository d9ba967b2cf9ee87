"""Views of photos against Keras' ImageDataGenerator itself: what it draws, and the pictures that it makes of it."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import ks_2samp

from job.data.augment import Augmentation, Transforms, draw
from job.sections import REFUSED, AugmentConfig
from tests.conftest import ROOT

RealClass = tf.keras.preprocessing.image.ImageDataGenerator
SIZE = 40
FILL_MODES = ["nearest", "reflect", "constant", "wrap"]
OFF = {
    "rotation_range": 0.0,
    "width_shift_range": 0.0,
    "height_shift_range": 0.0,
    "zoom_range": (1.0, 1.0),
    "brightness_range": None,
    "horizontal_flip": False,
}
EACH = {
    "rotation": {"rotation_range": 180},
    "width_shift": {"width_shift_range": 0.6},
    "height_shift": {"height_shift_range": 55.0},
    "whole_shift": {"width_shift_range": 30, "height_shift_range": [3, 50]},
    "shear": {"shear_range": 40},
    "zoom": {"zoom_range": (0.4, 2.3)},
    "channel_shift": {"channel_shift_range": 90},
    "brightness": {"brightness_range": (0.4, 1.7)},
    "horizontal_flip": {"horizontal_flip": True},
    "vertical_flip": {"vertical_flip": True},
}
ALL = {k: v for each in EACH.values() for k, v in each.items()} | {"width_shift_range": 0.6}

pytestmark = pytest.mark.filterwarnings("ignore:Please import `affine_transform`")  # Keras' own call of scipy.

# Coordinates in float32 are right to 3e-5 px, and no neighbours differ by more than 255.
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def photos():
    """Six photos of coarse shapes and fine noise, with black and white in them, and nothing the same left and right."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (6, 5, 5, 3)).repeat(SIZE // 5, 1).repeat(SIZE // 5, 2)
    return (coarse + rng.integers(-60, 60, (6, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)


def config_of(**arguments):
    return AugmentConfig(**{**OFF, "seed": 1, **arguments})


def pictures_of(config, pixels, transforms):
    augmentation = Augmentation(config, SIZE)
    return np.asarray(augmentation.device(*map(tf.constant, augmentation.prepared(pixels, transforms))))


def transforms_of(parameters):
    """The dictionaries that the real class draws, as arrays."""
    names = {"channel_shift": ("channel_shift_intensity", 0.0), "brightness": ("brightness", 1.0)}
    columns = {}
    for name in Transforms.__dataclass_fields__:
        key, off = names.get(name, (name, 0.0))
        dtype = bool if name.startswith("flip") else float
        columns[name] = np.asarray([off if p[key] is None else p[key] for p in parameters], dtype)
    return Transforms(**columns)


def away_from_jumps(transforms, fill_mode):
    """Pixels (B, H, W) whose source is not where the rule for the outside jumps: there rounding alone decides."""
    m = transforms.matrices(SIZE).astype(np.float64)[:, :, None, None]
    row, column = np.mgrid[0:SIZE, 0:SIZE]
    clear = np.ones((len(m), SIZE, SIZE), bool)
    for source in (m[:, 0] * column + m[:, 1] * row + m[:, 2], m[:, 3] * column + m[:, 4] * row + m[:, 5]):
        if fill_mode == "constant":
            clear &= (np.abs(source) > 2e-3) & (np.abs(source - (SIZE - 1)) > 2e-3)
        elif fill_mode == "wrap":
            clear &= np.abs(source - np.round(source / (SIZE - 1)) * (SIZE - 1)) > 2e-3
    return clear


def assert_same(ours, theirs, clear, brightness=None):
    """Keras cuts to whole levels before the brightness and after it, and so is darker by up to 1 + the factor."""
    darker = np.zeros(len(ours)) if brightness is None else 1 + brightness
    difference = ours - theirs
    assert clear.mean() > 0.85
    assert (difference[clear] >= -TOLERANCE).all()
    assert (difference - darker[:, None, None, None] <= TOLERANCE)[clear].all()


@pytest.mark.parametrize("fill_mode", FILL_MODES)
@pytest.mark.parametrize("which", [*EACH, "all_but_brightness", "all"])
def test_engines_make_the_pictures_of_the_real_class_from_what_it_draws(photos, which, fill_mode):
    arguments = {"all": ALL, "all_but_brightness": {**ALL, "brightness_range": None}}.get(which) or EACH[which]
    arguments = {**arguments, "fill_mode": fill_mode, "cval": 130.0}
    real = RealClass(**arguments)
    parameters = [real.get_random_transform((SIZE, SIZE, 3), seed=k) for k in range(len(photos))]
    assert len({str(p) for p in parameters}) > 1, "nothing was drawn"
    expected = np.stack([real.apply_transform(x.astype("f"), p) for x, p in zip(photos, parameters, strict=True)])
    transforms = transforms_of(parameters)
    by_real_class = pictures_of(config_of(**arguments, engine="image_data_generator"), photos, transforms)
    assert np.array_equal(by_real_class, expected)
    batched = pictures_of(config_of(**arguments), photos, transforms)
    assert np.abs(batched - photos).max() > 50, "nothing was changed"
    brightness = transforms.brightness if real.brightness_range else None
    assert_same(batched, expected, away_from_jumps(transforms, fill_mode), brightness)


def test_engines_draw_the_same_views(photos):
    keys, views = np.arange(6, dtype=np.uint64), np.arange(6) % 3 + 1
    pictures = []
    for engine in ("batched", "image_data_generator"):
        augmentation = Augmentation(AugmentConfig(seed=3, channel_shift_range=20, engine=engine), SIZE)
        pictures.append(np.asarray(augmentation.device(*map(tf.constant, augmentation.host(photos, keys, views)))))
    drawn = draw(AugmentConfig(seed=3, channel_shift_range=20), keys, views, SIZE)
    assert_same(*pictures, away_from_jumps(drawn, "reflect"), drawn.brightness)


@pytest.mark.parametrize(
    "arguments",
    [
        {"rotation_range": 30},
        {"shear_range": 12},
        {"width_shift_range": 0.2},
        {"width_shift_range": 7.0},
        {"width_shift_range": 1.0},
        {"width_shift_range": 4},
        {"width_shift_range": 1},
        {"width_shift_range": [0.1, 0.25, -0.3]},
        {"width_shift_range": [-6, 2, 3]},
        {"height_shift_range": 0.3},
        {"height_shift_range": 3},
        {"height_shift_range": [0.0, 0.5]},
        {"zoom_range": 0.3},
        {"zoom_range": [0.5, 0.9]},
        {"channel_shift_range": 25},
        {"brightness_range": [0.3, 1.4]},
        {"horizontal_flip": True},
        {"vertical_flip": True},
    ],
    ids=str,
)
def test_draws_have_the_distributions_of_the_real_class(arguments):
    count = 3000
    ours = draw(config_of(**arguments), np.arange(count, dtype=np.uint64), np.ones(count, int), SIZE)
    real = RealClass(**arguments)
    np.random.seed(0)
    theirs = vars(transforms_of([real.get_random_transform((SIZE, SIZE, 3)) for _ in range(count)]))
    # Keras draws tx from height_shift_range, and its apply_transform moves along the width by it: see docs/augmentation.md.
    theirs = {**theirs, "tx": theirs["ty"], "ty": theirs["tx"]}
    for name, drawn in vars(ours).items():
        if len(np.unique(theirs[name])) < 10:
            values, frequencies = np.unique(drawn, return_counts=True)
            their_values, their_frequencies = np.unique(theirs[name], return_counts=True)
            assert np.array_equal(values, their_values), name
            assert np.abs(frequencies - their_frequencies).max() < 0.05 * count, name
        else:
            assert ks_2samp(drawn, theirs[name]).pvalue > 1e-3, name
    assert ks_2samp(ours.zx, ours.zy).pvalue > 1e-3


@pytest.mark.parametrize("engine", ["batched", "image_data_generator"])
@pytest.mark.parametrize("along", ["width", "height"])
def test_width_shift_moves_along_the_width_and_height_shift_along_the_height(engine, along):
    config = config_of(**{f"{along}_shift_range": 8.0}, engine=engine)
    drawn = draw(config, np.arange(5, dtype=np.uint64), np.ones(5, int), SIZE)
    dots = np.zeros((5, SIZE, SIZE, 3), np.uint8)
    dots[:, 16, 16] = 255
    shifts = drawn.tx if along == "width" else drawn.ty
    assert np.abs(shifts).max() > 2
    for moved, shift in zip(pictures_of(config, dots, drawn), shifts, strict=True):
        rows, columns = np.nonzero(moved[:, :, 0] > 60)
        across, lengthwise = (rows, columns) if along == "width" else (columns, rows)
        assert set(across) == {16} and abs(lengthwise.mean() - (16 - shift)) <= 0.75


@pytest.mark.parametrize("fill_mode", FILL_MODES)
@pytest.mark.parametrize("engine", ["batched", "image_data_generator"])
def test_view_0_is_the_photo_to_the_bit_among_warped_ones(photos, engine, fill_mode):
    augmentation = Augmentation(config_of(**{**ALL, "fill_mode": fill_mode, "cval": 130.0}, engine=engine), SIZE)
    views = np.asarray([3, 0, 1, 0, 2, 0])
    batch = augmentation.host(photos, np.arange(6, dtype=np.uint64), views)
    pictures = np.asarray(augmentation.device(*map(tf.constant, batch)))
    assert pictures.dtype == np.float32
    assert np.array_equal(pictures[views == 0], photos[views == 0].astype(np.float32))
    assert (np.abs(pictures - photos).mean(axis=(1, 2, 3))[views > 0] > 10).all()


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_what_xla_compiles_is_what_the_operations_give_one_by_one(photos, fill_mode):
    """A GPU runs them one by one; photos in view 0 are the same to the bit there, too."""
    config = config_of(**{**ALL, "fill_mode": fill_mode})
    augmentation = Augmentation(config, SIZE)
    views = np.asarray([3, 0, 1, 0, 2, 0])
    keys = np.arange(6, dtype=np.uint64)
    pixels, matrices, shift, brightness = map(tf.constant, augmentation.host(photos, keys, views))
    compiled = np.asarray(augmentation.device(pixels, matrices, shift, brightness))
    one_by_one = np.asarray(augmentation._coloured(augmentation._warped(pixels, matrices), shift, brightness))
    assert np.array_equal(one_by_one[views == 0], photos[views == 0].astype(np.float32))
    clear = away_from_jumps(draw(config, keys, views, SIZE), fill_mode) | (views == 0)[:, None, None]
    assert np.abs(compiled - one_by_one)[clear].max() < 2 * TOLERANCE


@pytest.mark.parametrize("engine", ["batched", "image_data_generator"])
def test_no_view_depends_on_the_batch_that_it_is_in(photos, engine):
    augmentation = Augmentation(config_of(**ALL, engine=engine), SIZE)

    def pictures(rows):
        keys, views = np.asarray([7, 8, 9, 7, 8, 9], np.uint64), np.asarray([1, 1, 1, 2, 0, 3])
        batch = augmentation.host(photos[rows], keys[rows], views[rows])
        return np.asarray(augmentation.device(*map(tf.constant, batch)))

    together = pictures(np.arange(6))
    assert np.array_equal(pictures(np.arange(6)[::-1]), together[::-1])
    for row in range(6):
        assert np.array_equal(pictures(np.asarray([row]))[0], together[row])


def test_draws_are_a_function_of_seed_example_and_view():
    keys, views = np.asarray([7, 8, 2**64 - 1], np.uint64), np.asarray([1, 2, 1])

    def matrices(seed, keys, views):
        return draw(AugmentConfig(seed=seed), keys, views, SIZE).matrices(SIZE)

    together = matrices(1, keys, views)
    assert np.array_equal(together[1:2], matrices(1, keys[1:2], views[1:2]))
    for other in (matrices(2, keys, views), matrices(1, keys + np.uint64(1), views), matrices(1, keys, views + 1)):
        assert not np.isclose(other[:, 0], together[:, 0]).any()


def test_draws_of_neighbouring_seeds_keys_views_and_columns_have_nothing_in_common():
    config, count = AugmentConfig(shear_range=5, channel_shift_range=5, vertical_flip=True), 4000
    keys, ones = np.arange(count, dtype=np.uint64), np.ones(count, int)

    def drawn(config, keys, views):
        return np.stack([np.asarray(v, float) for v in vars(draw(config, keys, views, SIZE)).values()])

    first = drawn(config, keys, ones)
    others = [
        drawn(config.model_copy(update={"seed": 1}), keys, ones),
        drawn(config, keys + np.uint64(1), ones),
        drawn(config, keys, ones + 1),
        drawn(config, np.full(count, 5, np.uint64), np.arange(1, count + 1)),
    ]
    correlations = np.corrcoef(np.concatenate([first, *others]))
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < 5 / np.sqrt(count)  # 1,225 pairs: five standard errors


@pytest.mark.parametrize("engine", ["batched", "image_data_generator"])
def test_with_all_ranges_off_views_are_the_photos(photos, engine):
    for off in (
        {},
        {"width_shift_range": 1},
        {"height_shift_range": [0, 0]},
        {"zoom_range": 0},
        {"brightness_range": (1, 1)},
    ):
        augmentation = Augmentation(config_of(**off, engine=engine), SIZE)
        assert augmentation.changes_nothing, off
        batch = augmentation.host(photos, np.arange(6, dtype=np.uint64), np.ones(6, int))
        assert np.array_equal(np.asarray(augmentation.device(*map(tf.constant, batch))), photos)


@pytest.mark.parametrize("which", EACH)
def test_with_any_range_on_views_are_others(which):
    assert not Augmentation(config_of(**EACH[which]), SIZE).changes_nothing


def test_every_argument_of_the_real_class_is_a_setting_or_refused_and_documented():
    page = (ROOT / "docs" / "augmentation.md").read_text()
    for name in list(inspect.signature(RealClass.__init__).parameters)[1:]:
        assert (name in AugmentConfig.model_fields) != (f"augment.{name}" in REFUSED), name
        assert f"| `{name}` |" in page, name
