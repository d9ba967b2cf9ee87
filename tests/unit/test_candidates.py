import shutil

import h5py
import pytest

from job.config import Config
from job.errors import UsageError
from job.ranking.candidates import candidates


def named(*lists, sizes=(), weights="random", fine_tune=False, tmp_path, **settings):
    base = Config.load(None, [f"{key}={value}" for key, value in settings.items()], {"backbone.weights": weights})
    return candidates(lists, sizes, base, str(tmp_path / "cache"), fine_tune=fine_tune)


def mistakes_of(*lists, sizes=(), tmp_path, **settings):
    with pytest.raises(UsageError) as caught:
        named(*lists, sizes=sizes, tmp_path=tmp_path, **settings)
    return str(caught.value)


def save(file, number):
    with h5py.File(file, "w") as weights:
        weights["layers/dense/vars/0"] = [number]


def described(found):
    backbones = [c.config.backbone for c in found]
    return [(b.name, b.alpha, b.weights, c.image_size) for b, c in zip(backbones, found, strict=True)]


def test_each_candidate_has_its_own_keys_and_the_rest_from_the_defaults(tmp_path):
    file = tmp_path / "a.weights.h5"
    save(file, 1.0)
    found = named(
        f"mobilenet_v2:alpha=0.35:weights={file}, mobilenet_v2:image_size=96:alpha=0.5",
        "resnet50",
        sizes=["128", "64,128"],
        tmp_path=tmp_path,
    )
    assert described(found) == [
        ("mobilenet_v2", 0.35, str(file), 128),
        ("mobilenet_v2", 0.35, str(file), 64),
        ("mobilenet_v2", 0.5, "random", 96),
        ("resnet50", None, "random", 128),
        ("resnet50", None, "random", 64),
    ]


def test_presets_of_kerashub_are_candidates_with_folders_of_their_own(tmp_path):
    found = named("dinov2_small:image_size=56, hub:hf://keras/vit_x:weights=preset:image_size=32", tmp_path=tmp_path)
    assert described(found) == [("dinov2_small", None, "random", 56), ("hub:hf://keras/vit_x", None, "preset", 32)]
    assert [c.folder for c in found] == ["dinov2_small-56px-random", "hub-hf-keras-vit_x-32px-preset"]


def test_without_any_size_it_is_that_of_the_configuration(tmp_path):
    assert [c.image_size for c in named("resnet50", tmp_path=tmp_path)] == [224]
    assert [c.image_size for c in named("resnet50", tmp_path=tmp_path, **{"intake.image_size": 100})] == [100]


def test_candidates_only_look_at_plain_features_and_share_one_cache(tmp_path):
    settings = {"fine_tune.inputs": "online", "augment.views": 8, "split.seed": 5, "intake.resize": "crop"}
    first, second = named("resnet50,vgg16", tmp_path=tmp_path, **settings)
    for config in (first.config, second.config):
        assert (config.backbone.unfreeze, config.augment.views, config.fine_tune.inputs) == ("none", 1, "auto")
        assert (config.split.seed, config.intake.resize, config.cache.dir) == (5, "crop", str(str(tmp_path / "cache")))
    own = named("resnet50", tmp_path=tmp_path, **{"cache.dir": "/elsewhere"})
    assert own[0].config.cache.dir == "/elsewhere"


def test_candidates_that_are_fine_tuned_keep_the_settings_of_training_but_for_few_epochs(tmp_path):
    (brief,) = named("mobilenet_v2", fine_tune=True, tmp_path=tmp_path, **{"backbone.unfreeze": 0.2, "augment.views": 3})
    assert brief.config.backbone.unfreeze == 0.2 and brief.config.augment.views == 3 and brief.config.fine_tune.epochs == 2
    tuning = {"fine_tune.epochs": 7, "fine_tune.layer_decay": 0.7}
    (longer,) = named("mobilenet_v2", fine_tune=True, tmp_path=tmp_path, **tuning)
    assert longer.config.fine_tune.epochs == 7 and longer.config.fine_tune.layer_decay == 0.7
    (plain,) = named("mobilenet_v2", tmp_path=tmp_path)
    assert plain.folder != longer.folder == brief.folder
    for nothing in ({"backbone.unfreeze": "none"}, {"fine_tune.epochs": 0}):
        with pytest.raises(UsageError, match="nothing would be fine-tuned"):
            named("mobilenet_v2", fine_tune=True, tmp_path=tmp_path, **nothing)


def test_a_backbone_named_twice_is_one_candidate_and_weights_of_other_content_another(tmp_path):
    save(tmp_path / "a.h5", 1.0)
    shutil.copy(tmp_path / "a.h5", tmp_path / "b.h5")
    save(tmp_path / "c.h5", 2.0)
    text = ",".join(f"vgg16:weights={tmp_path / name}" for name in ("a.h5", "b.h5", "c.h5"))
    found = named("resnet50,resnet50:image_size=224", text, tmp_path=tmp_path)
    assert [c.label for c in found] == ["resnet50", "vgg16", "vgg16"]
    assert len({c.folder for c in found}) == 3 and all("/" not in c.folder and " " not in c.folder for c in found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mobilenetv2", "there is no backbone 'mobilenetv2'; did you mean mobilenet_v2?"),
        ("zzz", "docs/backbones.md lists them"),
        ("resnet50:0.5", "'0.5' is not one of alpha=..., weights=..., image_size=..."),
        ("resnet50:size=64", "'size=64' is not one of"),
        ("resnet50:image_size=", "'image_size=' is not one of"),
        ("resnet50:image_size=64:image_size=96", "is given twice"),
        ("resnet50:alpha=0.5", "resnet50 has no width multiplier"),
        ("mobilenet_v2:alpha=wide", "backbone.alpha: got 'wide'; allowed: a number"),
        ("mobilenet_v2:alpha=3", "at most 2"),
        ("mobilenet_v2:image_size=big", "'big' is not a number of pixels"),
        ("mobilenet_v2:image_size=16", "at least 32"),
        ("inception_v3:image_size=64", "inception_v3 needs at least 75 px"),
        ("dinov2_small:image_size=160", "dinov2_small needs a multiple of its patch size, 14 px; take 154 or 168"),
        ("dinov2_small:alpha=0.5:image_size=154", "dinov2_small has no width multiplier"),
        ("hub:dinov2_large:image_size=154", "got random; only the weights of hub:dinov2_large say how it is built"),
        ("dinov2_smal", "did you mean dinov2_small?"),
        ("mobilenet_v2:weights=nowhere.h5", "got 'nowhere.h5'; allowed: imagenet, random, preset, or an existing file"),
        ("mobilenet_v2:weights=a:b.h5", "A path with a colon or a comma goes to --weights"),
        (" , ", "there is no name in it; expected NAME[:alpha=A]"),
    ],
)
def test_mistakes_say_where_and_the_way_out(tmp_path, text, said):
    message = mistakes_of(text, tmp_path=tmp_path)
    assert said in message and text.strip(" ,") in message


def test_all_mistakes_come_at_once(tmp_path):
    message = mistakes_of("resnet51,xception", sizes=["48", "a lot"], tmp_path=tmp_path, **{"backbone.alpha": 0.5})
    assert "resnet51" in message and "71 px" in message and "'a lot'" in message and "say NAME:alpha=..." in message
