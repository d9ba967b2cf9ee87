"""The chief's control port. It accepts workers that know the secret, and closes every other connection."""

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

_MAX_STRANGERS = 64  # Open connections that have not proven the secret. Each takes a thread and at most 64 kB.
_PROVES_WITHIN_S = 10.0
_PAUSE_S = 0.1


class Listener:
    """A socket that accepts connections until it is closed. Raises as `listening` does.

    It calls `welcome`, in a new thread, with each connection whose other end has proven that it knows the secret. It closes
    other connections after ten seconds. If there are more than 64 of them, it closes the oldest one at once.
    """

    def __init__(self, host: str, port: int, secret: Secret, welcome: Callable[[Connection], None]) -> None:
        self._secret, self._welcome = secret, welcome
        self._strangers: dict[Connection, None] = {}  # In the order in which they came.
        self._changing = threading.Lock()
        self._num_refused, self._refused_last = 0, ""
        self._is_closed = False
        self._socket = listening(host, port, "The chief")
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening. Connections that were accepted stay open."""
        self._is_closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # This wakes the thread in `accept`.
        self._socket.close()

    @property
    def refused(self) -> str:
        """Sentences for the user about refused connections; empty if there were none."""
        if not self._num_refused:
            return ""
        return (
            f" Connections refused: {self._num_refused:,}, the last one from {self._refused_last}. They did not know the "
            "secret of this run. If one of them is a worker, its --out is another folder than the chief's."
        )

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connected, (address, *_) = self._socket.accept()
                self._take_in(connected, str(address).removeprefix("::ffff:"))
            except (OSError, RuntimeError):  # No file descriptor or thread is free, or the other end has hung up.
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
            admit(line, self._secret)
        except Lost:
            with self._changing:
                self._num_refused += 1
                self._refused_last = address
        else:
            line.trust()
            self._forget(line)
            self._welcome(line)
        finally:
            self._forget(line)
            line.close()

    def _forget(self, line: Connection) -> None:
        with self._changing:
            self._strangers.pop(line, None)


def listening(host: str, port: int, who: str) -> socket.socket:
    """Return a socket that listens on a port of this machine. Messages call the worker `who`.

    Raises:
        UsageError: if this user may not listen on the port.
        TryAgainLater: if the port is in use.
    """
    try:
        return _listening(host, port)
    except PermissionError as error:
        raise UsageError(f"{who} may not listen on port {port}: give this worker a port above 1024.") from error
    except OSError as error:
        raise TryAgainLater(
            f"{who} cannot listen on port {port} ({error.strerror}): another job on this machine may use it. Start all "
            "workers again when that job has ended, or give this worker another port."
        ) from error


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` if that is an IP address of this machine, else on all addresses.

    A host name is not trusted: while a pod or a Slurm job starts, its own name may resolve to 127.0.0.1 or not at all.
    """
    with suppress(ValueError, OSError):  # `host` is a name, or an address of another machine.
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        if not address.is_unspecified:
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            return socket.create_server((str(address), port), family=family, backlog=128)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    return socket.create_server(("", port), backlog=128)
