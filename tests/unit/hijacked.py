"""A source whose decode processes do what a photo could make them do that has taken them over."""

import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.decoding import worker
from job.sources.base import Entry
from job.sources.folders import FolderSource


@dataclass(frozen=True)
class Hijacked(FolderSource):
    """At each photo for which there are bytes in a file beside the folder they are written into a pipe of the process."""

    root: Path
    pipe: str = "records"

    def said(self, name: str) -> Path:
        return self.root.parent / f"said-{name}"

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes | OSError]:
        for entry, payload in zip(entries, super().read(entries), strict=True):
            if (file := self.said(Path(entry.path).name)).exists():
                said = file.read_bytes()
                while said:
                    said = said[os.write(_pipe_of_this_process(self.pipe), said) :]
            yield payload


def _pipe_of_this_process(name: str) -> int:
    frame = inspect.currentframe()
    while frame and frame.f_code is not worker.work.__code__:
        frame = frame.f_back
    assert frame
    descriptor: int = frame.f_locals[name].fileno()
    return descriptor
