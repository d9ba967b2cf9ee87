"""Stop requests: signals and lost workers. They work in every phase: during imports, while a graph is traced, as PID 1.

Python runs signal handlers between bytecodes of the main thread, which may be inside TensorFlow for a long time. But it
writes to the wakeup descriptor at once. A thread reads that descriptor, says so, and ends the process if the main thread
does not end in time.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from job.console.log import LOG
from job.errors import JobError, Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_GRACE_S = 10.0
_LAST_WORDS_WITHIN_S = 2.0
# Clears the line of a progress bar, and shows the cursor that the bar hides.
_OVER_A_BAR = "\r\x1b[2K\x1b[?25h"


def ignore_signals() -> None:
    """Ignore the signals that ask for a stop, in a process that another process controls, or that has finished its work."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@dataclass
class _Work:
    """The work that a run is doing, for the message of a stop."""

    name: str = ""
    next_time: str = "Everything finished before is saved: the same command goes on from there."
    saved: str = ""


class StopRequest:
    """A request to stop, which a signal or a lost worker sets, and which `check` raises between units of work.

    `grace_s` is how long after the first signal the process may take to end by itself. If `deferred_to` is set, it is called
    with the name of a signal instead, and decides when the work ends; the grace is the same. `last_words` are called, the
    newest first, with the error of a process that did not end in time, just before the process is ended.
    """

    def __init__(self) -> None:
        self.is_asked = False  # Not an Event: if one handler interrupts another, its lock could block forever.
        self._by = "a request"
        self._error: JobError | None = None
        self._standard_error = 2
        self.grace_s = _GRACE_S
        self._work = _Work()
        self.deferred_to: Callable[[str], None] | None = None
        self.last_words: list[Callable[[JobError], object]] = []

    def listen(self) -> None:
        """Let SIGTERM, SIGINT, SIGUSR1 and SIGHUP request a stop. Call it once, from the main thread."""
        self._standard_error = os.dup(2)  # Descriptor 2 is redirected while TensorFlow is imported.
        near_end, far_end = socket.socketpair()
        far_end.setblocking(False)
        self._ends = near_end, far_end
        signal.set_wakeup_fd(far_end.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            # `nohup` makes a process ignore SIGHUP, so that it continues after the terminal is closed.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        threading.Thread(target=self._watch, daemon=True).start()

    def request(self, by: str = "a request", error: JobError | None = None) -> None:
        """Request a stop with the error `Stopped`, or with another `error`. Only the first request counts."""
        if not self.is_asked:
            self._by, self._error = by, error
        self.is_asked = True

    def insist(self, by: str = "a request", error: JobError | None = None, *, within_s: float) -> None:
        """Request a stop, and end the process if it is still running after `within_s` seconds."""
        self.request(by, error)
        threading.Thread(target=self._give_up_after, args=(lambda: within_s, by), daemon=True).start()

    @contextmanager
    def during(self, name: str = "", next_time: str = _Work.next_time) -> Iterator[None]:
        """Give a block of work. The message of a stop in it has the name of the work and `next_time`.

        `next_time` is a sentence that says what the same command will do when it is run again.
        """
        before, self._work = self._work, _Work(name, next_time)
        try:
            yield
        finally:
            self._work = before

    def note_saved(self, what: str) -> None:
        """Remember which part of the work is saved, for the message of a stop."""
        self._work.saved = what

    def check(self) -> None:
        """Raise Stopped, or the error of the request, if a stop was requested."""
        if self.is_asked:
            raise self._end()

    @contextmanager
    def deadline(self, within_s: float, error: JobError) -> Iterator[None]:
        """End the process with `error` if the block takes longer than `within_s` seconds, even if the block is stuck."""
        timer = threading.Timer(within_s, self.end_now, (error,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end_now(self, error: JobError) -> None:
        """End the process at once with the exit code of an error, whatever its threads are doing."""
        try:
            self._print(LOG.formatted_error(error))
            # In a thread, because the disk or the connection that it needs may be what the process hangs on.
            speaker = threading.Thread(target=self._speak, args=(error,), daemon=True)
            speaker.start()
            speaker.join(_LAST_WORDS_WITHIN_S)
        finally:
            os._exit(error.exit_code)

    def _speak(self, error: JobError) -> None:
        for word in reversed(self.last_words):
            with suppress(Exception):  # One that fails must not keep the others from speaking.
                word(error)

    def _print(self, text: str) -> None:
        """Print a text from any thread, past the streams of Python, which the main thread may hold. Never wait."""
        with suppress(OSError):
            if select.select([], [self._standard_error], [], 0)[1]:  # Writing to a full pipe would wait.
                start = _OVER_A_BAR if os.isatty(self._standard_error) and not LOG.as_json else ""
                os.write(self._standard_error, f"{start}{text}".encode("utf-8", "backslashreplace"))

    def _end(self) -> JobError:
        if self._error:
            return self._error
        work = self._work
        where = f" in {work.name}" if work.name else ""
        saved = f" Of {work.name}, {work.saved} is saved." if work.saved else ""
        return Stopped(f"Stopped by {self._by}{where}.{saved} {work.next_time}")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.deferred_to is None:
            self.request(signal.Signals(number).name)

    def _watch(self) -> None:
        while (number := self._ends[0].recv(1)[0]) not in _SIGNALS:
            pass
        name = signal.Signals(number).name
        where = f" in {self._work.name}" if self._work.name else ""
        said = (
            f"{name} received{where}: stopping at the next safe point, in at most {self.grace_s:g} s. "
            "A second signal changes nothing."
        )
        self._print(LOG.formatted(said, "warning"))
        (self.deferred_to or self.request)(name)
        self._give_up_after(lambda: self.grace_s, name)

    def _give_up_after(self, grace_s: Callable[[], float], by: str) -> None:
        started = time.monotonic()
        while time.monotonic() < started + grace_s():
            time.sleep(0.05)
        self.request(by)
        error = self._end()
        said, *more = error.args
        self.end_now(type(error)(f"no point to stop at was reached within {grace_s():g} s. {said}", *more))


# Signals go to the process, so there is one request for the process.
STOP = StopRequest()
