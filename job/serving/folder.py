"""The folder of an exported model: its files are checked against its model.json, then its graph is loaded.

A model is code: its graph runs with all rights of this process. model.json has the SHA-256 of every other file, so the
SHA-256 of model.json identifies the whole model.
"""

import errno
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from job.cluster.tensorflow import import_tensorflow
from job.console.places import at_start
from job.decoding.deep import FULL_BIT_DEPTH, MIN_BIT_DEPTH
from job.decoding.rules import DecodeRules
from job.errors import JobError, UsageError
from job.sources.opening import opened
from job.storage.bucket.downloads import local_copy, local_folder
from job.storage.bucket.objects import is_remote, join, split_object
from job.storage.bucket.open import is_there
from job.storage.files import everything_below, storage_failed
from job.storage.published import PUBLISHED, Published
from job.storage.workdir import Workdir

if TYPE_CHECKING:
    import tensorflow as tf

_CARD = "model.json"
_ABOUT = {"README.md", "manifest.json"}  # Written after model.json. Nothing here reads them.
_SHOWN = 5
_WAY_OUT = "Copy the whole folder again, or run the job again."


class _Decoder(BaseModel):
    model_config = ConfigDict(strict=True)

    max_pixels: int
    min_side_px: int
    max_aspect_ratio: float


class ModelCard(BaseModel):
    """The part of model.json that predicting needs."""

    model_config = ConfigDict(strict=True)

    class_names: list[str]
    image_size: Annotated[int, Field(gt=0)]
    resize: Literal["squash", "crop", "pad"]
    bit_depth: Annotated[int, Field(ge=MIN_BIT_DEPTH, le=FULL_BIT_DEPTH)] = FULL_BIT_DEPTH  # Models of 0.3 do not say it.
    decoder: _Decoder
    sha256: dict[str, str]

    @property
    def rules(self) -> DecodeRules:
        """The rules by which photos are decoded for this model."""
        return DecodeRules(self.image_size, self.resize, bit_depth=self.bit_depth, **self.decoder.model_dump())


@dataclass(frozen=True)
class ExportedModel:
    """A model in memory. `place` is the folder that it was asked for. `loaded` keeps its variables alive."""

    place: str
    card: ModelCard
    loaded: "tf.Module"

    def gives(self, output: str) -> bool:
        """Return whether a signature that takes pixels has this output. Models before version 0.13 have fewer."""
        names = ("pixels", "features")
        return any(output in self.loaded.signatures[n].structured_outputs for n in names if n in self.loaded.signatures)

    def answers(self, pixels_NHWC: np.ndarray) -> dict[str, np.ndarray]:
        """Return probabilities (N, C) of uint8 pixels and, if the model has them, accepted (N,) and familiarity (N,)."""
        return self._run("pixels", pixels_NHWC, "probabilities", "accepted", "familiarity")

    def features(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Return the features (N, D) of uint8 pixels in the frozen backbone, if the model `gives` them."""
        return self._run("features", pixels_NHWC, "features")["features"]

    def _run(self, signature: str, pixels_NHWC: np.ndarray, *outputs: str) -> dict[str, np.ndarray]:
        import tensorflow as tf

        found = self.loaded.signatures[signature](pixels=tf.constant(pixels_NHWC))
        return {name: found[name].numpy() for name in outputs if name in found}


def load(model: str, sha256: str | None, tell: Callable[[str], None]) -> ExportedModel:
    """Load a model from its folder or from a bucket. `sha256` is the expected SHA-256 of its model.json; None for any.

    A run may be replacing the model at this moment. So if files do not match, the published model is loaded, if there is a
    published.json beside the folder. `tell` is then called with a line for the user.

    Raises:
        UsageError: if there is no model, it is incomplete or damaged, or `sha256` is another one.
        StorageFailed: if it cannot be read.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256.lower()):
        raise UsageError(f"--model-sha256 {sha256}: give the 64 hexadecimal digits that the run printed at the end.")
    model = _of_run(model)
    try:
        return _load(model, model, sha256)
    except UsageError:
        place = _in_service(model)
        exported = _load(model, place, sha256)
    if place != model:
        tell(f"{model} is being replaced, or damaged: using the published model in {place} instead.")
    return exported


@contextmanager
def verified(model: str, sha256: str | None = None) -> Iterator[tuple[Path, ModelCard]]:
    """Give the folder of a model, after a check of its files, and its model.json. The arguments are as in `load`.

    Raises:
        UsageError: if there is no model, or it is incomplete or damaged.
        StorageFailed: if it cannot be read.
    """
    place = _in_service(_of_run(model))
    with _opened(model, place) as folder:
        yield folder, _checked(model, folder, sha256)


def is_below(file: str, model: str) -> bool:
    """Return whether a file is in the folder of a model, after links are resolved."""
    if is_remote(file) or is_remote(model):
        return file.startswith(f"{model.rstrip('/')}/")
    return Path(file).resolve().is_relative_to(Path(model).resolve())


