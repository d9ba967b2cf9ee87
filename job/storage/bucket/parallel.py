"""Transfers side by side, on threads."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, as_completed
from functools import partial
from queue import SimpleQueue
from typing import Self, TypeVar

_THREADS = 8
_STACK_BYTES = 1 << 20
Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads:
    """At most `limit` threads, started when there is work.

    At the end of the block, work that has not begun is dropped, and nothing is waited for. Unlike the threads of
    `concurrent.futures`, these do not keep the process alive: a transfer can take as long as a service takes to fail.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._count, self._ended = limit, 0, False
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for _number in range(self._count):
            self._work.put(None)

    def begin(self, work: Callable[[], Result]) -> Future[Result]:
        """Return the future of what `work` returns or raises."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._work.put(run)
        if self._count < self._limit:
            stack_bytes = threading.stack_size(_STACK_BYTES)
            try:
                threading.Thread(target=self._run, name=f"transfer-{self._count}", daemon=True).start()
            finally:
                threading.stack_size(stack_bytes)
            self._count += 1
        return future

    def _run(self) -> None:
        while (run := self._work.get()) is not None and not self._ended:
            run()
            del run  # It holds the result, which may be large, and this thread may wait long for more work.


def each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return the result of `work` for each item, in order.

    The first error is raised at once, and items that have not begun by then are dropped.
    """
    with Threads(_THREADS) as threads:
        futures = [threads.begin(partial(work, item)) for item in items]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
