"""The formats that the exported model can be converted to. Converters and runtimes are imported only where they are used."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from job.errors import UsageError
from job.serving.formats import litert, onnx
from job.serving.formats.base import Classifier, Runtime


@dataclass(frozen=True)
class Format:
    """A row of the table.

    `file`: its name in model/. `extra`: the extra of transfer-job with the `modules` that it needs.
    `convert`: returns the content of the file. `open`: loads a file to run on so many threads.
    `tolerance`: largest difference of a probability from the measured one; None if the numbers in it have only 8 bits.
    `needs_photos`: the ranges of its numbers are set by training photos.
    """

    file: str
    extra: str
    modules: tuple[str, ...]
    convert: Callable[[Classifier], bytes]
    open: Callable[[Path, int], Runtime]
    tolerance: float | None
    needs_photos: bool = False


_LITERT = ("ai_edge_litert",)
FORMATS: Mapping[str, Format] = {
    "onnx": Format("model.onnx", "onnx", ("onnx", "onnxruntime", "tf2onnx"), onnx.convert, onnx.Session, 2e-3),
    "litert": Format("model.tflite", "litert", _LITERT, litert.convert, litert.Interpreter, 1e-3),
    "litert-int8": Format(
        "model_int8.tflite", "litert", _LITERT, litert.convert_int8, litert.Interpreter, None, needs_photos=True
    ),
}


def require(names: Iterable[str]) -> None:
    """Check that the packages of these formats are installed. Raises: UsageError."""
    needed = {FORMATS[name].extra: FORMATS[name].modules for name in names if name in FORMATS}
    missing = {extra: [m for m in modules if find_spec(m) is None] for extra, modules in needed.items()}
    if extras := [extra for extra, modules in missing.items() if modules]:
        modules = ", ".join(module for extra in extras for module in missing[extra])
        raise UsageError(
            f"export.formats: {' and '.join(extras)} need packages that are not installed ({modules}). "
            f"Run pip install 'transfer-job[{','.join(extras)}]', or leave them out."
        )
