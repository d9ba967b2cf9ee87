import pytest

from job.model import backbones
from job.model.hub.names import PRESETS, preset
from job.sections import BackboneConfig


@pytest.mark.parametrize(
    ("name", "handle", "is_in_table"),
    [
        ("dinov2_small", "kaggle://keras/dinov2/keras/dinov2_small/1", True),
        ("hub:dinov2_with_registers_base", "kaggle://keras/dinov2/keras/dinov2_with_registers_base/1", True),
        ("hub:dinov2_large", "kaggle://keras/dinov2/keras/dinov2_large", False),
        ("hub:siglip2_large_patch16_256", "kaggle://keras/siglip/keras/siglip2_large_patch16_256", False),
        ("hub:hf://keras/vit_x", "hf://keras/vit_x", False),
    ],
)
def test_names_lead_to_presets(name, handle, is_in_table):
    known = preset(name)
    assert known.handle == handle and (known.architecture is not None) == is_in_table


def test_names_of_keras_applications_are_no_presets():
    assert all(preset(name) is None for name in backbones.BACKBONES)
    assert not set(PRESETS) & set(backbones.BACKBONES)


def test_sizes_of_photos_are_multiples_of_the_patch_size():
    assert backbones.check_image_size("dinov2_small", 224) == []
    assert backbones.check_image_size("vit_base_patch32", 20) == [
        "image_size: got 20; vit_base_patch32 needs a multiple of its patch size, 32 px; take 32"
    ]


def test_settings_of_the_other_kind_of_backbone_are_refused():
    assert "has only the mean" in backbones.check(BackboneConfig(features="class"))[0]
    assert "no width multiplier" in backbones.check(BackboneConfig(name="dinov2_small", alpha=0.5))[0]
    assert "say how it is built" in backbones.check(BackboneConfig(name="hub:x", weights="random"))[0]
    assert backbones.check(BackboneConfig(name="dinov2_small", features="mean")) == []


def test_both_words_for_published_weights_mean_the_same():
    first, second = (backbones.fingerprint(BackboneConfig(weights=word)) for word in ("imagenet", "preset"))
    assert first == second != backbones.fingerprint(BackboneConfig(weights="random"))
