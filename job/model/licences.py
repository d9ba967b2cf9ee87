"""The licences of pre-trained weights, as those who publish them state them."""

from job.model.hub.architecture import FAMILIES, FamilyName
from job.model.hub.names import preset

_KERAS = "https://github.com/keras-team/keras/blob/31599d801d73d2ca07d7ff0ecf62da0164456895/docs/templates/applications.md"
_OF_KERAS = {  # Keras has not stated any of the others.
    "densenet121": "BSD-3-Clause",
    "densenet169": "BSD-3-Clause",
    "densenet201": "BSD-3-Clause",
    "inception_resnet_v2": "Apache-2.0",
    "inception_v3": "Apache-2.0",
    "mobilenet": "Apache-2.0",
    "mobilenet_v2": "Apache-2.0",
    "nasnet_large": "Apache-2.0",
    "nasnet_mobile": "Apache-2.0",
    "resnet50": "MIT",
    "vgg16": "CC-BY-4.0",
    "vgg19": "CC-BY-4.0",
    "xception": "MIT",
}
_STATED: dict[FamilyName, str] = {
    "vit": "https://huggingface.co/google/vit-base-patch16-224",
    "deit": "https://github.com/facebookresearch/deit/blob/main/README_deit.md",
    "dinov2": "https://github.com/facebookresearch/dinov2/blob/main/MODEL_CARD.md",
    "dinov3": "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
    "siglip": "https://huggingface.co/google/siglip-base-patch16-224",
}


def licence(name: str) -> tuple[str, str]:
    """Return the licence of a backbone's pre-trained weights, and where it is stated; in words if it is not known."""
    known = preset(name)
    if known is None:
        return (
            (_OF_KERAS[name], _KERAS) if name in _OF_KERAS else ("not stated by Keras", "https://keras.io/api/applications")
        )
    # Of SigLIP 2, the authors say which licence the software and the other material have, but not what the weights are.
    if known.architecture is None or known.name.startswith("siglip2"):
        return "see the preset's page", known.handle
    family = known.architecture.family
    return FAMILIES[family].licence, _STATED[family]
