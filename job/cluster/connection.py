"""A connection between two workers that carries lines of JSON and notices when the other end is lost.

If the other process dies, its connection is closed at once. If it hangs, its heartbeats stop. Until the other end has proven
that it belongs to the run, its lines must be short, so that it cannot fill the memory.
"""

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from job.errors import JobError, TryAgainLater
from job.runtime.stop import StopRequest

Message = dict[str, Any]

BEATS_EVERY_S = 1.0
LOST_AFTER_S = 12.0  # Without a message or heartbeat.
_MAX_LINE_BYTES_OF_A_STRANGER = 1_024
_MAX_LINE_BYTES = 2**20
_MAX_TEXT_CHARS = 10_000  # A longer error text is cut, so that its line stays below the limit.
_READ_BYTES = 2**16
# Exceptions from reading a message in which a part is missing or has the wrong type.
MEANINGLESS = (KeyError, TypeError, ValueError, OverflowError)
_HEARD_WITHIN_S = 5.0  # TensorFlow may notice a lost peer earlier than the connections, by at most this.


class Lost(Exception):
    """The other end is gone, or it does not use this protocol. The message says how this was noticed."""


class Connection:
    """A socket for messages in both directions, each a line of JSON. Several threads may write, only one may read.

    The other end is not trusted until `trust` is called: its lines must be short.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._writing = connected, threading.Lock()
        self._closed = threading.Event()
        self._received = bytearray()
        self._max_line_bytes = _MAX_LINE_BYTES_OF_A_STRANGER
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)
        connected.settimeout(LOST_AFTER_S)  # For writing. A peer that reads nothing for this long hangs.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.expect_beats()

    def trust(self) -> None:
        """Accept longer lines from now on, because the other end has proven that it belongs to the run."""
        self._max_line_bytes = _MAX_LINE_BYTES

    def say(self, **message: object) -> None:
        """Send a message. If the other end is gone, the reading thread notices."""
        with suppress(OSError), self._writing:
            try:
                self._socket.sendall(_line_of(message))
            except TimeoutError:
                self.hang_up()  # Part of the line may have been sent, so no other line can follow.

    def say_at_once(self, **message: object) -> None:
        """Send a message, or drop it if sending would block."""
        if self._writing.acquire(timeout=0.2):
            with suppress(OSError):
                self._socket.send(_line_of(message), socket.MSG_DONTWAIT)
            self._writing.release()

    def hear(self) -> Message:
        """Return the next message that is not a heartbeat. Raises: Lost."""
        while not (message := self.hear_any()):
            pass
        return message

    def hear_any(self) -> Message:
        """Return the next message; a heartbeat is an empty message. Raises: Lost."""
        try:
            return _message_of(self._line())
        except Lost:
            self._closed.set()
            raise

    def _line(self) -> bytes:
        """Return the next line. Raises: Lost, if it is not complete in time or is too long."""
        deadline, searched = time.monotonic() + self._patience_s, 0
        while (end := self._received.find(b"\n", searched)) < 0 and len(self._received) <= self._max_line_bytes:
            searched = len(self._received)
            try:
                self._receive(deadline)
            except OSError as error:
                raise Lost(error.strerror or str(error)) from None
        if not 0 <= end <= self._max_line_bytes:
            raise Lost(f"it sent more than {self._max_line_bytes:,} bytes in one line")
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _receive(self, deadline: float) -> None:
        left_s = max(deadline - time.monotonic(), 0)  # With 0, poll finds data that arrived while this thread was late.
        if not self._readable.poll(left_s * 1_000):
            raise Lost(f"it has been silent for {self._patience_s:g} s")
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise Lost("its connection was closed")
        self._received += data

    def be_patient(self, within_s: float) -> None:
        """Allow this many seconds of silence. While the other end imports modules, it may send no heartbeats."""
        self._patience_s = within_s

    def expect_beats(self) -> None:
        """Treat 12 seconds of silence as a loss from now on, because the other end now sends heartbeats."""
        self.be_patient(LOST_AFTER_S)

    def keep_beating(self) -> None:
        """Send a heartbeat every second until the connection is closed."""

        def beat() -> None:
            while not self._closed.wait(BEATS_EVERY_S):
                self.say()

        threading.Thread(target=beat, daemon=True).start()

    def wait_until_closed(self, within_s: float) -> None:
        """Wait until the connection is closed, at most this many seconds."""
        self._closed.wait(within_s)

    def hang_up(self) -> None:
        """End the connection for both ends. The reading thread notices and closes it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and release its file descriptor."""
        self._closed.set()
        self.hang_up()
        self._socket.close()


def text_of(error: BaseException | None) -> str:
    """Return an error's text for another worker; empty without an error."""
    return str(error)[:_MAX_TEXT_CHARS] if error else ""


def _line_of(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _message_of(line: bytes) -> Message:
    """Return the JSON object in a line. Raises: Lost, if it is no JSON, no object, or nested too deep for Python."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Lost("it sent a line that is not a JSON object")
    return message


def lost_peer(name: str, lost: Lost) -> TryAgainLater:
    """Return the error that ends a run after it has lost a worker."""
    return TryAgainLater(f"{name} is lost: {lost}. Start all workers again: the run resumes from what is saved.")


@contextmanager
def peers_first(stop: StopRequest) -> Iterator[None]:
    """Let a lost peer or a stop request win over an error in the block. It waits up to 5 s for one of them.

    A lost peer makes TensorFlow fail, sometimes before the connections between the workers notice the loss.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, JobError) and not isinstance(error, TryAgainLater):
            raise
        deadline = time.monotonic() + _HEARD_WITHIN_S
        while time.monotonic() < deadline:
            stop.check()
            time.sleep(0.05)
        raise
