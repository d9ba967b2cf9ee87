"""A thread that tells a server about a run, and never disturbs the run."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What is sent: None while the run works, then whether it ended well.
Send = Callable[[bool | None], None]


@contextmanager
def sending(
    send: Send,
    tell: Callable[[Exception], None],
    *,
    every_s: float,
    last_within_s: float,
    last_after: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """Give a block during which a thread calls `send(None)` every few seconds.

    After a block that ended well it calls `send(True)`, and after one of the errors in `last_after` `send(False)`. The
    program waits at most `last_within_s` for that. Whatever `send` raises, the run goes on: `tell` gets the first fault.
    """
    over, faults = threading.Event(), list[Exception]()
    ended: bool | None = None

    def fault(error: Exception) -> None:
        faults.append(error)
        if len(faults) == 1:
            tell(error)

    def attempt(how: bool | None) -> None:
        try:
            send(how)
        except Exception as error:
            fault(error)

    def keep_sending() -> None:
        while not over.wait(every_s):
            attempt(None)
        if ended is not None:
            attempt(ended)

    thread = threading.Thread(target=keep_sending, daemon=True)  # A server that hangs must not keep the process alive.
    thread.start()
    try:
        yield
        ended = True
    except last_after:
        ended = False
        raise
    finally:
        over.set()
        if ended is not None:
            thread.join(last_within_s)
            if thread.is_alive():
                fault(TimeoutError(f"it did not take the last message within {last_within_s:g} s"))
