"""The files of ImageNet weights: found in KERAS_HOME, checked, and downloaded if they are missing."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from job.console.places import refused_at_start
from job.errors import StorageFailed
from job.model.presets import how_to_fetch, keras_home
from job.storage.bucket.downloads import scratch
from job.storage.files import beside, writing

_TIMEOUT_S = 60.0


@contextmanager
def files_of_keras(asked_for: str) -> Iterator[dict[str, Path]]:
    """Replace Keras' download function by `_file` while the block lasts. Yield the files that it gave, by their address.

    Keras itself downloads to the final name, accepts a truncated file, and ignores a KERAS_HOME that it cannot write to. The
    name of the file that a backbone needs is known only while Keras builds it. `asked_for` is what `weights fetch` calls it.
    """
    from keras.src.utils import file_utils

    given: dict[str, Path] = {}

    def get_file(name: str, origin: str, *, file_hash: str | None = None, **_: Any) -> str:
        given[origin] = _file(name, origin, asked_for, file_hash)
        return str(given[origin])

    of_keras = file_utils.get_file
    file_utils.get_file = get_file
    try:
        yield given
    finally:
        file_utils.get_file = of_keras


def _file(name: str, origin: str, asked_for: str, file_hash: str | None = None) -> Path:
    """Return the path of a weights file, by its name and address. `file_hash` is its MD5 or SHA-256.

    Raises:
        UsageError: if this user may not read the file.
        StorageFailed: if it is missing or damaged, and cannot be downloaded.
    """
    home = keras_home() / "models" / name
    kept = scratch(origin) / name  # Used if KERAS_HOME is not writable, as in the container image.
    fault = f"{home} does not exist"
    for file in (home, kept):
        if file.is_file():
            with refused_at_start(f"The ImageNet weights {file}", file):
                damage = _damage(file, file_hash)
            if not damage:
                return file
            fault = f"{file} is damaged ({damage})"
    file = home if _may_be_written(home) else kept
    try:
        _download(origin, file, file_hash)
    except (OSError, ValueError, HTTPException, StorageFailed) as error:
        raise StorageFailed(
            f"ImageNet weights: {fault}, and {origin} could not be downloaded ({error}). {how_to_fetch(asked_for)}"
        ) from error
    return file


def _damage(file: Path, digest: str | None) -> str:
    """Return what is wrong with a file, or "". Without a digest, its HDF5 length is checked. Raises: OSError."""
    import h5py

    with file.open("rb") as content:
        if digest is not None:
            found = hashlib.file_digest(content, "md5" if len(digest) == 32 else "sha256").hexdigest()
            return "" if found == digest else f"its digest is {found} instead of {digest}"
    try:
        h5py.File(file).close()  # An HDF5 file contains its own length, so opening a truncated one fails.
    except OSError as error:
        if error.errno:
            raise
        return str(error)
    return ""


def _may_be_written(file: Path) -> bool:
    existing = next(folder for folder in file.parents if folder.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def _download(origin: str, file: Path, digest: str | None) -> None:
    """Download a file, completely or not at all. Raises: OSError, ValueError, HTTPException."""
    response = urllib.request.urlopen(origin, timeout=_TIMEOUT_S)  # noqa: S310  # The address is from Keras' code.
    with response, writing(file, beside(file)) as part:
        with part.open("wb") as target:
            shutil.copyfileobj(response, target)
        if damage := _damage(part, digest):
            raise ValueError(f"the downloaded file is damaged: {damage}")
