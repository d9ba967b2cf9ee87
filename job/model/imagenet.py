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

from job.console.places import place, refused_at_start
from job.errors import StorageFailed
from job.storage.bucket.downloads import scratch
from job.storage.files import beside, writing

_TIMEOUT_S = 60.0


@contextmanager
def files_of_keras() -> Iterator[None]:
    """Replace Keras' download function by `_file` while the block lasts.

    Keras itself downloads to the final name, accepts a truncated file, and ignores a KERAS_HOME that it cannot write to. The
    name of the file that a backbone needs is known only while Keras builds it.
    """
    from keras.src.utils import file_utils

    of_keras = file_utils.get_file
    file_utils.get_file = _file
    try:
        yield
    finally:
        file_utils.get_file = of_keras


def _file(name: str, origin: str, *, file_hash: str | None = None, **_: Any) -> str:
    """Return the path of a weights file. The arguments are those of `keras.utils.get_file`.

    Raises:
        UsageError: if this user may not read the file.
        StorageFailed: if it is missing or damaged, and cannot be downloaded.
    """
    home = Path(place("KERAS_HOME", os.environ.get("KERAS_HOME", "~/.keras"))) / "models" / name
    kept = scratch(origin) / name  # Used if KERAS_HOME is not writable, as in the container image.
    fault = f"{home} does not exist"
    for file in (home, kept):
        if file.is_file():
            with refused_at_start(f"The ImageNet weights {file}", file):
                damage = _damage(file, file_hash)
            if not damage:
                return str(file)
            fault = f"{file} is damaged ({damage})"
    file = home if _may_be_written(home) else kept
    try:
        _download(origin, file, file_hash)
    except (OSError, ValueError, HTTPException, StorageFailed) as error:
        raise StorageFailed(
            f"ImageNet weights: {fault}, and it could not be downloaded ({error}). Copy {origin} to {home}, or give "
            "--weights FILE."
        ) from error
    return str(file)


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
