"""Objects fetched by threads ahead of their reader: in order, and in bounded memory.

The reader itself asks for the next object when it takes one, so a reader that stops makes the threads stop.
"""

import ctypes
import errno
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Self

from job.errors import StorageFailed
from job.storage.bucket.objects import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, RETRY_FOR_S, NoSuchObject, Objects, join

THREADS = 32  # Of a decode process. Two with 32 each keep two cores busy at 30 ms latency (benchmarks/buckets.py).
MAX_BYTES_AHEAD = 64 << 20
# The time for trying again begins where the first try ends, and the last try may begin at its end.
PATIENCE_S = RETRY_FOR_S + 2 * (CONNECT_TIMEOUT_S + READ_TIMEOUT_S)
_STACK_BYTES = 1 << 20
_M_ARENA_MAX = -8  # From malloc.h.


@dataclass
class _Fetch:
    name: str
    version: str | None
    num_bytes: int
    answer: SimpleQueue[bytes | Exception] = field(default_factory=SimpleQueue)


def read_ordered(
    objects: Objects, wanted: Iterable[tuple[str, str | None, int]], threads: int = THREADS
) -> Iterator[bytes | OSError]:
    """The bytes of each (name, version, size), in order; an error in the place of what is not there any more.

    At most twice as many objects as there are threads are on their way or waiting to be taken, and at most MAX_BYTES_AHEAD
    by their sizes, or a single one.

    Raises:
        StorageFailed, UsageError: when it is the turn of the object that they are about.
    """
    ahead: deque[_Fetch] = deque()
    bytes_ahead = 0
    waiting = (_Fetch(*one) for one in wanted)
    following = next(waiting, None)
    with _Threads(objects, threads) as fetching:
        while ahead or following:
            while following and (
                not ahead or (len(ahead) < 2 * threads and bytes_ahead + following.num_bytes <= MAX_BYTES_AHEAD)
            ):
                fetching.begin(following)
                ahead.append(following)
                bytes_ahead += following.num_bytes
                following = next(waiting, None)
            fetch = ahead.popleft()
            bytes_ahead -= fetch.num_bytes
            yield _taken(fetch, objects)


def _taken(fetch: _Fetch, objects: Objects) -> bytes | OSError:
    where = join(objects.uri, fetch.name)
    try:
        answer = fetch.answer.get(timeout=PATIENCE_S)
    except Empty:
        raise StorageFailed(
            f"{where}: its bytes did not arrive in {PATIENCE_S:.0f} s. Run the same command again."
        ) from None
    if isinstance(answer, NoSuchObject):
        return OSError(errno.ENOENT, "it is gone since it was listed")
    if isinstance(answer, MemoryError):
        return OSError(errno.ENOMEM, "the file is larger than the memory of a decode process")
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Threads:
    """At the end they are not waited for: what they are at may take long."""

    def __init__(self, objects: Objects, limit: int) -> None:
        self._objects, self._limit, self._count = objects, limit, 0
        self._work: SimpleQueue[_Fetch | None] = SimpleQueue()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for _number in range(self._count):
            self._work.put(None)

    def begin(self, fetch: _Fetch) -> None:
        self._work.put(fetch)
        if self._count < self._limit:
            stack_bytes = threading.stack_size(_STACK_BYTES)
            try:
                threading.Thread(target=self._run, name=f"fetch-{self._count}", daemon=True).start()
            finally:
                threading.stack_size(stack_bytes)
            self._count += 1

    def _run(self) -> None:
        while (fetch := self._work.get()) is not None and not self._ended:
            try:
                fetch.answer.put(self._objects.read(fetch.name, fetch.version))
            except Exception as error:
                fetch.answer.put(error)


def limit_arenas() -> None:
    """Threads share the places that memory comes from. Each place of its own would take 64 MB of address space."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it.
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
