"""The weights of backbones: the names that there are, and places for machines without a network, filled and verified."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from job.cluster.tensorflow import import_tensorflow
from job.config import Config
from job.console.places import place as checked_place
from job.errors import UsageError
from job.model import backbones, fetched
from job.model.hub.names import PREFIX, PRESETS, preset
from job.model.licences import licence
from job.model.presets import FILES, inside_models, preset_folder
from job.runtime.session import Session
from job.sections import BackboneConfig
from job.storage.bucket.objects import join, refuse_credentials
from job.storage.files import digest_of_file


class Known(NamedTuple):
    """A name that weights can be fetched by. `stated_in` is where the licence is stated."""

    name: str
    licence: str
    stated_in: str
    source: str


class Fetched(NamedTuple):
    """The weights of a backbone in a place. `path` is that of the file, or of the folder of a preset."""

    name: str
    licence: str
    source: str
    path: str
    is_new: bool


class Verified(NamedTuple):
    """A file of a place, and what its digest says about it."""

    name: str
    path: str
    state: fetched.State


def known_weights() -> list[Known]:
    """Return all names that `fetch_weights` knows. Presets that are not listed have names too: `hub:PRESET`."""
    of_keras = [Known(name, *licence(name), "keras.applications") for name in backbones.BACKBONES]
    return of_keras + [Known(name, *licence(name), known.handle) for name, known in PRESETS.items()]


def fetch_weights(names: Sequence[str], to: str | os.PathLike[str], *, session: Session | None = None) -> Iterator[Fetched]:
    """Copy pre-trained weights into a folder or a prefix of a bucket, for machines without a network. Yield each of them.

    `names` are those of docs/backbones.md, those of MobileNets with `:alpha=A` or `:image_size=S` added if wanted. Weights
    that this machine does not have are downloaded. Files that are in the place already stay as they are.

    Raises:
        UsageError: if a name is unknown, or if other files are in the way.
        StorageFailed: if weights cannot be downloaded or written. The same call resumes.
        Stopped.
    """
    session = session or Session()
    refuse_credentials(to)
    place = checked_place("--to", os.fspath(to))
    wanted = [_wanted(name) for name in names]
    if Path(place).is_file():
        raise UsageError(f"--to {place}: this is a file. Give a folder, or a prefix of a bucket.")
    manifest = fetched.read_manifest(place)
    there = manifest.weights if manifest else {}
    for config, image_size in wanted:
        session.stop.check()
        name = backbones.name_to_fetch(config, image_size)
        weights = there.get(name)
        is_new = False
        if weights is None or any(state != "ok" for _, state in fetched.verified(place, weights)):
            is_new, (weights, files) = True, _found(config, image_size)
            fetched.add(place, name, weights, files)
        yield Fetched(name, weights.licence, weights.source, join(place, weights.path), is_new)


def verify_weights(place: str | os.PathLike[str]) -> list[Verified]:
    """Compare the files in a place that `fetch_weights` has filled with their digests. Objects of a bucket are downloaded.

    Raises:
        UsageError: if there is no manifest in the place.
        StorageFailed.
    """
    refuse_credentials(place)
    there = checked_place("the place", os.fspath(place))
    manifest = fetched.read_manifest(there)
    if manifest is None:
        raise UsageError(f"{join(there, fetched.MANIFEST)} does not exist. Give a place that weights fetch has filled.")
    return [
        Verified(name, join(there, path), state)
        for name, weights in manifest.weights.items()
        for path, state in fetched.verified(there, weights)
    ]


def _wanted(text: str) -> tuple[BackboneConfig, int]:
    """Return the backbone and the image size that a name of weights means. Raises: UsageError."""
    name, *parts = [text] if text.startswith(PREFIX) else text.split(":")
    values = dict(part.partition("=")[::2] for part in parts)
    if unknown := set(values) - {"alpha", "image_size"}:
        raise UsageError(f"{text}: {unknown.pop()!r} is not one of alpha=A, image_size=S. Write NAME:alpha=A:image_size=S.")
    assigned = [f"{'intake' if key == 'image_size' else 'backbone'}.{key}={value}" for key, value in values.items()]
    weights = "preset" if preset(name) else "imagenet"
    config = Config.load(None, assigned, {"backbone.name": name, "backbone.weights": weights})
    if mistakes := backbones.check(config.backbone):
        raise UsageError(f"{text} has mistakes:", *(f"  {mistake}" for mistake in mistakes))
    return config.backbone, config.intake.image_size


def _found(config: BackboneConfig, image_size: int) -> tuple[fetched.Weights, Mapping[str, Path]]:
    """Return what the manifest says about weights, and the files on this machine by their names in a place."""
    if known := preset(config.name):
        source, path = known.handle, f"models/{inside_models(known.handle)}"
        folder = preset_folder(config.name, source)
        files = {f"{path}/{name}": folder / name for name in FILES if (folder / name).is_file()}
    else:
        import_tensorflow()
        source, file = backbones.imagenet_file(config, image_size)
        path = f"models/{file.name}"
        files = {path: file}
    weights = fetched.Weights(
        backbone=config.name,
        alpha=config.alpha,
        path=path,
        source=source,
        licence=licence(config.name)[0],
        sha256={name: digest_of_file(file) for name, file in files.items()},
    )
    return weights, files
