"""The chief's end of the control port: it lets workers in. A connection from anybody else is closed and changes nothing."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from job.cluster.connection import Connection, Lost
from job.cluster.handshake import admit
from job.cluster.secret import Secret
from job.errors import TryAgainLater, UsageError

_MAX_STRANGERS = 64  # Connections without a proof, at once. Each has a thread and at most 64 kB.
_PROVES_WITHIN_S = 10.0
_PAUSE_S = 0.1


class Listener:
    """Accepts connections on a port until it is closed.

    `welcome` is called, in a thread of its own, with each connection whose other end knows the secret. The others are closed
    after ten seconds, and the oldest one of them as soon as there are more than 64.
    """

    def __init__(self, host: str, port: int, secret: Secret, welcome: Callable[[Connection], None]) -> None:
        self._secret, self._welcome = secret, welcome
        self._strangers: dict[Connection, None] = {}  # In the order in which they came.
        self._changing = threading.Lock()
        self._num_refused, self._refused_last = 0, ""
        self._is_closed = False
        try:
            self._socket = _listening(host, port)
        except PermissionError as error:
            raise UsageError(f"The chief may not listen on port {port}: give worker 0 a port above 1024.") from error
        except OSError as error:
            raise TryAgainLater(
                f"The chief cannot listen on port {port} ({error.strerror}): another job on this machine may use it."
            ) from error
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening. Connections that were accepted stay open."""
        self._is_closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # It wakes the thread that accepts.
        self._socket.close()

    @property
    def refused(self) -> str:
        """A sentence about connections that were closed without a proof; empty where there were none."""
        if not self._num_refused:
            return ""
        return (
            f" Connections refused: {self._num_refused:,}, the last one from {self._refused_last}. They did not prove that "
            "they know the secret of this run. A worker that sees another --out cannot."
        )

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connected, (address, *_) = self._socket.accept()
                self._take_in(connected, str(address).removeprefix("::ffff:"))
            except (OSError, RuntimeError):  # No descriptor or thread is free, or the other end is gone already.
                time.sleep(_PAUSE_S)

    def _take_in(self, connected: socket.socket, address: str) -> None:
        line = Connection(connected)
        line.be_patient(_PROVES_WITHIN_S)
        with self._changing:
            if len(self._strangers) == _MAX_STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.hang_up()
            self._strangers[line] = None
        try:
            threading.Thread(target=self._serve, args=(line, address), daemon=True).start()
        except RuntimeError:
            self._forget(line)
            line.close()
            raise

    def _serve(self, line: Connection, address: str) -> None:
        try:
            if self._admits(line, address):
                self._welcome(line)
        finally:
            line.close()

    def _admits(self, line: Connection, address: str) -> bool:
        try:
            admit(line, self._secret)
            line.trust()
        except Lost:
            with self._changing:
                self._num_refused += 1
                self._refused_last = address
            return False
        finally:
            self._forget(line)
        return True

    def _forget(self, line: Connection) -> None:
        with self._changing:
            self._strangers.pop(line, None)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket on one address where that certainly belongs to this machine, else on all addresses.

    A name is never certain: while a pod or a job starts, its own name may lead to 127.0.0.1 or nowhere.
    """
    with suppress(ValueError, OSError):  # The host is a name, or an address that is not this machine's.
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if not address.is_unspecified:
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            return socket.create_server((str(address), port), family=family, backlog=128)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    return socket.create_server(("", port), backlog=128)
