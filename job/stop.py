"""Signals that ask for the end, heard in every phase: while modules are imported, while a graph is traced, as PID 1.

Python runs its own handlers between bytecodes of the main thread, which may sit in TensorFlow for a long time. The wakeup
descriptor is written to at once, and a thread that waits for it ends the process where the main thread does not in time.
"""

import os
import select
import signal
import socket
import threading
import time
from types import FrameType

from job.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_GRACE_S = 10.0
_GO_ON = "Everything finished before is saved: the same command goes on from there."


def ignore_signals() -> None:
    """For a process that somebody else decides about: signals may reach the whole group. And for one whose work is over."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """Set by a signal, asked between units of work.

    `doing` is what the run works at, `saved` what of that is already safe, and `grace_s` how long after the first signal the
    process may take to come to an end by itself; all three may change on the way.
    """

    def __init__(self) -> None:
        self.is_asked = False  # No Event: a handler that interrupts another one in its lock would wait for ever.
        self._by = "a request"
        self._standard_error = -1
        self.grace_s = _GRACE_S
        self.doing = self.saved = ""

    def listen(self) -> None:
        """Let SIGTERM, SIGINT and SIGUSR1 ask for the end of the process. From the main thread, once."""
        self._standard_error = os.dup(2)  # The other one is turned away while TensorFlow is imported.
        near_end, far_end = socket.socketpair()
        far_end.setblocking(False)
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(far_end.fileno(), warn_on_full_buffer=False)
        self._ends = near_end, far_end
        threading.Thread(target=self._watch, daemon=True).start()

    def request(self, by: str = "a request") -> None:
        if not self.is_asked:
            self._by = by
        self.is_asked = True

    def check(self) -> None:
        """Raises: Stopped, where somebody asked for the end."""
        if self.is_asked:
            raise Stopped(self._message())

    def _message(self) -> str:
        where = f" in {self.doing}" if self.doing else ""
        saved = f" Of {self.doing}, {self.saved} is saved." if self.saved else ""
        return f"Stopped by {self._by}{where}.{saved} {_GO_ON}"

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)

    def _watch(self) -> None:
        while (number := self._ends[0].recv(1)[0]) not in _SIGNALS:
            pass
        self.request(signal.Signals(number).name)
        started = time.monotonic()
        while time.monotonic() < started + self.grace_s:
            time.sleep(0.05)
        text = f"\nStopped: no point to stop at was reached within {self.grace_s:g} s. {self._message()}\n"
        try:
            if select.select([], [self._standard_error], [], 0)[1]:  # A full pipe may be why nothing was heard.
                os.write(self._standard_error, text.encode())
        finally:
            os._exit(Stopped.exit_code)


# Signals are the process's, and so is this.
STOP = StopRequest()
