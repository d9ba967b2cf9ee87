"""A connection between two workers, in lines of JSON, that tells when the other end is lost.

A process that died is known at once, because its connection is closed; one that hangs is known by its silence.
"""

import json
import socket
import threading
from contextlib import suppress
from typing import Any

Message = dict[str, Any]

BEATS_EVERY_S = 1.0
LOST_AFTER_S = 12.0  # Of silence.


class Lost(Exception):
    """The other end is gone; the message says how that is known."""


class Connection:
    """Written to by several threads and read by one."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._writing = connected, threading.Lock()
        self._closed = threading.Event()
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.expect_beats()
        self._reader = connected.makefile("rb")

    def say(self, **message: Any) -> None:
        """If there is nobody any more, whoever reads hears of it."""
        with suppress(OSError), self._writing:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def say_at_once(self, **message: Any) -> None:
        """The same, or nothing where that would have to wait."""
        if self._writing.acquire(timeout=0.2):
            with suppress(OSError):
                self._socket.send(json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT)
            self._writing.release()

    def hear(self) -> Message:
        """The next message.

        Raises:
            Lost.
        """
        while True:
            try:
                text = self._reader.readline()
            except TimeoutError:
                self._closed.set()
                raise Lost(f"it has been silent for {self._patience_s:g} s") from None
            except OSError as error:
                self._closed.set()
                raise Lost(error.strerror or str(error)) from None
            if not text.endswith(b"\n"):
                self._closed.set()
                raise Lost("its connection was closed")
            message: Message = json.loads(text)
            if message:
                return message

    def be_patient(self, within_s: float) -> None:
        """The other end may be silent for so long: it loads modules, which can keep Python from beating."""
        self._patience_s = within_s
        self._socket.settimeout(within_s)

    def expect_beats(self) -> None:
        """It has said that it is ready."""
        self.be_patient(LOST_AFTER_S)

    def keep_beating(self) -> None:
        """Say nothing, every now and then."""

        def beat() -> None:
            while not self._closed.wait(BEATS_EVERY_S):
                self.say()

        threading.Thread(target=beat, daemon=True).start()

    def wait_until_closed(self, within_s: float) -> None:
        self._closed.wait(within_s)

    def close(self) -> None:
        self._closed.set()
        with suppress(OSError):
            self._socket.close()
