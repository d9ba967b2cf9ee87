"""What a decode process may say: lines of JSON, each held against its form before it is believed.

A photo may have taken the process over. Nothing that it sends is unpickled, nothing is waited for, and no line is longer
than MAX_LINE_BYTES, whether it ends or not.
"""

import os
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_LINE_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 16
_MAX_CHUNKS = 16  # As much as Linux lets a pipe hold.


class _Said(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class RecordLine(_Said):
    """The result for one photo: its status with the reason, and the facts about the file (`decode.Facts`)."""

    status: Literal["used", "converted", "quarantined", "ignored"]
    reason: str
    num_bytes: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    format: str
    width: Annotated[int, Field(ge=0, lt=2**31)]
    height: Annotated[int, Field(ge=0, lt=2**31)]
    mode: str
    has_exif: bool
    phash: Annotated[int, Field(ge=0, lt=2**64)]
    brightness: Annotated[float, Field(ge=0, le=1)]
    contrast: Annotated[float, Field(ge=0, le=1)]
    peak: Annotated[int, Field(ge=0, lt=2**16)] | None = None


class NewsLine(_Said):
    """Where the process is: ready for the first task, done with one, or at its end.

    At its end: a `bug` has a traceback as `text`, an `error` its exit code and message, `storage` the system's words for why
    a shard's file cannot be written. `cpu_s` is what the process has used so far.
    """

    kind: Literal["ready", "done", "bug", "error", "storage"]
    text: str = ""
    code: int = 0
    cpu_s: Annotated[float, Field(ge=0)] = 0.0


class Lines:
    """The lines that come out of a pipe. `is_too_long` once one of them is, be it finished or not."""

    def __init__(self, pipe: Connection) -> None:
        self._descriptor, self._started = pipe.fileno(), b""
        self.has_ended = self.is_too_long = False
        os.set_blocking(self._descriptor, False)

    def take(self) -> list[bytes]:
        """Every line that is there whole. One that the end of its process cut short counts as not written."""
        text = self._started
        with suppress(BlockingIOError):
            for _ in range(_MAX_CHUNKS):
                chunk = os.read(self._descriptor, _CHUNK_BYTES)
                self.has_ended = not chunk
                text += chunk
                if not chunk:
                    break
        *lines, self._started = text.split(b"\n")
        for number, line in enumerate((*lines, self._started)):
            if len(line) > MAX_LINE_BYTES:
                self.is_too_long, self._started = True, b""
                return lines[:number]
        return lines


def tell(pipe: Connection, said: RecordLine | NewsLine) -> None:
    """Write a line."""
    line = said.model_dump_json().encode() + b"\n"
    while line:
        line = line[os.write(pipe.fileno(), line) :]


def plain(text: str) -> str:
    """The text in valid Unicode, as lines must be."""
    return text.encode("utf-8", "backslashreplace").decode()
