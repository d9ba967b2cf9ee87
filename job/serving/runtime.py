"""Run a SavedModel by TensorFlow's C library, as a server does, without any of TensorFlow's Python code.

Loading the library takes 0.3 CPU seconds, importing the package 2 (docs/decisions/0034-the-last-seconds.md).
"""

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

# Numbers of TF_DataType in tf_datatype.h, and the size of a TF_TString in tf_tstring.h.
_UINT8, _STRING = 4, 7
_RESULTS = {1: np.float32, 10: np.bool_}
_STRING_BYTES = 24


class _Output(ctypes.Structure):
    """A tensor of a graph: TF_Output in c_api.h."""

    _fields_ = (("operation", c_void_p), ("index", c_int))


_OUTPUTS, _TENSORS = POINTER(_Output), POINTER(c_void_p)
# The functions of TensorFlow's c_api.h that are called here: the type of the result, and those of the arguments.
_FUNCTIONS = {
    "TF_NewStatus": (c_void_p, []),
    "TF_GetCode": (c_int, [c_void_p]),
    "TF_Message": (c_char_p, [c_void_p]),
    "TF_NewGraph": (c_void_p, []),
    "TF_NewSessionOptions": (c_void_p, []),
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        [c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, c_void_p, c_void_p],
    ),
    "TF_GraphOperationByName": (c_void_p, [c_void_p, c_char_p]),
    "TF_AllocateTensor": (c_void_p, [c_int, POINTER(c_int64), c_int, c_size_t]),
    "TF_DeleteTensor": (None, [c_void_p]),
    "TF_TensorType": (c_int, [c_void_p]),
    "TF_NumDims": (c_int, [c_void_p]),
    "TF_Dim": (c_int64, [c_void_p, c_int]),
    "TF_TensorByteSize": (c_size_t, [c_void_p]),
    "TF_TensorData": (c_void_p, [c_void_p]),
    "TF_StringInit": (None, [c_void_p]),
    "TF_StringAssignView": (None, [c_void_p, c_char_p, c_size_t]),
    "TF_SessionRun": (
        None,
        [c_void_p, c_void_p, _OUTPUTS, _TENSORS, c_int, _OUTPUTS, _TENSORS, c_int, c_void_p, c_int, c_void_p, c_void_p],
    ),
}


@cache
def library() -> ctypes.CDLL:
    """Load TensorFlow's C library."""
    package = importlib.util.find_spec("tensorflow")
    assert package is not None and package.submodule_search_locations
    loaded = ctypes.CDLL(str(Path(package.submodule_search_locations[0]) / "libtensorflow_cc.so.2"))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


class SavedModel:
    """A SavedModel in memory. `tensors` are the names that `graph.tensors` returns.

    Raises:
        RuntimeError: if TensorFlow cannot load or run it, with TensorFlow's message.
    """

    def __init__(self, folder: str, tensors: Mapping[str, Mapping[str, str]]) -> None:
        self._tensors = tensors
        self._tf = library()
        self._status, self._graph = self._tf.TF_NewStatus(), self._tf.TF_NewGraph()
        options, tags = self._tf.TF_NewSessionOptions(), (c_char_p * 1)(b"serve")
        self._session = self._tf.TF_LoadSessionFromSavedModel(
            options, None, folder.encode(), tags, 1, self._graph, None, self._status
        )
        self._check()

    def run(self, signature: str, inputs: Mapping[str, np.ndarray | Sequence[bytes]], *outputs: str) -> list[np.ndarray]:
        """Return these outputs of a signature for its inputs: uint8 arrays, or the bytes of files."""
        given = [self._tensor(value) for value in inputs.values()]
        found = (c_void_p * len(outputs))()
        try:
            self._tf.TF_SessionRun(
                *(self._session, None),
                *(self._places(signature, inputs), (c_void_p * len(given))(*given), len(given)),
                *(self._places(signature, outputs), found, len(outputs)),
                *(None, 0, None, self._status),
            )
            self._check()
            return [self._array(tensor) for tensor in filter(None, found)]
        finally:
            for tensor in (*given, *filter(None, found)):
                self._tf.TF_DeleteTensor(tensor)

    def _check(self) -> None:
        if self._tf.TF_GetCode(self._status):
            raise RuntimeError(self._tf.TF_Message(self._status).decode(errors="replace"))

    def _places(self, signature: str, names: Mapping[str, object] | Sequence[str]) -> "ctypes.Array[_Output]":
        places = (self._tensors[signature][name].split(":") for name in names)
        outputs = [_Output(self._tf.TF_GraphOperationByName(self._graph, name.encode()), int(k)) for name, k in places]
        return (_Output * len(outputs))(*outputs)

    def _tensor(self, value: np.ndarray | Sequence[bytes]) -> int:
        """Return a tensor with a copy of an array, or with pointers to bytes, which must live as long as it."""
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value, np.uint8)
            tensor: int = self._tf.TF_AllocateTensor(_UINT8, (c_int64 * array.ndim)(*array.shape), array.ndim, array.nbytes)
            ctypes.memmove(self._tf.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
            return tensor
        tensor = self._tf.TF_AllocateTensor(_STRING, (c_int64 * 1)(len(value)), 1, _STRING_BYTES * len(value))
        start: int = self._tf.TF_TensorData(tensor)
        for place, item in enumerate(value):
            self._tf.TF_StringInit(start + place * _STRING_BYTES)
            self._tf.TF_StringAssignView(start + place * _STRING_BYTES, item, len(item))
        return tensor

    def _array(self, tensor: int) -> np.ndarray:
        shape = [self._tf.TF_Dim(tensor, axis) for axis in range(self._tf.TF_NumDims(tensor))]
        content = ctypes.string_at(self._tf.TF_TensorData(tensor), self._tf.TF_TensorByteSize(tensor))
        return np.frombuffer(content, _RESULTS[self._tf.TF_TensorType(tensor)]).reshape(shape)
