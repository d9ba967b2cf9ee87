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
    sender = _Sender(send, tell, every_s)
    sender.start()
    try:
        yield
        sender.ended = True
    except last_after:
        sender.ended = False
        raise
    finally:
        sender.over.set()
        if sender.ended is not None:
            sender.join(last_within_s)
            if sender.is_alive():
                sender.fault(TimeoutError(f"it did not take the last message within {last_within_s:g} s"))


class _Sender(threading.Thread):
    """Sends every few seconds until `over` is set, and then once more if `ended` says how."""

    def __init__(self, send: Send, tell: Callable[[Exception], None], every_s: float) -> None:
        super().__init__(daemon=True)  # A server that hangs must not keep the process alive.
        self._send, self._tell, self._every_s = send, tell, every_s
        self._has_failed = False
        self.ended: bool | None = None
        self.over = threading.Event()

    def run(self) -> None:
        """Send until the run is over."""
        while not self.over.wait(self._every_s):
            self._try(None)
        if self.ended is not None:
            self._try(self.ended)

    def _try(self, ended: bool | None) -> None:
        try:
            self._send(ended)
        except Exception as error:
            self.fault(error)

    def fault(self, error: Exception) -> None:
        """Tell a fault, unless one was told before."""
        if not self._has_failed:
            self._has_failed = True
            self._tell(error)
