"""Places with fetched weights, for machines without a network: a folder or a prefix of a bucket, with a manifest.

A place has the layout of KERAS_HOME: files of keras.applications in `models`, presets of KerasHub in folders below it. So a
folder may be used as KERAS_HOME, too. Only the manifest is ever replaced, and nothing is removed.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from job.errors import UsageError
from job.storage.bucket.downloads import local_copy
from job.storage.bucket.objects import is_remote, join
from job.storage.bucket.open import open_objects
from job.storage.files import beside, copy_file, digest_of_file, to_json, writing
from job.storage.ledger import is_inside

MANIFEST = "weights.json"
State = Literal["ok", "changed", "missing"]


class Weights(BaseModel):
    """The weights of a backbone in a place. `path`, of a file or a folder, and the names in `sha256` are relative to it."""

    model_config = ConfigDict(frozen=True, strict=True)

    backbone: str
    alpha: float | None
    path: str
    source: str
    licence: str
    sha256: Mapping[str, str]


class Manifest(BaseModel):
    """The content of weights.json: weights by the name that they were fetched by."""

    model_config = ConfigDict(strict=True)

    made_by: Literal["transfer-job weights fetch"]
    weights: dict[str, Weights]

    def of(self, backbone: str, alpha: float | None, place: str) -> Weights:
        """Return the weights of a backbone in the place. Raises: UsageError, if there are none, or several."""
        found = {w.path: w for w in self.weights.values() if (w.backbone, w.alpha or 1) == (backbone, alpha or 1)}
        if len(found) == 1:
            return next(iter(found.values()))
        if found:  # MobileNets have other weights for other image sizes.
            files = ", ".join(join(place, path) for path in sorted(found))
            raise UsageError(f"--weights {place}: it has several weights of {backbone}. Give one of them: {files}")
        wanted = backbone if alpha is None else f"{backbone}:alpha={alpha:g}"
        raise UsageError(
            f"--weights {place}: it has no weights of {wanted}, only of {', '.join(self.weights)}. On a machine with a "
            f"network, run transfer-job weights fetch {wanted} --to {place}"
        )


def read_manifest(place: str) -> Manifest | None:
    """Return the manifest of a folder or prefix; None if it has none.

    Raises:
        UsageError: if it is no manifest of this program, or names files outside of the place.
    """
    file = _local(place, MANIFEST)
    if file is None:
        return None
    with suppress(ValidationError):
        manifest = Manifest.model_validate_json(file.read_bytes())
        if all(is_inside(name) for weights in manifest.weights.values() for name in (weights.path, *weights.sha256)):
            return manifest
    raise UsageError(
        f"{join(place, MANIFEST)}: this is not what transfer-job weights fetch has written. Give another place."
    )


def verified(place: str, weights: Weights) -> Iterator[tuple[str, State]]:
    """Yield the files of weights in a place, and what their digests say. Objects of a bucket are downloaded for it."""
    for name, expected in weights.sha256.items():
        file = _local(place, name)
        yield name, "missing" if file is None else "ok" if digest_of_file(file) == expected else "changed"


def add(place: str, name: str, weights: Weights, files: Mapping[str, Path]) -> None:
    """Copy files into a place, under the names in `weights.sha256`, and write the weights into its manifest.

    Raises:
        UsageError: if a file with other content has one of the names. Nothing is written then.
        StorageFailed.
    """
    states = dict(verified(place, weights))
    if in_the_way := [file for file, state in states.items() if state == "changed"]:
        raise UsageError(
            f"{join(place, in_the_way[0])} is in the way: it is not the file of {name}. Move it somewhere else, or give "
            "another --to."
        )
    for file, state in states.items():
        if state == "missing":
            _write(place, file, files[file])
    manifest = read_manifest(place) or Manifest(made_by="transfer-job weights fetch", weights={})
    manifest.weights[name] = weights
    _write(place, MANIFEST, to_json(manifest.model_dump()), may_replace=True)


def _local(place: str, name: str) -> Path | None:
    """Return a file of the place on this machine, or None if there is none."""
    if is_remote(place):
        return local_copy(join(place, name)) if open_objects(place).find(name) else None
    file = Path(place, name)
    return file if file.is_file() else None


def _write(place: str, name: str, content: Path | bytes, *, may_replace: bool = False) -> None:
    if is_remote(place):
        objects = open_objects(place)
        found = objects.find(name) if may_replace else None
        objects.write(name, content, replaces=found.version if found else "")
        return
    file = Path(place, name)
    with writing(file, beside(file)) as part:
        if isinstance(content, bytes):
            part.write_bytes(content)
        else:
            copy_file(content, part)
