"""Curves and pictures for TensorBoard, in an event file.

This is a TFRecord file of Event messages in the wire format of protocol buffers. The few fields are written here, because
the library for it takes 0.4 CPU seconds to import (docs/decisions/0034-the-last-seconds.md). Their numbers are those of
event.proto and summary.proto in TensorFlow.
"""

import io
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
from PIL import Image

from job.storage.tfrecord import framed

_RGB = 3


class EventFile:
    """A new event file in a folder, which is made if it is missing. All methods raise OSError if it cannot be written."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._stream = (folder / name).open("ab")
        self._write(_text(3, "brain.Event:2"))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        self._add(tag, step, _tag(2, 5) + struct.pack("<f", value))

    def image(self, tag: str, image_HWC: np.ndarray) -> None:
        """Add a uint8 picture, red, green and blue."""
        buffer = io.BytesIO()
        Image.fromarray(image_HWC).save(buffer, "PNG")
        height, width, _ = image_HWC.shape
        self._add(
            tag, 0, _bytes(4, _number(1, height) + _number(2, width) + _number(3, _RGB) + _bytes(4, buffer.getvalue()))
        )

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()

    def _add(self, tag: str, step: int, value: bytes) -> None:
        self._write(_number(2, step) + _bytes(5, _bytes(1, _text(1, tag) + value)))

    def _write(self, fields: bytes) -> None:
        self._stream.write(framed(_tag(1, 1) + struct.pack("<d", time.time()) + fields))


def _tag(field: int, kind: int) -> bytes:
    """Return the bytes before a value. Kind 0 is a whole number, 1 are 8 bytes, 2 begins with its length, 5 are 4 bytes."""
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _tag(field, 0) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _tag(field, 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Return a number that is not negative, 7 bits in each byte, the lowest first."""
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)
