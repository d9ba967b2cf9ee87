"""The licences of pre-trained weights, as those who publish them state them."""

from job.model.hub.architecture import FAMILIES
from job.model.hub.names import preset

# As Keras 2.1 stated them: github.com/keras-team/keras, docs/templates/applications.md. Nobody has stated any of the others.
_OF_KERAS = {
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


def licence(name: str) -> str:
    """Return the licence of a backbone's pre-trained weights, or in words that it is not known."""
    known = preset(name)
    if known is None:
        return _OF_KERAS.get(name, "not stated by Keras")
    return FAMILIES[known.architecture.family].licence if known.architecture else "see the page of the preset"
