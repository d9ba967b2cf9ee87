"""The layout that TensorFlow Serving, and what is built on it, loads a model from: BASE/VERSION/saved_model.pb.

The base is the name of the model, and a server takes its largest version. The first requests to a model are slow, so the
server is given some that it sends to itself before it takes others: a TFRecord of PredictionLog messages. Only four short
messages of TensorFlow Serving are needed for it. They are encoded here, because the package with all of them requires
`tensorflow`, which must not be installed beside `tensorflow-cpu`. docs/serving.md shows the commands.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from job.cluster.tensorflow import import_tensorflow
from job.serving.folder import ModelCard, verified
from job.storage.bucket.objects import is_remote, join
from job.storage.bucket.open import open_objects
from job.storage.files import copy_file, own_mark, storage_errors, sync, sync_all

if TYPE_CHECKING:
    from tensorflow.core.framework.tensor_pb2 import TensorProto

WARM_UP = "assets.extra/tf_serving_warmup_requests"
_SAVED_MODEL = ("variables/", "assets/", "fingerprint.pb", "saved_model.pb")  # In the order of writing.


def lay_out(model: str, base: str) -> str:
    """Copy a model as the next version below `base`, a folder or the prefix of a bucket. Return the place of the version.

    `model` is the folder of a model, or the output of a run. Its files are checked against its model.json, which is copied,
    too, to assets.extra. What is below `base` already is never changed.

    Raises:
        UsageError: if there is no such model, or it is damaged.
        StorageFailed: if the files cannot be written. In a bucket, the version may be there in part.
    """
    with verified(model) as (folder, card):
        names = [name for part in _SAVED_MODEL for name in card.sha256 if name.startswith(part)]
        files: dict[str, Path | bytes] = {"assets.extra/model.json": folder / "model.json", WARM_UP: warm_up(card)}
        files |= {name: folder / name for name in names}
        return _upload(files, base) if is_remote(base) else _copy(files, Path(base))


def _copy(files: Mapping[str, Path | bytes], base: Path) -> str:
    with storage_errors(base), _scratch(base) as scratch:
        for name, content in files.items():
            if isinstance(content, Path):
                copy_file(content, scratch / name)
            else:
                (scratch / name).parent.mkdir(exist_ok=True)
                (scratch / name).write_bytes(content)
        sync_all(scratch)
        place = base / str(_next_version(path.name for path in base.iterdir()))
        os.rename(scratch, place)  # noqa: PTH104  # It fails if another program has just written the same version.
        sync(base)
    return str(place)


@contextmanager
def _scratch(base: Path) -> Iterator[Path]:
    """Give an empty folder in `base`, and remove it unless it was renamed. Its name is not a number: servers ignore it."""
    base.mkdir(parents=True, exist_ok=True)
    folder = base / f".{own_mark()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _upload(files: Mapping[str, Path | bytes], base: str) -> str:
    objects = open_objects(base)
    version = _next_version(stored.name.split("/")[0] for stored in objects.list())
    for name, content in files.items():  # saved_model.pb comes last: without it, servers take no version for complete.
        objects.write(f"{version}/{name}", content, replaces="")
    return join(base, str(version))


def _next_version(names: Iterable[str]) -> int:
    return 1 + max((int(name) for name in names if name.isdecimal()), default=0)


def warm_up(card: ModelCard) -> bytes:
    """Return the requests that a server sends to itself: a gray photo as a JPEG, and as pixels."""
    tf = import_tensorflow()
    gray_HWC = np.full((card.image_size, card.image_size, 3), 128, np.uint8)
    photo = io.BytesIO()
    Image.fromarray(gray_HWC).save(photo, "JPEG")
    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            writer.write(_request("serving_default", "image_bytes", tf.make_tensor_proto([photo.getvalue()])))
            writer.write(_request("pixels", "pixels", tf.make_tensor_proto(gray_HWC[None])))
        return file.read()


def _request(signature: str, name: str, tensor: "TensorProto") -> bytes:
    """Return a PredictionLog with a request. The numbers of the fields are those of TensorFlow Serving's .proto files."""
    model_spec = _field(3, signature.encode())
    entry_of_inputs = _field(1, name.encode()) + _field(2, tensor.SerializeToString())
    predict_log = _field(1, _field(1, model_spec) + _field(2, entry_of_inputs))
    return _field(6, predict_log)


def _field(number: int, content: bytes) -> bytes:
    """Encode a field that holds bytes, a string or a message: its number and wire type, its length, its content."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    more, last = divmod(value, 128)
    return bytes([value]) if not more else bytes([last | 128]) + _varint(more)
