"""A worker's side of the control connection: it finds the chief and follows its orders."""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Self

from job.cluster.connection import MEANINGLESS, Connection, Lost, Message, lost_peer, text_of
from job.cluster.handshake import SecretUnknown, introduce
from job.cluster.secret import Secret
from job.errors import JobError, TryAgainLater, UsageError, code_of, of_code
from job.runtime.peers import Item, Peers
from job.runtime.stop import StopRequest

_CONNECTS_WITHIN_S = 2.0
_TRIES_EVERY_S = 0.2
_SAYS_EVERY_S = 10.0
_SEES_WITHIN_S = 60.0  # On a network file system, another machine's new file can appear late.


class Worker(Peers):
    """The `Peers` of a worker that is not the chief. If an error ends the block, the chief is told."""

    def __init__(self, index: int, count: int, stop: StopRequest) -> None:
        self.index, self.count, self._stop = index, count, stop
        self._values: deque[object] = deque()
        self._changed = threading.Condition()
        self._ended: JobError | bool = False
        self._num_meetings = 0

    def connect(
        self,
        address: tuple[str, int],
        *,
        find_secret: Callable[[], Secret | None],
        made_from: str,
        start_timeout_s: float,
        is_needed: Callable[[], bool],
        prepare: Callable[[], None],
        tell: Callable[[str], None],
    ) -> bool:
        """Find the chief and join its run. Return False if there is no chief because the run is finished.

        `find_secret` reads the output directory. `is_needed` returns whether the run still has work. `prepare` does slow
        imports, during which this process may send no heartbeats.

        Raises:
            TryAgainLater: if the chief is not found in time, or the output has another secret than the chief's.
            UsageError: if the chief refuses this worker, or the output directory has no secret.
        """
        line = self._found_chief(address, find_secret, start_timeout_s, is_needed, tell)
        if line is None:
            return False
        self._line = line
        line.trust()
        line.be_patient(start_timeout_s)
        line.say(index=self.index, count=self.count, made_from=made_from)
        try:
            answer = line.hear()
        except Lost as lost:
            raise lost_peer("The chief", lost) from None
        if "refused" in answer:
            raise UsageError(f"The chief at {address[0]}:{address[1]} refused this worker: {answer['refused']}")
        prepare()
        line.say(ready=True)
        line.keep_beating()
        self._stop.deferred_to = lambda name: line.say(signal=name)
        self._stop.check()  # A signal may have come before the line above.
        threading.Thread(target=self._listen, daemon=True).start()
        return True

    def _found_chief(
        self,
        address: tuple[str, int],
        find_secret: Callable[[], Secret | None],
        start_timeout_s: float,
        is_needed: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> Connection | None:
        """Return a connection on which both ends have proven the secret, or None if the run is finished. See `connect`."""
        chief = f"chief at {address[0]}:{address[1]}"
        deadline, sees_within_s = time.monotonic() + start_timeout_s, min(start_timeout_s / 2, _SEES_WITHIN_S)
        unknown_since = says_at = None
        while True:
            self._stop.check()
            now = time.monotonic()
            try:
                return _introduced(address, find_secret, max(deadline - now, 1.0))
            except SecretUnknown as error:
                unknown_since = unknown_since or now
                if now > unknown_since + sees_within_s:  # Earlier than the chief's timeout, whose message is vaguer.
                    raise _without_secret(chief, error) from None
                why = str(error)
            except (OSError, Lost) as error:  # No chief or no DNS name yet, or another program listens there.
                unknown_since, is_late = None, now > deadline
                why = getattr(error, "strerror", None) or str(error)
                if (says_at is None or is_late) and not is_needed():
                    return None
                if is_late:
                    raise TryAgainLater(
                        f"The {chief} was not found within cluster.start_timeout_s ({start_timeout_s:g}): {why}. Read its "
                        "log, check that this machine can reach it, then start all workers again."
                    ) from error
            if says_at is None or now > says_at:
                tell(f"Waiting for the {chief} ({why})")
                says_at = now + _SAYS_EVERY_S
            time.sleep(_TRIES_EVERY_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._stop.deferred_to = None
        if error is not None and not self._ended and hasattr(self, "_line"):
            self._line.say(failed=code_of(error), text=text_of(error))

    def same(self, value: Item) -> Item:  # noqa: ARG002 - the result is the chief's value.
        found: Item = self._next()
        return found

    def meet(self) -> None:
        self._num_meetings += 1
        self._line.say(met=self._num_meetings)

    def orders(self) -> Iterator[Message]:
        """Yield the chief's orders one by one until the run is over.

        Raises:
            JobError: with the chief's exit code, if that is not 0.
        """
        while (order := self._next()) is not None:
            yield order

    def _next(self) -> Any:
        """Return the chief's next order or value, or None if the run is over. Raises: JobError."""
        with self._changed:
            while not self._values and not self._ended:
                self._changed.wait()
            if self._values:
                return self._values.popleft()
        if isinstance(self._ended, JobError):
            raise self._ended
        return None

    def _listen(self) -> None:
        try:
            while not self._ended:
                self._take_in(self._line.hear())
        except (Lost, *MEANINGLESS) as error:
            lost = error if isinstance(error, Lost) else Lost("it sent a malformed message")
            self._end(lost_peer("the chief", lost))

    def _take_in(self, message: Message) -> None:
        """Act on a message from the chief. Raises: MEANINGLESS, if it is malformed."""
        if "end" in message:
            code = int(message["end"])
            self._end(of_code(code, f"The chief ended: {message['text']}") if code else True)
        elif "ready" in message:
            self._line.expect_beats()
        elif "value" in message:
            with self._changed:
                self._values.append(message["value"])
                self._changed.notify_all()

    def _end(self, how: JobError | bool) -> None:
        """Tell the main thread that the run is over. It may wait for the chief, or still compute a useless result."""
        with self._changed:
            self._ended = how
            self._values.clear()
            self._changed.notify_all()
        if isinstance(how, JobError):
            self._stop.insist("the chief", how, within_s=1.0)


def _introduced(address: tuple[str, int], find_secret: Callable[[], Secret | None], within_s: float) -> Connection:
    """Return a new connection to the chief. Raises: SecretUnknown, Lost, OSError, and what `find_secret` raises."""
    line = Connection(socket.create_connection(address, timeout=_CONNECTS_WITHIN_S))
    try:
        line.be_patient(within_s)
        introduce(line, find_secret)
    except BaseException:
        line.close()
        raise
    return line


def _without_secret(chief: str, error: SecretUnknown) -> JobError:
    if error.has_none:
        return UsageError(
            f"The {chief} has written a secret into its --out, but this worker finds none in its own. Give all workers the "
            "same --out, which must be shared: a network file system, a ReadWriteMany volume, or a bucket."
        )
    return TryAgainLater(
        f"The {chief} has another secret than this worker finds in --out. Either that one is left from an earlier start, or "
        "another program listens at that address. Start all workers again."
    )
