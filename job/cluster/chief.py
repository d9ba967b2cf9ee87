"""The chief's side of the control connections. The chief, worker 0, decides, publishes, and gives orders to the others."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from job.cluster.connection import MEANINGLESS, Connection, Lost, Message, lost_peer, text_of
from job.cluster.listener import Listener
from job.cluster.secret import Secret
from job.errors import JobError, TryAgainLater, UsageError, code_of, of_code
from job.runtime.peers import Item, Peers
from job.runtime.stop import StopRequest

_LEAVES_WITHIN_S = 5.0  # A worker exits this soon after it has lost a peer.
_LOOKS_EVERY_S = 0.2
_SAYS_EVERY_S = 10.0


class Chief(Peers):
    """The `Peers` of worker 0. The other workers follow its orders during its block, and are told how the block ended.

    It listens at `address` until all `others` (their addresses) have connected. They must know `secret`. `made_from` is a
    digest of what must be equal on all workers: command line, configuration, version.
    """

    def __init__(
        self,
        address: tuple[str, int],
        others: Sequence[str],
        *,
        secret: Secret,
        made_from: str,
        start_timeout_s: float,
        stop: StopRequest,
        tell: Callable[[str], None],
    ) -> None:
        self.count = len(others) + 1
        self._others, self._made_from = others, made_from
        self._start_timeout_s, self._stop, self._tell = start_timeout_s, stop, tell
        self._workers: dict[int, Connection] = {}
        self._met = dict.fromkeys(range(1, self.count), 0)
        self._num_meetings = 0
        self._is_ready = self._is_over = False
        self._ready: set[int] = set()
        self._refused: dict[int, str] = {}
        self._changed = threading.Condition()
        self._listener = Listener(*address, secret, self._welcome)

    def __enter__(self) -> Self:
        self._stop.last_words.append(self._end_now)
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._is_over = True  # From now on, a closed connection does not mean a lost worker.
        self._listener.close()
        for line in list(self._workers.values()):
            line.say(end=code_of(error), text=text_of(error))
        for line in list(self._workers.values()):
            line.wait_until_closed(_LEAVES_WITHIN_S)

    def be_ready(self) -> None:
        """Begin to send heartbeats. Call this after slow imports: from now on, 12 seconds of silence mean a loss."""
        with self._changed:
            self._is_ready = True
            for line in self._workers.values():
                line.say(ready=True)
                line.keep_beating()

    def _end_now(self, error: JobError) -> None:
        for line in list(self._workers.values()):
            line.say_at_once(end=error.exit_code, text=text_of(error))

    def same(self, value: Item) -> Item:
        for line in self._workers.values():
            line.say(value=value)
        return value

    def meet(self) -> None:
        """Wait until all other workers have called `meet`, too. Raises: TryAgainLater, if one is lost."""
        self._num_meetings += 1
        while any(times < self._num_meetings for times in self._met.values()):
            self._stop.check()
            self._wait()

    def order(self, **what: object) -> None:
        """Wait until all other workers are ready, and send them an order.

        Raises:
            UsageError: if one was started with another command line, configuration or version.
            TryAgainLater: if one is not ready in time.
        """
        deadline = time.monotonic() + self._start_timeout_s
        says_at = time.monotonic() + _SAYS_EVERY_S
        while missing := [k for k in range(1, self.count) if k not in self._ready]:
            self._stop.check()
            who = ", ".join(map(self._name, missing))
            for k in (set(missing) & self._refused.keys()) - self._workers.keys():
                raise UsageError(f"Worker {k} ({self._others[k - 1]}) was refused: {self._refused[k]}")
            if time.monotonic() > deadline:
                raise TryAgainLater(
                    f"{who} did not connect within cluster.start_timeout_s ({self._start_timeout_s:g}). Read its log, check "
                    f"that it can reach this machine, then start all workers again.{self._listener.refused}"
                )
            if time.monotonic() > says_at:
                self._tell(f"Waiting for {who}.{self._listener.refused}")
                says_at += _SAYS_EVERY_S
            self._wait()
        self.same(what)

    def _name(self, index: int) -> str:
        return f"worker {index} ({self._others[index - 1]})"

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait(_LOOKS_EVERY_S)

    def _welcome(self, line: Connection) -> None:
        """Find out which worker has connected, and listen to it until it is lost. Runs in a thread of its own."""
        with suppress(Lost, *MEANINGLESS):
            hello = line.hear()
            index = int(hello["index"])
            if self._stop.is_asked:
                pass  # This chief is about to exit. The worker may belong to the next start, and will connect again.
            elif refusal := self._refusal(index, hello):
                self._refused[index] = refusal
                line.say(refused=refusal)
            elif self._takes(index, line):
                self._listen_to(index, line)

    def _refusal(self, index: int, hello: Message) -> str:
        if not 0 < index < self.count or hello["count"] != self.count:
            return f"it says that it is worker {index} of {hello['count']}, but there are {self.count}. Start all again."
        if hello["made_from"] != self._made_from:
            return "it was started with another command line, configuration or version than the chief. Start all again."
        return ""

    def _takes(self, index: int, line: Connection) -> bool:
        """Register the worker, and return True; False if one with its number is connected, which may be dying."""
        with self._changed:
            if index in self._workers:
                return False
            line.say(welcome=True)  # First, because other threads can send to it as soon as it is in `_workers`.
            line.be_patient(self._start_timeout_s)
            self._workers[index] = line
            if self._is_ready:
                line.say(ready=True)
                line.keep_beating()
            if len(self._workers) == self.count - 1:
                self._listener.close()  # All workers are connected.
        return True

    def _listen_to(self, index: int, line: Connection) -> None:
        try:
            while True:
                self._obey(index, line, line.hear())
                with self._changed:
                    self._changed.notify_all()
        except (Lost, *MEANINGLESS) as error:
            lost = error if isinstance(error, Lost) else Lost("it sent a malformed message")
            if not self._is_over:
                self._stop.insist(self._name(index), lost_peer(self._name(index), lost), within_s=_LEAVES_WITHIN_S)

    def _obey(self, index: int, line: Connection, message: Message) -> None:
        """Act on a message from a worker. Raises: MEANINGLESS, if it is malformed."""
        name = self._name(index)
        if "ready" in message:
            line.expect_beats()
            self._ready.add(index)
        elif "met" in message:
            self._met[index] = int(message["met"])
        elif "signal" in message:
            self._stop.insist(f"{message['signal']} of {name}", within_s=self._stop.grace_s)
        elif "failed" in message:
            error = of_code(int(message["failed"]), f"{name} ended: {message['text']}")
            self._stop.insist(name, error, within_s=_LEAVES_WITHIN_S)
