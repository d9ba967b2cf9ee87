"""Transfers side by side."""

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import TypeVar

_THREADS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `work` gives for each item, in order.

    The first error is raised at once, and what has not begun by then is not done. The threads keep no process alive, as
    those of `concurrent.futures` would: what they are at may take as long as a service takes to fail.
    """
    waiting: SimpleQueue[tuple[int, Item]] = SimpleQueue()
    done: SimpleQueue[tuple[int, Result | BaseException]] = SimpleQueue()
    count = 0
    for number, item in enumerate(items):
        waiting.put((number, item))
        count += 1

    def run() -> None:
        try:
            while True:
                number, item = waiting.get_nowait()
                try:
                    done.put((number, work(item)))
                except BaseException as error:
                    done.put((number, error))
        except Empty:
            return

    for _ in range(min(_THREADS, count)):
        threading.Thread(target=run, daemon=True).start()
    found: dict[int, Result] = {}
    for _ in range(count):
        number, result = done.get()
        if isinstance(result, BaseException):
            _drain(waiting)
            raise result
        found[number] = result
    return [found[number] for number in range(count)]


def _drain(queue: "SimpleQueue[tuple[int, Item]]") -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
