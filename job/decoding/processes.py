"""Disposable decode processes: only they parse untrusted bytes.

Each process decodes one shard after another directly into the shard's file, and writes a line into a pipe after each photo.
The lines stay in the pipe if the process crashes or hangs. A new process then continues behind the photo that caused it, so
a bad file costs only itself. The main process reads this pipe now and then. Waking up for every photo would take a large
part of the time (docs/decisions/0007-intake-at-scale.md).

A second pipe has the messages that the main process waits for: a task is done, or the process cannot continue. `wire.py`
defines the lines of both pipes. Objects are pickled only in the other direction, to the decode process.
"""

import atexit
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from pydantic import ValidationError

from job.decoding.decode import can_read_heic
from job.decoding.rules import DecodeRules
from job.decoding.wire import Lines, NewsLine, RecordLine
from job.decoding.worker import Record, record_of, work
from job.errors import JobError, StorageFailed, TryAgainLater, of_code
from job.runtime.children import without_main
from job.runtime.stop import StopRequest
from job.runtime.telemetry import Telemetry
from job.sources.base import Entry, Source
from job.storage.files import remove_tree

# Reasons that depend on the machine and the moment, not on the photo, begin with these words.
_PASSING = (
    "cannot be read: ",
    "took longer to decode than ",
    "the decoder crashed on it twice ",
    "needs more memory to decode than ",
)
_MAX_FOLDER_OF_SOCKETS = 107 - len("/pymp-12345678/listener-12345678")
_SECONDS_BETWEEN_LOOKS = 0.02  # A pipe holds the records of about 200 photos. When it is full, the process has to wait.
_SERVER_IS_GONE = 255
_FORK_SERVER = multiprocessing.get_context("forkserver")
# The fork server imports these modules once for all processes. It skips a module that is not installed.
_FORK_SERVER.set_forkserver_preload([work.__module__, "pillow_heif"])


@dataclass(frozen=True)
class Limits:
    """The number of decode processes, and the time and additional memory that a photo may take in one."""

    num_workers: int
    timeout_s: float
    memory_mb: int


@dataclass
class ShardTask:
    """Photos to decode into the rows of `file`. `records` gets one for each entry; refused photos have no row.

    A photo whose SHA-256 is in `stored` is not decoded, and has no row either.
    """

    key: str
    entries: tuple[Entry, ...]
    file: Path
    stored: frozenset[str] = frozenset()
    records: list[Record] = field(default_factory=list)
    crashed_at: int = -1

    @property
    def num_rows(self) -> int:
        return sum(r["status"] in ("used", "converted") for r in self.records)


def is_passing(record: Record) -> bool:
    """Return whether another try may give another result."""
    return record["status"] == "quarantined" and record["reason"].startswith(_PASSING)


def is_outdated(record: Record) -> bool:
    """Return whether decoding the file again gives another record, because a plugin that was missing is installed now."""
    return lacks_plugin(record["status"], record["reason"]) and can_read_heic()


def lacks_plugin(status: str, reason: str) -> bool:
    """Return whether a file was refused because the plugin that reads its format was not installed."""
    return status == "quarantined" and reason.startswith("a HEIC picture, which this job does not read")


def decode_shards(
    tasks: Iterable[ShardTask], source: Source, rules: DecodeRules, limits: Limits, telemetry: Telemetry, stop: StopRequest
) -> Iterator[ShardTask]:
    """Yield the tasks as they are finished, in any order.

    Raises: Stopped, without waiting for the end of a shard; TryAgainLater, if a decode process is killed while it starts;
    StorageFailed, if a shard cannot be written, or the source cannot be read.
    """
    waiting = iter(tasks)
    _shorten_socket_paths()
    with _stopped_first(stop), ExitStack() as stack:
        workers = []
        for _, task in zip(range(limits.num_workers), waiting, strict=False):
            workers.append(_Worker(source, rules, limits, telemetry))
            stack.callback(workers[-1].close)
            workers[-1].assign(task)
        following = next(waiting, None)  # Prepared in advance, because making its file may wait for the disk.
        while busy := [w for w in workers if w.task is not None]:
            stop.check()
            ready = wait([w.news for w in busy], timeout=_SECONDS_BETWEEN_LOOKS)
            for worker in busy:
                if worker.news not in ready:
                    worker.check_time()
                elif (finished := worker.receive()) is not None:
                    if following is not None:
                        worker.assign(following)
                        following = next(waiting, None)
                    yield finished


@contextmanager
def _stopped_first(stop: StopRequest) -> Iterator[None]:
    """Let a stop request win over an error in the block: the same signal may have caused the error."""
    try:
        yield
    except Exception:
        stop.check()
        raise


