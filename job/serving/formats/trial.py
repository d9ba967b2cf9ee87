"""The trial of a converted model with the runtime of its format. It runs as `python -m job.serving.formats.trial`.

Nothing else has been loaded into this process, so that its memory is that of the runtime.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from job.errors import JobError
from job.runtime.children import answer
from job.serving.formats.table import FORMATS
from job.stores.arrays import ArrayStore

_WARM_UP = 3
_SAID = 300


@dataclass(frozen=True)
class Request:
    """The format and the file to load, and the photos to label: rows of the image store with the index file `images`.

    `answers` is the .npz file to write with the outputs for them. With `one_core`, the process uses a single core.
    """

    format: str
    file: str
    images: str
    rows: list[int]
    answers: str
    one_core: bool


class Trial(TypedDict):
    """The milliseconds that a photo takes (median, in batches of one), and the most memory that the process had."""

    ms: float
    peak_memory_bytes: int


def try_out(request: Request) -> Trial:
    """Load the file, and label the photos. Raises: JobError, if the runtime cannot."""
    cores = sorted(os.sched_getaffinity(0))[: 1 if request.one_core else None]
    os.sched_setaffinity(0, cores)
    seconds, found = [], []
    try:
        model = FORMATS[request.format].open(Path(request.file), len(cores))
        for pixels_NHWC in _photos(request):
            begin = time.perf_counter()
            found.append(model.answers(pixels_NHWC))
            seconds.append(time.perf_counter() - begin)
    except Exception as error:  # Runtimes have exceptions of their own.
        said = " ".join(str(error).split())[:_SAID]
        raise JobError(f"its runtime cannot run it ({type(error).__name__}: {said})") from error
    first = len(found) - len(request.rows)
    outputs = {name: np.concatenate([answer[name] for answer in found[first:]]) for name in (found[0] if found else ())}
    np.savez(request.answers, **outputs)  # type: ignore[arg-type]  # NumPy's stubs take any name for `allow_pickle`.
    ms = 1000 * float(np.median(seconds[first:])) if request.rows else 0.0
    return {"ms": ms, "peak_memory_bytes": _peak_memory_bytes()}


def _photos(request: Request) -> Iterator[np.ndarray]:
    """Yield one photo after the other, (1, size, size, 3): first a few that are not counted. They need not fit in memory."""
    if request.rows:
        images = ArrayStore(Path(request.images))
        for row in (*request.rows[:_WARM_UP], *request.rows):
            yield images.rows([row])


def _peak_memory_bytes() -> int:
    """Return the largest resident size of this process. `ru_maxrss` would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


if __name__ == "__main__":
    answer(Request, try_out)
