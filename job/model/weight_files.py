"""Files of backbone weights: found on this machine or in a bucket, checked before they are read, and loaded."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from job.console.places import at_start
from job.errors import UsageError
from job.model.fetched import MANIFEST, read_manifest
from job.model.hub.names import preset
from job.model.presets import CONFIG_FILE, FILES, OPTIONAL_FILES, preset_folder
from job.sections import PUBLISHED_WEIGHTS, BackboneConfig
from job.storage.bucket.downloads import local_copy, local_folder
from job.storage.bucket.objects import is_remote, join, parts_of
from job.storage.bucket.open import is_there
from job.storage.files import digest_of, digest_of_file

if TYPE_CHECKING:
    import h5py
    import keras


def check_place(weights: str) -> list[str]:
    """Return the mistakes in a path or URI of weights that can be found without reading them. Raises: UsageError."""
    if is_remote(weights):
        parts_of(weights)  # Refuses a URI with credentials before a message below could repeat it.
        return []
    path = Path(weights)
    if path.is_dir():
        if any((path / name).is_file() for name in (MANIFEST, CONFIG_FILE)):
            return []
        return [
            f"backbone.weights: {weights} is neither a preset ({CONFIG_FILE} is missing) nor a folder that transfer-job "
            f"weights fetch has made ({MANIFEST} is missing); give one of these, or a file"
        ]
    if not path.is_file():
        return [f"backbone.weights: got {weights!r}; allowed: imagenet, random, preset, or an existing file or folder"]
    if path.suffix != ".h5":
        return [f"backbone.weights: {weights} has an unknown format; give a .weights.h5, or a legacy .h5 without top"]
    return []


def local_weights(config: BackboneConfig) -> Path:
    """Return the weights file, or the folder of the preset, on this machine. If it is elsewhere, it is downloaded.

    Raises:
        UsageError: if there is nothing of the name, or no weights of the backbone in the place.
        StorageFailed: if the preset is not here and cannot be downloaded.
    """
    place = config.weights
    if place in PUBLISHED_WEIGHTS and (known := preset(config.name)):
        return preset_folder(config.name, known.handle)
    manifest = None if place.endswith(".h5") else read_manifest(place)
    if manifest is None:
        return _brought(place)
    weights = manifest.of(config.name, config.alpha, place)
    local = _brought(join(place, weights.path))
    for name, sha256 in weights.sha256.items():
        file = local / Path(name).relative_to(weights.path)
        if not file.is_file() or _digest(file) != sha256:
            raise UsageError(f"--weights {place}: {name} has changed since it was fetched. Run transfer-job weights verify.")
    return local


def _brought(place: str) -> Path:
    """Return a weights file, or the folder of a preset, on this machine."""
    if is_remote(place):
        return local_copy(place) if is_there(place) else _checked(local_folder(place), place)
    return _checked(Path(place), place)


def _checked(path: Path, place: str) -> Path:
    """Return the path of a file, or of a folder that has a whole preset. Raises: UsageError."""
    for file in (path / name for name in FILES if path.is_dir()):
        if not file.is_file() and file.name not in OPTIONAL_FILES:
            raise UsageError(f"--weights {place}: {file.name} is missing. Give a folder that save_to_preset has written.")
        if not file.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"--weights {place}: {file.name} is a link out of the folder. Copy the file itself (cp -L).")
    return path


def digest_of_weights(path: Path) -> str:
    """Return a digest of the content of weights that `local_weights` found: of a file, or of what is read of a preset."""
    if not path.is_dir():
        return _digest(path)
    return digest_of({name: _digest(path / name) for name in FILES if (path / name).is_file()})


def _digest(file: Path) -> str:
    """Return the SHA-256 of a file. It is read once, although a run asks for it several times."""
    status = file.stat()
    return _digest_of_version(file, status.st_mtime_ns, status.st_size)


@cache
def _digest_of_version(file: Path, _mtime_ns: int, _num_bytes: int) -> str:
    return digest_of_file(file)


def load_weights(model: keras.Model, file: Path) -> None:
    """Load weights from a file. Shapes are checked first, because Keras skips what does not fit, silently or vaguely."""
    refuse_links(file)
    with refused(file):
        stored = _stored_shapes(file, model)
    expected = [(layer.name, [tuple(w.shape) for w in layer.weights]) for layer in model.layers if layer.weights]
    for (name, shapes), (stored_name, stored_shapes) in zip(expected, stored, strict=False):
        if shapes != stored_shapes:
            raise UsageError(
                f"--weights {file}: layer {name} has weights of {in_words(shapes)}, the file's {stored_name} of "
                f"{in_words(stored_shapes)}. Set backbone.name and backbone.alpha to those of the file."
            )
    if len(expected) != len(stored):
        raise UsageError(
            f"--weights {file}: {len(stored)} layers with weights in the file, {len(expected)} in {model.name}. "
            "Give a file of this backbone, without its top."
        )
    with warnings.catch_warnings(), refused(file):
        warnings.simplefilter("ignore")  # Keras warns about groups that older files do not have.
        model.load_weights(file)


@contextmanager
def refused(file: Path) -> Iterator[None]:
    """Turn errors in the block about the content of a weights file into a UsageError."""
    try:
        yield
    except (MemoryError, UsageError):
        raise
    except Exception as error:  # For a file with other content, h5py and Keras raise many kinds of exceptions.
        if isinstance(error, OSError) and error.errno:
            raise at_start(error, f"--weights {file}", file) or error from None
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--weights {file}: this is no file of Keras weights without top ({said}). Give a .weights.h5 that Keras saved."
        ) from error


def refuse_links(file: Path) -> None:
    """Refuse an HDF5 file that refers to other files, because its digest would not cover their content."""
    import h5py

    elsewhere: list[str] = []

    def look(name: str, link: h5py.HardLink | h5py.SoftLink | h5py.ExternalLink) -> None:
        found = content[name] if isinstance(link, h5py.HardLink) else None
        if found is None or (isinstance(found, h5py.Dataset) and (found.is_virtual or found.external)):
            elsewhere.append(name)

    with refused(file), h5py.File(file) as content:
        content.visititems_links(look)
    if elsewhere:
        raise UsageError(
            f"--weights {file}: {elsewhere[0]} in it is a link, or lies in another file. Save the weights again with Keras."
        )


def _stored_shapes(file: Path, model: keras.Model) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Return the name and weight shapes of each layer in the file that has weights, in the order of the model."""
    import h5py

    with h5py.File(file) as content:
        if "layers" in content:
            return _shapes_of_keras_3(content["layers"], model)
        group = content.get("model_weights", content)
        names = [_text(name) for name in group.attrs["layer_names"]]
        weights = {name: [_text(w) for w in group[name].attrs["weight_names"]] for name in names}
        return [(name, [tuple(group[name][w].shape) for w in weights[name]]) for name in names if weights[name]]


def _shapes_of_keras_3(layers: h5py.Group, model: keras.Model) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Read the shapes from a file of Keras 3, which names layers by class and a counter: conv2d, conv2d_1, ..."""
    from keras.src.utils.naming import to_snake_case

    counter: Counter[str] = Counter()
    found = []
    for layer in model.layers:
        kind = to_snake_case(type(layer).__name__)
        number = counter[kind]
        counter[kind] += 1
        if layer.weights:
            name = f"{kind}_{number}" if number else kind
            variables = layers[name]["vars"] if name in layers and "vars" in layers[name] else {}
            found.append((name, [tuple(variables[str(k)].shape) for k in range(len(variables))]))
    return found


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def in_words(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes) or "no shape"
