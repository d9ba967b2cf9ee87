"""The messages of a decode process: lines of JSON, which are validated before they are used.

A malicious photo may have taken over the process. So nothing that it sends is unpickled, the reader never waits for the rest
of a line, and a line of more than MAX_LINE_BYTES is refused before it ends.
"""

import os
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_LINE_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 16
_MAX_CHUNKS = 16  # 1 MiB, the largest pipe that Linux allows without privileges.


class _Said(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class RecordLine(_Said):
    """The result for one photo: its status with the reason, and the facts about the file (`rules.Facts`).

    A photo that is "stored" was read and not decoded, because its SHA-256 is among those that the task named.
    """

    status: Literal["used", "converted", "quarantined", "ignored", "stored"]
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
    """A message about the process itself: it is ready for its first task, done with a task, or ending.

    The last three kinds end it. The `text` of `bug` is a traceback, that of `error` is a message (`code` is its exit code),
    and that of `storage` says why a shard's file cannot be written. `cpu_s` is the CPU seconds used so far.
    """

    kind: Literal["ready", "done", "bug", "error", "storage"]
    text: str = ""
    code: int = 0
    cpu_s: Annotated[float, Field(ge=0)] = 0.0


class Lines:
    """The lines that come out of a pipe. `is_too_long` is set when a line exceeds MAX_LINE_BYTES, even an unfinished one."""

    def __init__(self, pipe: Connection) -> None:
        self._descriptor, self._started = pipe.fileno(), b""
        self.has_ended = self.is_too_long = False
        os.set_blocking(self._descriptor, False)

    def take(self) -> list[bytes]:
        """Return the lines that are complete, without waiting. A line that its process did not finish is dropped."""
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
    """Write a message to a pipe, as a line of JSON."""
    line = said.model_dump_json().encode() + b"\n"
    while line:
        line = line[os.write(pipe.fileno(), line) :]


def plain(text: str) -> str:
    """Return the text as valid Unicode, which JSON needs. Lone surrogates become backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
