"""Presets of KerasHub, which are folders with weights and their configuration: found in KERAS_HOME, or downloaded."""

import os
from http import HTTPStatus
from pathlib import Path

from job.console.places import place
from job.errors import StorageFailed, UsageError

CONFIG_FILE, WEIGHTS_FILE, CONVERTER_FILE = FILES = ("config.json", "model.weights.h5", "image_converter.json")
OPTIONAL_FILES = (CONVERTER_FILE,)


def keras_home() -> Path:
    """Return the folder of Keras, which has weights below `models`. Raises: UsageError."""
    return Path(place("KERAS_HOME", os.environ.get("KERAS_HOME", "~/.keras")))


def inside_models(handle: str) -> str:
    """Return the folder of a preset below `models`: the path of its handle, as in the cache of kagglehub."""
    scheme, _, path = handle.partition("://")
    return path if scheme == "kaggle" else f"{scheme}/{path}"


def preset_folder(name: str, handle: str) -> Path:
    """Return the folder of a preset on this machine: in KERAS_HOME, or in the cache of the client that downloads it.

    `handle` is kaggle://OWNER/MODEL/keras/VARIATION/VERSION or hf://OWNER/MODEL, `name` what `weights fetch` calls it.

    Raises:
        UsageError: if the package that downloads it is not installed.
        StorageFailed: if it is not here and cannot be downloaded.
    """
    kept = keras_home() / "models" / inside_models(handle)
    if (kept / CONFIG_FILE).is_file():
        return kept
    try:
        return _downloaded(handle)
    except ImportError as error:
        raise UsageError(
            f"{name}: {kept} does not exist, and the package {error.name}, which downloads it, is not installed. Run pip "
            f"install 'transfer-job[hub]'. Without a network: {how_to_fetch(name)}"
        ) from error
    except Exception as error:  # The clients raise errors of their own, of requests, and of httpx.
        said = " ".join(str(error).split())[:300]
        raise StorageFailed(
            f"{name}: {kept} does not exist, and {handle} could not be downloaded ({said}). {how_to_fetch(name)}"
        ) from error


def how_to_fetch(name: str) -> str:
    """Return what to do on a machine that cannot download weights. `name` is that of `name_to_fetch`."""
    return (
        f"On a machine with a network, run transfer-job weights fetch {name} --to DIR, where DIR is a folder, or a prefix "
        "gs:// or s3://. Here, give --weights DIR, or set KERAS_HOME to the folder: mount it, or build it into the image."
    )


def _downloaded(handle: str) -> Path:
    """Return the folder in the cache of the client, which downloads the files that are missing in it."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # Progress bars would break a log of JSON lines.
    os.environ.setdefault("KAGGLEHUB_VERBOSITY", "error")
    scheme, _, path = handle.partition("://")
    if scheme == "hf":
        from huggingface_hub import hf_hub_download as download
    else:
        from kagglehub import model_download as download
    folder = Path(download(path, CONFIG_FILE)).parent
    # On Hugging Face, a repository may have changed since the first file. The folder has the name of its revision.
    same = {"revision": folder.name} if scheme == "hf" else {}
    for name in (CONVERTER_FILE, WEIGHTS_FILE):
        try:
            download(path, name, **same)
        except Exception as error:  # The clients have many classes of errors.
            missing = getattr(getattr(error, "response", None), "status_code", None) == HTTPStatus.NOT_FOUND
            if not missing or name not in OPTIONAL_FILES:
                raise
    return folder
