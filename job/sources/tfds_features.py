"""The features of a prepared data set of tensorflow-datasets: how they are loaded safely, and which are image and label."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from job.errors import UsageError


@contextmanager
def only_own_features() -> Iterator[None]:
    """Give a block in which features.json may name only feature classes of tensorflow-datasets, and no other Python module.

    It replaces the look-up function of the library: a check of the file would miss names in JSON inside a JSON string.
    """
    import tensorflow_datasets as tfds

    connector = tfds.features.FeatureConnector
    look_up = vars(connector)["cls_from_name"]
    kinds = [kind for kind in vars(tfds.features).values() if isinstance(kind, type)]
    own: list[Any] = [kind for kind in kinds if issubclass(kind, connector)]
    names = {name for kind in own for name in (f"{kind.__module__}.{kind.__name__}", *kind.ALIASES)}

    def look_up_own(cls: Any, name: str) -> Any:
        if name not in names:
            raise ValueError(f"its features.json names the Python class {name}, which is not in tensorflow-datasets")
        return look_up.__func__(cls, name)

    connector.cls_from_name = classmethod(look_up_own)
    try:
        yield
    finally:
        connector.cls_from_name = look_up


def image_and_label(data_set: str, info: Any, labelled: bool) -> tuple[str, str | None]:
    """Return the names of the image and the label feature in a record. Without `labelled`, the label is None.

    Raises: UsageError, if the image (of whole numbers) or, with `labelled`, the label is missing or not clear.
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
            f"{data_set} is not for image classification: an example needs one Image of whole numbers"
            f"{' and one ClassLabel' if labelled else ''}, and has {has}."
        )
    return image, label if labelled else None


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return f"{name} of {np.dtype(feature.np_dtype)}" if name == "Image" else name


def _only(keys: list[str], named: Collection[str]) -> str | None:
    """Return the key that the data set names for supervised learning, or else the only key; None if neither is clear."""
    found = [key for key in keys if key in named] or keys
    return found[0] if len(found) == 1 else None


def flat(feature: Any, prefix: str = "") -> dict[str, Any]:
    """Return the features by their names in a record, where nested features are joined by `/`. Sequences stay whole."""
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.FeaturesDict):
        return {prefix: feature}
    found: dict[str, Any] = {}
    for name, part in feature.items():
        found |= flat(part, f"{prefix}/{name}" if prefix else name)
    return found
