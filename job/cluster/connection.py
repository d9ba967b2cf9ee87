"""A connection between two workers, in lines of JSON, that tells when the other end is lost.

A process that died is known at once, because its connection is closed. One that hangs is known by its silence. Until the
other end has proven that it belongs to the run, its lines must be short, so that it cannot fill the memory.
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
LOST_AFTER_S = 12.0  # Of silence.
_MAX_LINE_BYTES_OF_A_STRANGER = 1_024
_MAX_LINE_BYTES = 2**20
_MAX_TEXT_CHARS = 10_000  # Of an error, so that its line is never too long.
_READ_BYTES = 2**16
# What Python raises where a part of a message is missing, or is of another kind than it must be.
MEANINGLESS = (KeyError, TypeError, ValueError, OverflowError)


_HEARD_WITHIN_S = 5.0  # So soon after TensorFlow the connections notice that a peer is lost.


class Lost(Exception):
    """The other end is gone, or is not what it should be. The message says how that is known."""


class Connection:
    """Lines of JSON in both directions. Several threads may write to it, and one reads.

    The other end is a stranger until `trust` is called.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._writing = connected, threading.Lock()
        self._closed = threading.Event()
        self._received = bytearray()
        self._max_line_bytes = _MAX_LINE_BYTES_OF_A_STRANGER
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)
        connected.settimeout(LOST_AFTER_S)  # For writing: an end that reads nothing for so long hangs.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.expect_beats()

    def trust(self) -> None:
        """Take longer lines from now on, because the other end has proven that it belongs to the run."""
        self._max_line_bytes = _MAX_LINE_BYTES

    def say(self, **message: object) -> None:
        """Send a message. If the other end is gone, the thread that reads finds out."""
        with suppress(OSError), self._writing:
            try:
                self._socket.sendall(_line_of(message))
            except TimeoutError:
                self.hang_up()  # A part of the line may have been sent, so nothing can come after it.

    def say_at_once(self, **message: object) -> None:
        """Send a message, or nothing where that would have to wait."""
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
        """Return the next message, which is empty where it is a heartbeat. Raises: Lost."""
        try:
            return _message_of(self._line())
        except Lost:
            self._closed.set()
            raise

    def _line(self) -> bytes:
        """Return the next line, which must be whole in time and must not be too long. Raises: Lost."""
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
        left_s = max(deadline - time.monotonic(), 0)  # What has come in time counts, however late this thread is.
        if not self._readable.poll(left_s * 1_000):
            raise Lost(f"it has been silent for {self._patience_s:g} s")
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise Lost("its connection was closed")
        self._received += data

    def be_patient(self, within_s: float) -> None:
        """Let the other end be silent for so long. Loading modules can keep Python from sending heartbeats."""
        self._patience_s = within_s

    def expect_beats(self) -> None:
        """Take silence for a loss from now on, because the other end has said that it is ready."""
        self.be_patient(LOST_AFTER_S)

    def keep_beating(self) -> None:
        """Send a heartbeat every second from now on."""

        def beat() -> None:
            while not self._closed.wait(BEATS_EVERY_S):
                self.say()

        threading.Thread(target=beat, daemon=True).start()

    def wait_until_closed(self, within_s: float) -> None:
        """Return when the connection is closed, or after so long."""
        self._closed.wait(within_s)

    def hang_up(self) -> None:
        """End the connection for both ends. The thread that reads finds out and closes it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and release its descriptor."""
        self._closed.set()
        self.hang_up()
        self._socket.close()


def text_of(error: BaseException | None) -> str:
    """Return what another worker is told of an error."""
    return str(error)[:_MAX_TEXT_CHARS] if error else ""


def _line_of(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _message_of(line: bytes) -> Message:
    """Return the object in a line. Raises: Lost, where it is not JSON, too deeply nested for Python, or not an object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Lost("it sent a line that is no message")
    return message


def lost_peer(name: str, lost: Lost) -> TryAgainLater:
    """Return the error that ends a run which has lost one of its workers."""
    return TryAgainLater(f"{name} is lost: {lost}. Start all workers again, and the run goes on from what is saved.")


@contextmanager
def peers_first(stop: StopRequest) -> Iterator[None]:
    """Let an error of TensorFlow in the block give way to its cause: a peer that is lost, or a request to stop.

    TensorFlow may notice either before the connections between the workers do.
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