def _of_run(place: str) -> str:
    """Return the folder of the model if `place` is the output of a run with one; any other place as it is."""
    if not is_remote(place):
        below = os.path.join(place, "model")  # noqa: PTH118
        # Unlike Path.exists, this is False where the user may not look: the error comes when the model is opened.
        is_run = os.path.isfile(f"{place}/{PUBLISHED}") and os.path.isfile(f"{below}/model.json")  # noqa: PTH113
        return below if is_run else place
    with suppress(JobError):  # There is no published.json.
        if Published.load(Workdir(local_copy(join(place, PUBLISHED)).parent)).has_model:
            return join(place, "model")
    return place


def _in_service(model: str) -> str:
    """Return the complete copy of the model that published.json beside `model` names; without one, `model` itself."""
    whole = Path(model).resolve()
    with suppress(JobError):  # There is no published.json, or the model is a whole bucket.
        out, name = split_object(model) if is_remote(model) else (str(whole.parent), whole.name)
        at = local_copy(join(out, PUBLISHED)).parent if is_remote(model) else Path(out)
        published = Published.load(Workdir(at))
        if published.has_model and name == "model":
            return join(out, f"versions/{published.set}/model")
    return model


def _load(model: str, place: str, sha256: str | None) -> ExportedModel:
    """Load the model at `place`. Messages call it `model`, which the user gave."""
    try:
        with _opened(model, place) as folder:
            return _loaded(model, folder, _checked(model, folder, sha256))
    except OSError as error:
        if refusal := at_start(error, f"--model {model}", model):
            raise refusal from error
        raise storage_failed(OSError(error.errno, error.strerror), Path(model)) from error


@contextmanager
def _opened(model: str, place: str) -> Iterator[Path]:
    """Yield a path that keeps leading to this folder, even if another folder gets its name."""
    if is_remote(place):
        if not is_there(join(place, _CARD)):
            raise _no_model(model)
        place = str(local_folder(place))
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_model(model) from None
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _no_model(model: str) -> UsageError:
    return UsageError(f"--model {model}: there is no model.json in it; give the model/ folder of a run.")


def _checked(model: str, folder: Path, sha256: str | None) -> ModelCard:
    """Return model.json after checking the digests of all files in it. Raises: UsageError."""
    stream = _regular(folder / _CARD)
    if stream is None:
        raise _no_model(model)
    with stream:
        text = stream.readall()
    found = hashlib.sha256(text).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise UsageError(
            f"--model {model}: the SHA-256 of its model.json is {found}, not {sha256}. "
            "Give the right folder, or the digest that its run printed at the end."
        )
    try:
        card = ModelCard.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(f"--model {model}: its model.json is incomplete or not from this job. {_WAY_OUT}") from error
    if changed := [name for name, digest in card.sha256.items() if _digest(folder / name) != digest]:
        raise UsageError(f"--model {model}: missing or changed since the export: {', '.join(changed)}. {_WAY_OUT}")
    paths = (path for path in everything_below(folder) if path.is_symlink() or not path.is_dir())
    foreign = sorted({path.relative_to(folder).as_posix() for path in paths} - card.sha256.keys() - {_CARD} - _ABOUT)
    if foreign and sha256 is not None:
        raise UsageError(
            f"--model {model}: files that its model.json does not name: {', '.join(foreign[:_SHOWN])}. "
            "Copy the model/ folder of the run again, into a new folder."
        )
    return card


def _digest(file: Path) -> str:
    """Return the SHA-256 of a regular file, or "" if there is none."""
    stream = _regular(file)
    if stream is None:
        return ""
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _regular(file: Path) -> io.FileIO | None:
    """Open a regular file, or return None if there is none."""
    try:
        return opened(file)
    except ValueError:  # The name contains a null byte, so no file can have it.
        return None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ENXIO, errno.ENAMETOOLONG):
            return None
        raise


def _loaded(model: str, folder: Path, card: ModelCard) -> ExportedModel:
    """Load the graph and compare it with model.json, which may have been edited if no --model-sha256 was given."""
    tf = import_tensorflow()
    from job.serving.graph import class_names  # It imports TensorFlow, too.

    try:
        loaded = tf.saved_model.load(str(folder))
        signature = loaded.signatures["pixels"]
        takes = signature.structured_input_signature[1]["pixels"].shape.as_list()
        names = class_names(loaded)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:  # TensorFlow raises many kinds of exceptions for a damaged graph.
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"--model {model}: TensorFlow cannot load its graph ({said}). {_WAY_OUT}") from error
    if takes[1:] != [card.image_size, card.image_size, 3]:
        fault = f"photos of {card.image_size} px, but its graph takes {takes[1:]}"
        raise UsageError(f"--model {model}: its model.json says {fault}. {_WAY_OUT}")
    if names != card.class_names:
        said, has = next(pair for pair in zip_longest(card.class_names, names) if pair[0] != pair[1])
        fault = f"{said!r}, but its graph has {has!r}"
        raise UsageError(f"--model {model}: the class names of its model.json have {fault}. {_WAY_OUT}")
    return ExportedModel(model, card, loaded)
