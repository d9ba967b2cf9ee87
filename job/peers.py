"""The workers of a run talk: the chief says what to do, the others say that it is done, and everyone hears who is lost.

One connection leads from each worker to the chief. Data goes another way, through the output directory that all share. A
worker holds nothing that is not on the disk, so it may be ended at any instant.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self, TypeVar

from job.connection import Connection, Lost, Message
from job.errors import JobError, TryAgainLater, UsageError, code_of, of_code
from job.stop import StopRequest

Item = TypeVar("Item")

HEARD_WITHIN_S = 5.0  # What TensorFlow has noticed of a lost peer is known here soon after.
_LEAVES_WITHIN_S = 5.0  # Whoever works with a peer that is lost.
_TRIES_EVERY_S = 0.2
_SAYS_EVERY_S = 10.0
_SEES_WITHIN_S = 60.0  # Network file systems show another machine's new file late.


class Peers(Protocol):
    """The workers of a run, as one of them sees them."""

    index: int
    count: int

    @property
    def is_chief(self) -> bool:
        """Whether this worker decides and publishes; true where there is one alone."""

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """This worker's part of work that can be divided."""

    def same(self, value: Item) -> Item:
        """The chief's value, on all workers. Each must come here, in the same order."""

    def meet(self) -> None:
        """On the chief, wait until all others have come here. They go on."""


class Alone:
    """One worker, which is the chief."""

    index, count, is_chief = 0, 1, True

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        return items

    def same(self, value: Item) -> Item:
        return value

    def meet(self) -> None:
        return


