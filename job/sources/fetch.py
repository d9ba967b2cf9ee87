"""Threads that fetch objects of a bucket before they are needed, in order, and with limited memory.

The next object is requested when one is taken. So if the reader stops, the threads stop, too.
"""

import ctypes
import errno
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial

from job.errors import StorageFailed
from job.storage.bucket.objects import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, RETRY_FOR_S, NoSuchObject, Objects, join
from job.storage.bucket.parallel import Threads

THREADS = 32  # For each decode process. Two processes keep two cores busy at a latency of 30 ms (benchmarks/buckets.py).
MAX_BYTES_AHEAD = 64 << 20
# A request is retried for RETRY_FOR_S. That time begins when the first try has failed, and a last try may begin at its end.
PATIENCE_S = RETRY_FOR_S + 2 * (CONNECT_TIMEOUT_S + READ_TIMEOUT_S)
_M_ARENA_MAX = -8  # The value of M_ARENA_MAX in malloc.h.


def read_ordered(
    objects: Objects, wanted: Iterable[tuple[str, str | None, int]], threads: int = THREADS
) -> Iterator[bytes | OSError]:
    """Yield the bytes of each object of `wanted`, which has (name, version, size in bytes), in order.

    An object that no longer exists, or is too large for the memory, gives an OSError in its place. At most two objects for
    each thread, and at most MAX_BYTES_AHEAD bytes, are requested before they are needed. A single object may be larger.

    Raises:
        StorageFailed: if an object cannot be read, when it is its turn.
        UsageError: without credentials or permission, when it is the turn of the first object.
    """
    ahead: deque[tuple[str, int, Future[bytes]]] = deque()
    bytes_ahead = 0
    waiting = iter(wanted)
    following = next(waiting, None)
    with Threads(threads) as fetching:
        while ahead or following:
            while following and (not ahead or (len(ahead) < 2 * threads and bytes_ahead + following[2] <= MAX_BYTES_AHEAD)):
                name, version, num_bytes = following
                ahead.append((name, num_bytes, fetching.begin(partial(objects.read, name, version))))
                bytes_ahead += num_bytes
                following = next(waiting, None)
            name, num_bytes, future = ahead.popleft()
            bytes_ahead -= num_bytes
            yield _content(future, join(objects.uri, name))


def _content(future: Future[bytes], uri: str) -> bytes | OSError:
    if not wait([future], PATIENCE_S).done:
        raise StorageFailed(f"{uri}: its bytes did not arrive in {PATIENCE_S:.0f} s. Run the same command again.")
    try:
        return future.result()
    except NoSuchObject:
        return OSError(errno.ENOENT, "it is gone since it was listed")
    except MemoryError:
        return OSError(errno.ENOMEM, "the file is larger than the memory of a decode process")


def limit_arenas() -> None:
    """Make all threads of this process allocate from one arena, because each takes 64 MB of limited address space."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # Only glibc has it.
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
