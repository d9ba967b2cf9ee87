"""Data sets of tensorflow-datasets by their name: `tfds:NAME[/CONFIG][:VERSION]`.

tensorflow-datasets prepares them, and describes their features, classes, splits and shards. `tfrecords.py` reads the
records.
"""

import multiprocessing
import os
import re
from collections.abc import Collection
from contextlib import suppress
from difflib import get_close_matches
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from job.console.log import LOG
from job.errors import DataUnusable, StorageFailed, UsageError
from job.runtime.children import without_main
from job.sources.base import SPLITS, in_words
from job.sources.tfds_features import flat, image_and_label, only_own_features
from job.sources.tfrecords import NamedSource, Shard
from job.storage.bucket.downloads import fetch, scratch
from job.storage.bucket.objects import Stored, is_remote, join
from job.storage.bucket.open import open_objects
from job.storage.bucket.parallel import each
from job.storage.files import digest_of

_NAME = re.compile(r"tfds:([A-Za-z]\w*)(?:/(\w[\w.+-]*))?(?::(\d+\.\d+\.\d+))?")
_PREPARED = re.compile(r"(?:([^/]+)/)?(\d+\.\d+\.\d+)/dataset_info\.json")
_READABLE = "tfrecord"
_ANSWER_WITHIN_S = 5.0
_MAX_FAULT_BYTES = 1 << 16


class _DataSet(NamedTuple):
    """The name of a data set. `config` and `version` are empty if none is given; many data sets have no configurations."""

    name: str
    config: str
    version: str

    @property
    def folder(self) -> str:
        return "/".join(filter(None, self))

    def __str__(self) -> str:
        return f"tfds:{self.name}{self.config and '/'}{self.config}{self.version and ':'}{self.version}"


def open_named(uri: str, data_dir: str | None, *, labelled: bool = True) -> NamedSource:
    """Return the data set that a `tfds:` URI names, and prepare it if it is not prepared yet.

    `data_dir` is the folder or bucket of prepared data sets; None means `TFDS_DATA_DIR`, or the default of
    tensorflow-datasets. Without a version, the newest prepared version is used. Without `labelled`, every split is read.

    Raises:
        UsageError: if there is no such data set, configuration or version, or it is not for image classification.
        StorageFailed: if it is not prepared and cannot be prepared on this machine. The message says what to run.
        DataUnusable: if its prepared files cannot be read.
    """
    import tensorflow_datasets as tfds

    match = _NAME.fullmatch(uri)
    if match is None:
        raise UsageError(f"--data {uri}: give tfds:NAME, tfds:NAME/CONFIG or either with a version, as in tfds:mnist:3.0.1.")
    wanted = _DataSet(match[1], match[2] or "", match[3] or "")
    store = data_dir or tfds.core.constants.get_default_data_dir()
    if not is_remote(store):
        store = str(Path(store).expanduser().resolve())
    prepared = _prepared(wanted.name, store)
    data_set = _choose(wanted, prepared) or _prepare(wanted, prepared, store, labelled)
    folder = _fetch(store, data_set) if is_remote(store) else Path(store) / data_set.folder
    return _open_folder(data_set, folder, labelled)


def _prepared(name: str, store: str) -> set[_DataSet]:
    if is_remote(store):
        files = [stored.name.partition("/")[2] for stored in open_objects(store).list(f"{name}/")]
    else:
        root = Path(store) / name
        found = [*root.glob("*/dataset_info.json"), *root.glob("*/*/dataset_info.json")]
        files = [file.relative_to(root).as_posix() for file in found]
    return {_DataSet(name, match[1] or "", match[2]) for file in files if (match := _PREPARED.fullmatch(file))}


def _choose(wanted: _DataSet, prepared: Collection[_DataSet]) -> _DataSet | None:
    """Return the newest prepared version of the data set; None if there is none. Raises: UsageError, if it is not clear."""
    configs = sorted({data_set.config for data_set in prepared})
    config = wanted.config
    if not config and any(configs):
        builder = _builder_class(wanted.name)
        if builder is not None and builder.BUILDER_CONFIGS:
            config = builder.default_builder_config.name
        elif len(configs) > 1:
            raise UsageError(
                f"--data {wanted}: several configurations are prepared: {in_words(configs, 20)}. "
                f"Give tfds:{wanted.name}/CONFIG."
            )
        else:
            config = configs[0]
    fitting = [d for d in prepared if d.config == config and wanted.version in ("", d.version)]
    return max(fitting, key=lambda data_set: [int(part) for part in data_set.version.split(".")], default=None)