def _shorten_socket_paths() -> None:
    """Move the fork server's sockets to /tmp if TMPDIR is too long for the path of a socket."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    if not config.get("tempdir") and len(os.fsencode(tempfile.gettempdir())) > _MAX_FOLDER_OF_SOCKETS:
        config["tempdir"] = tempfile.mkdtemp(prefix="pymp-", dir="/tmp")
        atexit.register(remove_tree, Path(config["tempdir"]))


class _Worker:
    def __init__(self, source: Source, rules: DecodeRules, limits: Limits, telemetry: Telemetry) -> None:
        self._source, self._rules, self._limits, self._telemetry = source, rules, limits, telemetry
        self.task: ShardTask | None = None
        self._start()

    def _start(self) -> None:
        self._tasks, tasks_far_end = _FORK_SERVER.Pipe()  # A duplex pipe is a socket, whose buffer holds a whole task.
        self.news, news_far_end = _FORK_SERVER.Pipe(duplex=False)
        self._records, records_far_end = _FORK_SERVER.Pipe(duplex=False)
        self._news_lines, self._record_lines = Lines(self.news), Lines(self._records)
        far_ends = (tasks_far_end, news_far_end, records_far_end)
        arguments = (*far_ends, self._source, self._rules, self._limits.memory_mb)
        self._process = _FORK_SERVER.Process(target=work, args=arguments, daemon=True)
        try:
            with without_main():
                self._process.start()
        except (EOFError, ConnectionError) as error:  # The fork server is gone.
            raise _not_started(None) from error
        self._is_ready = False
        self._is_believed = True
        self._cpu_s = 0.0
        for end in far_ends:
            end.close()

    def assign(self, task: ShardTask) -> None:
        self.task = task
        self._last_news = time.monotonic()
        self._timed_out = False
        try:
            self._tasks.send((task.entries, len(task.records), task.num_rows, task.file, task.stored))
        except BrokenPipeError:
            self._replace()

    def receive(self) -> ShardTask | None:
        """Read the messages of the process, and replace it if it has ended. Return the task if it is finished."""
        lines = self._news_lines.take()
        if self._news_lines.has_ended and not lines:
            return self._replace()
        if not self._is_believed:
            return None
        try:
            told = [NewsLine.model_validate_json(line) for line in lines]
        except ValidationError:
            told = []
        if len(told) < len(lines) or self._news_lines.is_too_long:
            self._take_records()  # The process wrote them before the invalid message.
            self._distrust()
            return None
        for news in told:
            if news.kind == "ready":
                self._last_news = time.monotonic()  # The time limit of the first photo does not include the start.
                self._is_ready = True
            elif news.kind == "done":
                return self._finished(news.cpu_s)
            else:
                raise self._failure(news)
        return None

    def _finished(self, cpu_s: float) -> ShardTask | None:
        assert self.task is not None
        self._cpu_s = cpu_s
        self._take_records()
        if len(self.task.records) == len(self.task.entries):
            return self._given_back()
        self._distrust()
        return None

    def _failure(self, news: NewsLine) -> Exception:
        assert self.task is not None
        if news.kind == "storage":
            return StorageFailed(f"{self.task.file.parent}: {news.text}. Free some space and run the same command again.")
        return of_code(news.code, news.text) if news.kind == "error" else RuntimeError(news.text)

    def _distrust(self) -> None:
        """Kill a process that has sent an invalid message. It is replaced like one that has crashed."""
        self._is_believed = False
        self._process.kill()

    def check_time(self) -> None:
        """Take the records that there are. Kill the process if it has been at one photo for too long."""
        if self._take_records():
            self._last_news = time.monotonic()
        elif self._is_ready and time.monotonic() - self._last_news > self._limits.timeout_s + self._source.patience_s:
            self._timed_out = True
            self._process.kill()

    def _take_records(self) -> int:
        """Move the records in the pipe to the task, up to the first invalid one. Return how many were moved."""
        assert self.task is not None
        before = len(self.task.records)
        for line in self._record_lines.take() if self._is_believed else ():
            try:
                record = RecordLine.model_validate_json(line).model_dump(exclude_none=True)
            except ValidationError:
                self._distrust()
                break
            if record["status"] == "stored" and record["sha256"] not in self.task.stored:
                self._distrust()
                break
            self.task.records.append(record)
        if len(self.task.records) > len(self.task.entries) or self._record_lines.is_too_long:
            del self.task.records[len(self.task.entries) :]
            self._distrust()
        return len(self.task.records) - before

    def _replace(self) -> ShardTask | None:
        """Start a new process for one that has ended. Return the task if it is finished, or else assign it again.

        The photo that it was at is quarantined if it took too long, or if a process has crashed on it twice.
        """
        assert self.task is not None
        self._process.join()
        if not self._is_ready:
            raise _not_started(self._process.exitcode)
        if self._take_records():
            self._timed_out = False  # The slow photo was finished before the process was killed. The next one is not slow.
        at, task = len(self.task.records), self.task
        if at == len(task.entries):
            pass  # It ended after its last photo, before it could report that.
        elif self._timed_out:
            self._blame(f"took longer to decode than intake.decode_timeout_s ({self._limits.timeout_s:g})")
        elif task.crashed_at == at:
            self._blame(f"the decoder crashed on it twice (exit code {self._process.exitcode})")
        else:
            task.crashed_at = at
        self._close_pipes()
        self._start()
        if len(task.records) < len(task.entries):
            self.assign(task)
            return None
        return self._given_back()

    def _blame(self, reason: str) -> None:
        assert self.task is not None
        self.task.records.append(record_of(self.task.entries[len(self.task.records)], "quarantined", reason))

    def _given_back(self) -> ShardTask | None:
        task, self.task = self.task, None
        return task

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self._tasks, self.news, self._records):
            pipe.close()
        self._telemetry.decoders_cpu_s += self._cpu_s


def _not_started(exit_code: int | None) -> JobError:
    """Return the error for a decode process that ended before it was ready.

    A positive exit code means a bug, such as a module that cannot be imported. That of a killed process is negative, or 255
    if the fork server was killed.
    """
    if exit_code is None or exit_code < 0 or exit_code == _SERVER_IS_GONE:
        return TryAgainLater(
            "A decode process was killed while it started, perhaps because memory ran out. Run the same command again; "
            "if that repeats, give the job more memory."
        )
    return JobError(f"A decode process did not start (exit code {exit_code}).")