class Chief:
    """Listens for the others while its block lasts, and tells them how it ended.

    `made_from` is a digest of what a worker must have been started with, `token` what it must see in the output directory.
    """

    index, is_chief = 0, True

    def __init__(
        self,
        port: int,
        others: Sequence[str],
        *,
        made_from: str,
        token: str,
        start_timeout_s: float,
        stop: StopRequest,
        tell: Callable[[str], None],
    ) -> None:
        self.count = len(others) + 1
        self._others, self._made_from, self._token = others, made_from, token
        self._start_timeout_s, self._stop, self._tell = start_timeout_s, stop, tell
        self._workers: dict[int, Connection] = {}
        self._met = dict.fromkeys(range(1, self.count), 0)
        self._num_meetings = 0
        self._is_ready = self._is_over = False
        self._ready: set[int] = set()
        self._refused: dict[int, str] = {}
        self._changed = threading.Condition()
        try:
            if socket.has_dualstack_ipv6():
                self._socket = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
            else:
                self._socket = socket.create_server(("", port), backlog=128)
        except OSError as error:
            raise TryAgainLater(
                f"The chief cannot listen on port {port} ({error.strerror}): another job on this machine may use it."
            ) from error
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        self._stop.last_word = self._end_now
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._is_over = True  # Then nobody is lost who leaves.
        self._stop_listening()
        for line in list(self._workers.values()):
            line.say(end=code_of(error), text=str(error) if error else "")
        for line in list(self._workers.values()):
            line.wait_until_closed(_LEAVES_WITHIN_S)

    def be_ready(self) -> None:
        """From now on silence means a loss: what keeps a process from hearing is done."""
        with self._changed:
            self._is_ready = True
            for line in self._workers.values():
                line.say(ready=True)
                line.keep_beating()

    def _end_now(self, error: JobError) -> None:
        for line in list(self._workers.values()):
            line.say_at_once(end=error.exit_code, text=str(error))

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        return _part(items, 0, self.count)

    def same(self, value: Item) -> Item:
        for line in self._workers.values():
            line.say(value=value)
        return value

    def meet(self) -> None:
        """
        Raises:
            TryAgainLater: where one is lost.
        """
        self._num_meetings += 1
        self._wait(lambda: all(times >= self._num_meetings for times in self._met.values()))

    def order(self, **what: Any) -> None:
        """Have all others do something, as soon as all are there.

        Raises:
            UsageError: where one was started otherwise.
            TryAgainLater: where one does not come in time.
        """
        deadline = time.monotonic() + self._start_timeout_s
        says_at = time.monotonic() + _SAYS_EVERY_S
        while missing := [k for k in range(1, self.count) if k not in self._ready]:
            self._stop.check()
            who = ", ".join(f"worker {k} ({self._others[k - 1]})" for k in missing)
            for k in (set(missing) & self._refused.keys()) - self._workers.keys():
                raise UsageError(f"Worker {k} ({self._others[k - 1]}) was refused: {self._refused[k]}")
            if time.monotonic() > deadline:
                raise TryAgainLater(
                    f"{who} did not come within cluster.start_timeout_s ({self._start_timeout_s:g}). Look at its log, and "
                    "whether it can reach this machine; then start all workers again."
                )
            if time.monotonic() > says_at:
                self._tell(f"Waiting for {who}")
                says_at += _SAYS_EVERY_S
            with self._changed:
                self._changed.wait(_TRIES_EVERY_S)
        self.same(what)

    def _wait(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self._stop.check()
            with self._changed:
                self._changed.wait(_TRIES_EVERY_S)

    def _accept(self) -> None:
        with suppress(OSError):  # Closed, because the run is over.
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._welcome, args=(Connection(connection),), daemon=True).start()

    def _stop_listening(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # What wakes the thread that accepts.
        self._socket.close()

    def _welcome(self, line: Connection) -> None:
        with suppress(Lost, ValueError, KeyError, TypeError):  # Whoever else knocks at a port, too.
            hello = line.hear()
            index = int(hello["index"])
            if self._stop.is_asked:
                pass  # A worker of the next start has met a chief that is about to end: it may come again.
            elif refusal := self._refusal(index, hello):
                self._refused[index] = refusal
                line.say(refused=refusal)
            elif self._takes(index, line):
                self._listen_to(index, line)
        line.close()

    def _refusal(self, index: int, hello: Message) -> str:
        if not 0 < index < self.count or hello["count"] != self.count:
            return f"it calls itself worker {index} of {hello['count']}, and there are {self.count}."
        if hello["made_from"] != self._made_from:
            return "it was started with another command line, configuration or version than the chief."
        return ""

    def _takes(self, index: int, line: Connection) -> bool:
        """False where there is such a worker already, which may be one that is dying."""
        with self._changed:
            if index in self._workers:
                return False
            line.say(token=self._token)  # Before anybody else can say something to it.
            line.be_patient(self._start_timeout_s)
            self._workers[index] = line
            if self._is_ready:
                line.say(ready=True)
                line.keep_beating()
        return True

    def _listen_to(self, index: int, line: Connection) -> None:
        name = f"worker {index} ({self._others[index - 1]})"
        try:
            while True:
                message = line.hear()
                if "ready" in message:
                    line.expect_beats()
                    self._ready.add(index)
                elif "met" in message:
                    self._met[index] += 1
                elif "signal" in message:
                    self._stop.insist(f"{message['signal']} of {name}", within_s=self._stop.grace_s)
                elif "failed" in message:
                    error = of_code(message["failed"], f"{name} ended: {message['text']}")
                    self._stop.insist(name, error, within_s=_LEAVES_WITHIN_S)
                with self._changed:
                    self._changed.notify_all()
        except Lost as lost:
            if not self._is_over:
                self._stop.insist(name, _lost(name, lost), within_s=_LEAVES_WITHIN_S)


class Worker:
    """Does what the chief says, while its block lasts. What ends the block in error is told to the chief."""

    is_chief = False

    def __init__(self, index: int, count: int, stop: StopRequest) -> None:
        self.index, self.count, self._stop = index, count, stop
        self._values: deque[Any] = deque()
        self._changed = threading.Condition()
        self._ended: JobError | bool = False

    def connect(
        self,
        address: tuple[str, int],
        *,
        made_from: str,
        start_timeout_s: float,
        sees: Callable[[str], bool],
        is_needed: Callable[[], bool],
        prepare: Callable[[], None],
        tell: Callable[[str], None],
    ) -> bool:
        """Find the chief; False where nothing is left to do without having found it.

        `sees` tells whether the output directory holds a token, `is_needed` whether the run is not finished; `prepare` does
        what may keep this process from saying anything for a while.

        Raises:
            TryAgainLater: where it is not to be found in time.
            UsageError: where this worker does not belong to it, or sees another output directory.
        """
        host, port = address
        deadline = time.monotonic() + start_timeout_s
        says_at: float | None = None
        while True:
            self._stop.check()
            try:
                connection = socket.create_connection(address, timeout=2.0)
                break
            except OSError as error:  # Not there yet, or its name is not.
                is_late = time.monotonic() > deadline
                if (says_at is None or is_late) and not is_needed():
                    return False
                if says_at is None or time.monotonic() > says_at:
                    tell(f"Waiting for the chief at {host}:{port} ({error.strerror or error})")
                    says_at = time.monotonic() + _SAYS_EVERY_S
                if is_late:
                    raise TryAgainLater(
                        f"The chief at {host}:{port} was not found within cluster.start_timeout_s ({start_timeout_s:g}): "
                        f"{error.strerror or error}. Look at its log, and whether that can be reached from here; then "
                        "start all workers again."
                    ) from error
                time.sleep(_TRIES_EVERY_S)
        self._line = Connection(connection)
        self._line.be_patient(start_timeout_s)
        self._line.say(index=self.index, count=self.count, made_from=made_from)
        try:
            answer = self._line.hear()
        except Lost as lost:
            raise _lost("The chief", lost) from None
        if "refused" in answer:
            raise UsageError(f"The chief at {host}:{port} refused this worker: {answer['refused']}")
        self._look_for(answer["token"], sees, start_timeout_s)
        prepare()
        self._line.say(ready=True)
        self._line.keep_beating()
        self._stop.deferred_to = lambda name: self._line.say(signal=name)
        self._stop.check()  # For a signal that came before that.
        threading.Thread(target=self._listen, daemon=True).start()
        return True

    def _look_for(self, token: str, sees: Callable[[str], bool], within_s: float) -> None:
        deadline = time.monotonic() + min(within_s / 2, _SEES_WITHIN_S)  # Before the chief stops waiting.
        while not sees(token):
            self._stop.check()
            if time.monotonic() > deadline:
                raise UsageError(
                    "This worker does not see in --out what the chief wrote there. It must be a folder that all workers "
                    "share: a network file system, a volume that can be mounted many times, or a bucket."
                )
            time.sleep(_TRIES_EVERY_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._stop.deferred_to = None
        if error is not None and not self._ended and hasattr(self, "_line"):
            self._line.say(failed=code_of(error), text=str(error))

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        return _part(items, self.index, self.count)

    def same(self, value: Item) -> Item:  # noqa: ARG002 - the chief's counts.
        found: Item = self._next()
        return found

    def meet(self) -> None:
        self._line.say(met=True)

    def orders(self) -> Iterator[Message]:
        """What to do, one after the other, until the run is over.

        Raises:
            JobError: with the exit code that the chief ends with, where that is not 0.
        """
        while (order := self._next()) is not None:
            yield order

    def _next(self) -> Any:
        """The chief's next word; None where it is done."""
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
            while True:
                message = self._line.hear()
                if "end" in message:
                    code = message["end"]
                    self._end(of_code(code, f"The chief ended: {message['text']}") if code else True)
                    return
                if "ready" in message:
                    self._line.expect_beats()
                elif "value" in message:
                    with self._changed:
                        self._values.append(message["value"])
                        self._changed.notify_all()
        except Lost as lost:
            self._end(_lost("the chief", lost))

    def _end(self, how: JobError | bool) -> None:
        """The main thread may wait for the chief's next word, and hears it. Or it may work at what nobody wants any more."""
        with self._changed:
            self._ended = how
            self._values.clear()
            self._changed.notify_all()
        if isinstance(how, JobError):
            self._stop.insist("the chief", how, within_s=1.0)


def _part(items: Sequence[Item], index: int, count: int) -> Sequence[Item]:
    return items[index * len(items) // count : (index + 1) * len(items) // count]


def _lost(name: str, lost: Lost) -> TryAgainLater:
    return TryAgainLater(f"{name} is lost: {lost}. Start all workers again, and the run goes on from what is saved.")
