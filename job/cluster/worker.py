"""A worker's end of the conversation: it finds the chief and takes its orders."""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from job.cluster.connection import MEANINGLESS, Connection, Lost, Message, lost_peer, text_of
from job.cluster.handshake import SecretUnknown, introduce
from job.cluster.secret import Secret
from job.errors import JobError, TryAgainLater, UsageError, code_of, of_code
from job.runtime.peers import Item, part
from job.runtime.stop import StopRequest

_CONNECTS_WITHIN_S = 2.0
_TRIES_EVERY_S = 0.2
_SAYS_EVERY_S = 10.0
_SEES_WITHIN_S = 60.0  # Network file systems show another machine's new file late.


class Worker:
    """The workers of a run, as one that is not the chief sees them. The chief is told of an error that ends the block."""

    is_chief = False

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
        """Find the chief. Return False where there is none to find, because the run is finished.

        `find_secret` looks into the output directory. `is_needed` tells whether the run still has work. `prepare` does what
        may keep this process from sending heartbeats for a while.

        Raises:
            TryAgainLater: where the chief is not found in time, or this worker never sees its secret.
            UsageError: where this worker does not belong to the chief, or sees no secret in its output directory.
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
        self._stop.check()  # For a signal that came before that.
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
        """Return a connection on which both ends have proven that they know the secret. See `connect`."""
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
                if now > unknown_since + sees_within_s:  # Before the chief stops waiting.
                    raise _without_secret(chief, error) from None
                why = str(error)
            except (OSError, Lost) as error:  # Not there yet, or its name is not, or something else listens there.
                unknown_since, is_late = None, now > deadline
                why = getattr(error, "strerror", None) or str(error)
                if (says_at is None or is_late) and not is_needed():
                    return None
                if is_late:
                    raise TryAgainLater(
                        f"The {chief} was not found within cluster.start_timeout_s ({start_timeout_s:g}): {why}. Look at "
                        "its log, and whether that can be reached from here; then start all workers again."
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

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        return part(items, self.index, self.count)

    def same(self, value: Item) -> Item:  # noqa: ARG002 - the chief's counts.
        found: Item = self._next()
        return found

    def meet(self) -> None:
        self._num_meetings += 1
        self._line.say(met=self._num_meetings)

    def orders(self) -> Iterator[Message]:
        """Give what is to be done, one order after the other, until the run is over.

        Raises:
            JobError: with the exit code that the chief ends with, where that is not 0.
        """
        while (order := self._next()) is not None:
            yield order

    def _next(self) -> Any:
        """Return the chief's next order or value, or None where the run is over. Raises: JobError."""
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
            lost = error if isinstance(error, Lost) else Lost("it sent a message without a meaning")
            self._end(lost_peer("the chief", lost))

    def _take_in(self, message: Message) -> None:
        """Take in what the chief says. Raises: MEANINGLESS."""
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
        """Tell the main thread that the run is over. It may wait for the chief, or still work at what nobody wants."""
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
            f"The {chief} has written a secret into its --out, and this worker finds none in its own. It must be a folder "
            "that all workers share: a network file system, a volume that can be mounted many times, or a bucket."
        )
    return TryAgainLater(
        f"The {chief} has another secret than the one that this worker finds in --out: that one is of another start, or "
        "something else listens there. Start all workers again."
    )
