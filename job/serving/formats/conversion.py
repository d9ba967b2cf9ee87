"""The conversion of model.keras to another format. It runs as `python -m job.serving.formats.conversion`.

Converters print, use much memory, and may crash, so each conversion has a process of its own.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from job.cluster.tensorflow import import_tensorflow
from job.errors import JobError
from job.runtime.children import answer
from job.serving.formats.base import Classifier
from job.serving.formats.table import FORMATS
from job.storage.files import storage_errors
from job.stores.arrays import ArrayStore

_SAID = 300


@dataclass(frozen=True)
class Request:
    """The model to convert, the name of the format, and the file to write.

    `rows` are those of training photos in the image store with the index file `images`.
    """

    keras: str
    format: str
    file: str
    class_names: list[str]
    images: str
    rows: list[int]


def convert(request: Request) -> None:
    """Write the file. Raises: JobError, if the converter cannot take this model; StorageFailed."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # The process that asks may have taken the memory of the GPUs.
    import_tensorflow()
    import keras

    model = keras.models.load_model(request.keras)
    photos_NHWC = ArrayStore(Path(request.images)).rows(request.rows) if request.rows else np.empty(0)
    try:
        content = FORMATS[request.format].convert(Classifier(model, request.class_names, photos_NHWC))
    except Exception as error:  # Converters raise many kinds of exceptions for an operation that they do not know.
        said = " ".join(str(error).split())[:_SAID]
        raise JobError(f"the converter failed ({type(error).__name__}: {said})") from error
    file = Path(request.file)
    with storage_errors(file):
        file.write_bytes(content)


if __name__ == "__main__":
    answer(Request, convert)
