"""What a prepared data set of tensorflow-datasets says about its examples: which features they have, and which are read."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from job.errors import UsageError


@contextmanager
def only_own_features() -> Iterator[None]:
    """Let features.json name only feature classes of tensorflow-datasets, which would import any module that it names.

    The library's own look-up is replaced for the while, because the file may hold names in JSON within JSON.
    """
    import tensorflow_datasets as tfds

    connector = tfds.features.FeatureConnector
    look_up = vars(connector)["cls_from_name"]
    own: list[Any] = [
        kind for kind in vars(tfds.features).values() if isinstance(kind, type) and issubclass(kind, connector)
    ]
    names = {name for kind in own for name in (f"{kind.__module__}.{kind.__name__}", *kind.ALIASES)}

    def look_up_own(cls: Any, name: str) -> Any:
        if name not in names:
            raise ValueError(f"its features.json names the Python class {name}, which is no feature of tensorflow-datasets")
        return look_up.__func__(cls, name)

    connector.cls_from_name = classmethod(look_up_own)
    try:
        yield
    finally:
        connector.cls_from_name = look_up


def image_and_label(data_set: str, info: Any, labelled: bool) -> tuple[str, str | None]:
    """The features to read, by their names in a record.

    Raises:
        UsageError: where these are not exactly two, or not what an image classifier is made from.
    """
    import tensorflow_datasets as tfds

    features = flat(info.features)
    named = [key for key in info.supervised_keys or () if isinstance(key, str)]
    images = [key for key, f in features.items() if type(f) is tfds.features.Image and np.issubdtype(f.np_dtype, np.integer)]
    labels = [key for key, f in features.items() if type(f) is tfds.features.ClassLabel]
    image, label = _only(images, named), _only(labels, named)
    if image is None or (labelled and label is None):
        has = ", ".join(f"{key or 'an example'}: {_kind(feature)}" for key, feature in sorted(features.items()))
        raise UsageError(
            f"{data_set} is no data set for image classification: an example needs one Image of whole numbers"
            f"{' and one ClassLabel' if labelled else ''}, and has {has}."
        )
    return image, label if labelled else None


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return f"{name} of {np.dtype(feature.np_dtype)}" if name == "Image" else name


def _only(keys: list[str], named: Collection[str]) -> str | None:
    """The one that the data set names for supervised learning, else the only one."""
    found = [key for key in keys if key in named] or keys
    return found[0] if len(found) == 1 else None


def flat(feature: Any, prefix: str = "") -> dict[str, Any]:
    """Features by their names in a record. What is in a sequence stays in it: it is not one of an example."""
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.FeaturesDict):
        return {prefix: feature}
    found: dict[str, Any] = {}
    for name, part in feature.items():
        found |= flat(part, f"{prefix}/{name}" if prefix else name)
    return found
