import tomllib

import pytest

from docs.make_reference import backbones
from job.config import Config, as_toml, fields
from job.errors import UsageError
from job.text.wording import allowed
from tests.conftest import ROOT


def test_all_mistakes_are_reported_at_once_with_path_value_and_what_is_allowed():
    with pytest.raises(UsageError) as caught:
        Config.load(None, ["fine_tune.epochz=3", "intake.resize=stretch", "intake.image_size=7", "head=3", "nonsense"])
    message = str(caught.value)
    assert "intake.resize: got 'stretch'; allowed: squash or crop or pad" in message
    assert "intake.image_size: got 7; allowed: a whole number, at least 32 and at most 1,024" in message
    assert "fine_tune.epochz: there is no such setting; did you mean fine_tune.epochs?" in message
    assert "head: got 3; this is a section" in message
    assert "--set nonsense: expected section.key=value" in message


def test_file_is_overlaid_by_set_and_then_by_flags(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('seed = 5\n[backbone]\nweights = "random"\nalpha = 0.5\n')
    config = Config.load(file, ["backbone.alpha=0.35", "seed=6"], {"backbone.weights": "imagenet"})
    assert (config.seed, config.backbone.alpha, config.backbone.weights) == (6, 0.35, "imagenet")


def test_values_need_no_quotes_and_lists_and_numbers_are_toml():
    config = Config.load(None, ["backbone.name=resnet50", "head.c_grid=[0.1, 1]", "backbone.unfreeze=0.3"])
    assert (config.backbone.name, config.head.c_grid, config.backbone.unfreeze) == ("resnet50", (0.1, 1.0), 0.3)


def test_seeds_that_are_left_out_are_the_runs_except_that_of_the_split():
    config = Config.load(None, ["seed=7", "augment.seed=1"])
    assert (config.split.seed, config.augment.seed, config.train.seed) == (0, 1, 7)
    assert Config.load(None, ["seed=7", "split.seed=2"]).split.seed == 2


def test_arguments_of_image_data_generator_that_do_not_fit_are_refused_with_the_reason():
    with pytest.raises(UsageError) as caught:
        Config.load(None, ["augment.rescale=0.5", "augment.validation_split=0.2", "augment.zca_whitening=true"])
    message = str(caught.value)
    assert "augment.rescale: refused: the model itself scales pixels" in message
    assert "augment.validation_split: refused: use split.val_fraction" in message
    assert "augment.zca_whitening: refused: no pre-trained backbone has seen whitened photos" in message


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("width_shift_range=3", 3),
        ("width_shift_range=3.0", 3.0),
        ("height_shift_range=0.25", 0.25),
        ("height_shift_range=[-4, 0, 4]", (-4.0, 0.0, 4.0)),
        ("rotation_range=360", 360.0),
        ("zoom_range=0.5", 0.5),
        ("zoom_range=[0.5, 3]", (0.5, 3.0)),
        ("brightness_range=[0, 2]", (0.0, 2.0)),
        ("interpolation_order=1", 1),
        ("engine=image_data_generator", "image_data_generator"),
    ],
)
def test_augmentation_takes_what_image_data_generator_takes(tmp_path, setting, value):
    config = Config.load(None, [f"augment.{setting}"])
    taken = getattr(config.augment, setting.partition("=")[0])
    assert taken == value and type(taken) is type(value)
    (tmp_path / "again.toml").write_text(as_toml(config))
    again = getattr(Config.load(tmp_path / "again.toml").augment, setting.partition("=")[0])
    assert again == value and type(again) is type(value)  # 3 means whole pixels below 3, and 3.0 anything up to 3.


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rotation_range=361", "at most 360"),
        ("rotation_range=-1", "at least 0"),
        ("width_shift_range=-0.1", "0 or more"),
        ("height_shift_range=-2", "0 or more"),
        ("height_shift_range=[]", "a list of shifts"),
        ("width_shift_range=far", "a whole number or a number or a list of numbers"),
        ("shear_range=90", "below 90"),
        ("zoom_range=1.0", "0 to below 1"),
        ("zoom_range=[1.2, 0.8]", "the smaller one first"),
        ("brightness_range=[1.2, 0.8]", "the smaller one first"),
        ("channel_shift_range=256", "at most 255"),
        ("cval=-1", "at least 0"),
        ("fill_mode=mirror", "nearest or reflect or constant or wrap"),
        ("interpolation_order=3", "allowed: 1"),
        ("engine=keras", "batched or image_data_generator"),
    ],
)
def test_augmentation_out_of_range_is_a_mistake(setting, said):
    with pytest.raises(UsageError) as caught:
        Config.load(None, [f"augment.{setting}"])
    assert f"augment.{setting.partition('=')[0]}: got" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("text", ["not toml = = 3", "\x00"])
def test_broken_file_is_a_usage_error(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UsageError, match="not TOML"):
        Config.load(tmp_path / "run.toml")


def test_resolved_configuration_read_again_is_the_same(tmp_path):
    config = Config.load(None, ["augment.zoom_range=0.2", "backbone.alpha=0.5", 'report.title=a "quoted" ü'])
    (tmp_path / "again.toml").write_text(as_toml(config))
    tomllib.loads(as_toml(config))
    assert Config.load(tmp_path / "again.toml") == config


def test_settings_of_how_do_not_count_as_what():
    more_workers = Config.load(None, ["intake.workers=7"])
    assert more_workers.intake.what() == Config().intake.what()
    assert Config.load(None, ["intake.image_size=64"]).intake.what() != Config().intake.what()


def test_every_setting_is_documented():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for dotted, field in fields():
        assert field.description, dotted
        assert f"`{dotted}`" in page and allowed(field) in page, f"docs/configuration.md lacks {dotted}; run `make docs`"


def test_every_backbone_is_documented():
    assert backbones() in (ROOT / "docs" / "backbones.md").read_text(), "run `make docs`"
