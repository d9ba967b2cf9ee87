"""Transfers side by side."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

_THREADS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return the result of `work` for each item, in order.

    The first error is raised at once, and what has not begun by then is not done. The threads keep no process alive, as
    those of `concurrent.futures` would: what they are at may take as long as a service takes to fail.
    """
    waiting = deque(enumerate(items))
    done: SimpleQueue[tuple[int, Result | BaseException]] = SimpleQueue()

    def run() -> None:
        with suppress(IndexError):
            while True:
                number, item = waiting.popleft()
                try:
                    done.put((number, work(item)))
                except BaseException as error:
                    done.put((number, error))

    count = len(waiting)
    for _ in range(min(_THREADS, count)):
        threading.Thread(target=run, daemon=True).start()
    found: dict[int, Result] = {}
    while len(found) < count:
        number, result = done.get()
        if isinstance(result, BaseException):
            waiting.clear()
            raise result
        found[number] = result
    return [found[number] for number in range(count)]
