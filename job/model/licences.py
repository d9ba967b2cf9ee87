"""The licences of pre-trained weights, as those who publish them state them."""

from job.model.hub.architecture import FAMILIES
from job.model.hub.names import preset

_KERAS = "https://github.com/keras-team/keras/blob/31599d801d73d2ca07d7ff0ecf62da0164456895/docs/templates/applications.md"
_NOT_STATED = "https://keras.io/api/applications"
_OF_KERAS = {  # Keras has not stated any of the others.
    **dict.fromkeys(("densenet121", "densenet169", "densenet201"), "BSD-3-Clause"),
    **dict.fromkeys(("inception_resnet_v2", "inception_v3", "mobilenet", "mobilenet_v2"), "Apache-2.0"),
    **dict.fromkeys(("nasnet_large", "nasnet_mobile"), "Apache-2.0"),
    **dict.fromkeys(("vgg16", "vgg19"), "CC-BY-4.0"),
    **dict.fromkeys(("resnet50", "xception"), "MIT"),
}


def licence(name: str) -> tuple[str, str]:
    """Return the licence of a backbone's pre-trained weights, and where it is stated; in words if it is not known."""
    known = preset(name)
    if known is None:
        return (_OF_KERAS[name], _KERAS) if name in _OF_KERAS else ("not stated by Keras", _NOT_STATED)
    # Of SigLIP 2, the authors say which licence the software and the other material have, but not what the weights are.
    if known.architecture is None or known.name.startswith("siglip2"):
        return "see the preset's page", known.handle
    family = FAMILIES[known.architecture.family]
    return family.licence, family.stated_in