def _prepare(wanted: _DataSet, prepared: Collection[_DataSet], store: str, labelled: bool) -> _DataSet:
    """Download a data set and prepare it below `store`.

    This is done in a child process, because it uses TensorFlow, whose devices are set up later.
    """
    builder = _builder(wanted, prepared, store)
    config = builder.builder_config.name if builder.builder_config else ""
    data_set = _DataSet(wanted.name, config, str(builder.version))
    image_and_label(str(data_set), builder.info, labelled)  # Refuses an unusable data set before the download.
    missing, command = f"{data_set} is not prepared in {store}", _command(data_set)
    if is_remote(store):
        there = join(store, data_set.folder)
        raise StorageFailed(
            f"{missing}. On a machine with network access, run {command}. Then copy DIR/{data_set.folder} to {there}."
        )
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise UsageError(
            f"{missing}, and must be downloaded by hand: {instructions} Then run {command}, and give --tfds-dir DIR."
        )
    addresses = [address for address in builder.url_infos or () if address.startswith("http")]
    if addresses and not _answers(addresses[0]):
        fault = f"{addresses[0]} cannot be reached"
    else:
        LOG.say(f"{data_set}: downloading and preparing it in {store}.")
        fault = _in_a_process_of_its_own(type(builder), store, config, data_set.version)
    if fault and data_set not in _prepared(wanted.name, store):  # Another worker may have been faster.
        raise StorageFailed(
            f"{missing}: {fault}. On a machine with network access, run {command}. Then copy DIR to this machine, and give "
            "--tfds-dir DIR."
        )
    return data_set


def _command(data_set: _DataSet, **how: str) -> str:
    """Return the shell command that prepares a data set. It avoids the program `tfds`, which needs Apache Beam to start."""
    name, arguments = str(data_set).partition(":")[2], ", ".join(f"{key}={value!r}" for key, value in how.items())
    call = f"tfds.builder({name!r}, data_dir='DIR').download_and_prepare({arguments})"
    return f'python -c "import tensorflow_datasets as tfds; {call}"'


def _in_a_process_of_its_own(builder: Any, store: str, config: str, version: str) -> str:
    """Prepare a data set in a child process, and return what went wrong, or an empty string.

    The child process reads files from the network, so its answer is taken as bytes and never unpickled.
    """
    spawning = multiprocessing.get_context("spawn")
    near_end, far_end = spawning.Pipe(duplex=False)
    is_shown = os.isatty(2) and not LOG.as_json
    process = spawning.Process(target=_download_and_prepare, args=(far_end, builder, store, config, version, is_shown))
    with without_main():
        process.start()
    far_end.close()
    try:
        return near_end.recv_bytes(_MAX_FAULT_BYTES).decode("utf-8", "replace")
    except (EOFError, OSError):
        return "its process ended without an answer"
    finally:
        process.kill()
        process.join()
        near_end.close()


def _download_and_prepare(pipe: Connection, builder: Any, store: str, config: str, version: str, is_shown: bool) -> None:
    """Prepare a data set, and send what went wrong, or an empty string. Show its progress only if `is_shown`."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    with open(os.devnull, "wb") as nowhere:
        os.dup2(2 if is_shown else nowhere.fileno(), 1)
        os.dup2(2 if is_shown else nowhere.fileno(), 2)
    import tensorflow_datasets as tfds

    how = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder(data_dir=store, config=config or None, version=version).download_and_prepare(download_config=how)
    except Exception as error:  # The code of each data set may raise something else.
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    else:
        fault = ""
    pipe.send_bytes(fault.encode("utf-8", "replace"))


def _builder(wanted: _DataSet, prepared: Collection[_DataSet], store: str) -> Any:
    """Return the builder of the data set. Raises: UsageError, if this tensorflow-datasets cannot prepare it."""
    import tensorflow_datasets as tfds

    there = in_words(sorted(map(str, prepared)), 20) or "none of this name"
    builder_class = _builder_class(wanted.name)
    if builder_class is None and prepared:
        raise UsageError(f"--data {wanted} is not prepared in {store}. Prepared there: {there}.")
    if builder_class is None:
        known = set(tfds.list_builders(with_community_datasets=False))
        if not is_remote(store) and Path(store).is_dir():
            known |= {folder.name for folder in Path(store).iterdir()}
        way_out = "See https://www.tensorflow.org/datasets/catalog for all names."
        if near := get_close_matches(wanted.name.lower(), sorted(known)):
            way_out = f"Did you mean {' or '.join(near)}?"
        unknown = f"tensorflow-datasets {tfds.__version__} does not know {wanted.name}, and it is not prepared in {store}"
        raise UsageError(f"--data {wanted}: {unknown}. {way_out}")
    configs = list(builder_class.builder_configs)
    if wanted.config and wanted.config not in configs:
        way_out = f"Choose one of {in_words(sorted(configs), 20)}." if configs else "It has none: leave it out."
        raise UsageError(f"--data {wanted}: there is no configuration {wanted.config!r}. {way_out}")
    where = str(scratch(store)) if is_remote(store) else store  # The library must not access a bucket by itself.
    builder = builder_class(data_dir=where, config=wanted.config or None)
    if wanted.version not in ("", str(builder.version)):
        raise UsageError(
            f"--data {wanted}: there is no version {wanted.version}. tensorflow-datasets {tfds.__version__} makes "
            f"{builder.version}. Prepared in {store}: {there}."
        )
    return builder


def _builder_class(name: str) -> Any:
    """Return the builder class of a data set; None if tensorflow-datasets does not know the name. It uses no network."""
    import tensorflow_datasets as tfds

    return tfds.builder_cls(name) if name in tfds.list_builders(with_community_datasets=False) else None


def _answers(address: str) -> bool:
    """Return whether a server answers within 10 s. tensorflow-datasets would try for minutes, and leave folders behind."""
    import requests

    answers: list[bool] = []

    def ask() -> None:
        with suppress(requests.RequestException):
            answers.append(requests.head(address, timeout=_ANSWER_WITHIN_S).status_code < 500)

    thread = Thread(target=ask, daemon=True)  # The time limit of requests does not include the look-up of the host name.
    thread.start()
    thread.join(2 * _ANSWER_WITHIN_S)
    return any(answers)


def _fetch(store: str, data_set: _DataSet) -> Path:
    """Return a local copy of a prepared folder in a bucket. Files with the right size are not fetched again."""
    objects = open_objects(join(store, data_set.folder))
    found = [stored for stored in objects.list() if "/" not in stored.name]
    folder = scratch(f"{objects.uri} {digest_of(found)}")

    def bring(stored: Stored) -> None:
        file = folder / stored.name
        if not file.is_file() or file.stat().st_size != stored.num_bytes:
            fetch(objects, stored.name, file, stored.version)

    each(bring, found)
    return folder


def _open_folder(data_set: _DataSet, folder: Path, labelled: bool) -> NamedSource:
    import tensorflow_datasets as tfds

    try:
        with only_own_features():
            info = tfds.builder_from_directory(folder).info
            kinds = {str(info.file_format.value), *(kind.value for kind in info.alternative_file_formats)}
            if _READABLE in kinds:
                info = tfds.builder_from_directory(folder, file_format=_READABLE).info
        shards = {
            split.name: tuple(map(Shard, (Path(file).name for file in split.filepaths), split.shard_lengths))
            for split in info.splits.values()
        }
    except Exception as error:  # An old version, a custom feature and damaged JSON each raise something else.
        said = " ".join(str(error).split())[:500]
        raise DataUnusable(
            f"{folder}: {data_set} cannot be read ({said}). Delete the folder and prepare it again."
        ) from error
    if _READABLE not in kinds:
        way_out = f"Prepare it in another folder: {_command(data_set, file_format=_READABLE)}."
        raise UsageError(
            f"{data_set} is prepared as {in_words(sorted(kinds), 20)}, and only {_READABLE} is read here. {way_out}"
        )
    image, label = image_and_label(str(data_set), info, labelled)
    if labelled and "train" not in map(SPLITS.get, map(str.lower, shards)):
        raise UsageError(
            f"{data_set}: there is nothing to train on: it has no split train, but {in_words(sorted(shards), 20)}."
        )
    names = flat(info.features)[label].names if label is not None else ()
    return NamedSource(str(data_set), folder, shards, image, label, tuple(names))
