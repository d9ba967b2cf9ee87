"""The reports of a run while it works: lines or a progress bar for people, events.jsonl and TensorBoard for programs."""

from __future__ import annotations

import json
import resource
import secrets
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

import numpy as np

from job.errors import Stopped, code_of
from job.storage.files import storage_errors
from job.text.numbers import about, rate
from job.text.untrusted import escaped

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from tensorboardX.event_file_writer import EventsWriter

SECONDS_BETWEEN_LINES = 5.0

_once_s: dict[str, float] = {}


@contextmanager
def spent_once(what: str) -> Iterator[None]:
    """Count the wall seconds of the block as time for `what`, in a count of the process: modules are imported only once.

    No other block counts these seconds, not even a block around this one.
    """
    started = _now()
    try:
        yield
    finally:
        _once_s[what] = _once_s.get(what, 0.0) + _now() - started


def _now() -> float:
    """Return the seconds of a monotonic clock that does not advance in blocks of `spent_once`."""
    return time.monotonic() - sum(_once_s.values())


class Progress(Protocol):
    """The progress of a loop."""

    def advance(self, count: int = 1) -> None:
        """Count units that are done."""


class Telemetry:
    """The reports of a run. It writes files in `folder`, or none if that is None, and lines to `stream`.

    TensorBoard's event file is opened for the first scalar, so a run that trains nothing leaves none. `run_id` is random:
    every start of the program has its own.
    """

    def __init__(self, folder: Path | None, stream: TextIO | None = None) -> None:
        self._folder = folder
        self._stream = stream or sys.stderr
        self.run_id = secrets.token_hex(8)
        self._events: TextIO | None = None
        self._board: EventsWriter | None = None
        self._bar: Bar | None = None
        # The decoders are children of the fork server, so the kernel does not count them with this process.
        self.decoders_cpu_s = 0.0
        self._spent_s: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._once_before_s = dict(_once_s)
        self._traced: weakref.WeakSet[object] = weakref.WeakSet()

    @property
    def keeps_log(self) -> bool:
        """True if events are written to a file."""
        return self._folder is not None

    def line(self, text: str) -> None:
        """Print a line for people, above the progress bar if there is one."""
        if self._bar is None:
            print(escaped(text), file=self._stream, flush=True)
        else:
            self._bar.console.print(escaped(text), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def event(self, kind: str, **fields: object) -> None:
        """Write a line to logs/events.jsonl. Raises: StorageFailed."""
        if self._folder is None:
            return
        record = {"time": round(time.time(), 3), "run_id": self.run_id, "event": kind, **fields}
        with storage_errors(self._folder):
            if self._board is not None:
                self._board.flush()
            if self._events is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._events = (self._folder / "events.jsonl").open("a", encoding="utf-8")
            self._events.write(json.dumps(record) + "\n")  # Only ASCII, because people look at logs on terminals.
            self._events.flush()

    def ended(self, error: BaseException | None = None, **outcome: object) -> None:
        """Write the event of the end: `result` is ok, stopped or failed. Raises: StorageFailed."""
        result = "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed" if error else "ok"
        said = {"error": str(error) or type(error).__name__} if error else {}
        self.event("run_ended", result=result, exit_code=code_of(error), **outcome, **said)

    def cpu_s(self) -> float:
        """Return the CPU seconds that this process, its children and the decoders have used so far."""
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in usage) + self.decoders_cpu_s

    @contextmanager
    def spent(self, what: str) -> Iterator[None]:
        """Count the wall seconds of the block as time of the stage for `what`."""
        started = _now()
        try:
            yield
        finally:
            self.add_spent(what, _now() - started)

    def add_spent(self, what: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self._spent_s[what] = self._spent_s.get(what, 0.0) + seconds

    @contextmanager
    def spent_tracing(self, step: object, what: str, count: int) -> Iterator[None]:
        """Count the wall seconds of the block as time for `what` with `count` examples.

        The first call of a compiled `step` is mostly tracing and compiling. It is counted as "tracing", without examples.
        """
        first = step not in self._traced
        with self.spent("tracing" if first else what):
            yield
        self._traced.add(step)
        if not first:
            self._done[what] = self._done.get(what, 0) + count

    def found_finished(self, count: int) -> None:
        """Count units of the stage that an earlier run had finished."""
        self._done["found"] = self._done.get("found", 0) + count

    def take_spent(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return the seconds, and the numbers of examples, that were counted since the last call."""
        once_s = {what: seconds - self._once_before_s.get(what, 0.0) for what, seconds in _once_s.items()}
        taken = {**self._spent_s, **{what: seconds for what, seconds in once_s.items() if seconds}}, self._done
        self._spent_s, self._done, self._once_before_s = {}, {}, dict(_once_s)
        return taken

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to a TensorBoard curve. It is on the disk after the next event. Raises: StorageFailed."""
        if self._folder is not None:
            self._show("scalar", tag, step, value)

    def image(self, tag: str, image_HWC: np.ndarray) -> None:
        """Show a uint8 picture in TensorBoard. Raises: StorageFailed."""
        if self._folder is not None:
            self._show("image", tag, 0, image_HWC, dataformats="HWC")

    @contextmanager
    def progress(
        self, what: str, total: int, unit: str, outlook: Callable[[float, int], str] | None = None
    ) -> Iterator[Progress]:
        """Show the progress of a loop of `total` units: a bar on a terminal, otherwise a line every few seconds.

        `outlook` returns a line from the units per second and the number of units that are left. The line is printed once,
        as soon as the rate is known.
        """
        if not self._stream.isatty():
            lines = _Lines(self, what, total, unit)
            yield _Foreseen(self, lines, total, outlook) if outlook else lines
            return
        with _bar(self._stream, unit) as bar:
            self._bar, shown = bar, _OfBar(bar, what, total)
            try:
                yield _Foreseen(self, shown, total, outlook) if outlook else shown
            finally:
                self._bar = None

    def close(self) -> None:
        """Close the files."""
        for file in (self._board, self._events):
            with suppress(OSError):  # The result of the run is decided already.
                if file is not None:
                    file.close()
        self._board = self._events = None

    def _show(self, kind: str, tag: str, step: int, *values: object, **how: object) -> None:
        # The usual writer of the library has a thread. After a full disk it would wait for that thread forever.
        with spent_once("imports"):
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto.event_pb2 import Event

        assert self._folder is not None
        shown = getattr(summary, kind)(tag, *values, **how)
        with storage_errors(self._folder):
            if self._board is None:
                (self._folder / "tensorboard").mkdir(parents=True, exist_ok=True)
                self._board = event_file_writer.EventsWriter(str(self._folder / "tensorboard" / "events"))
            self._board.write_event(Event(summary=shown, step=step, wall_time=time.time()))


class _Lines:
    def __init__(self, telemetry: Telemetry, what: str, total: int, unit: str) -> None:
        self._telemetry, self._what, self._total, self._unit = telemetry, what, total, unit
        self._done = 0
        self._start = self._last_line = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        per_s = self._done / (now - self._start)
        remaining_s = (self._total - self._done) / per_s if per_s else 0
        self._telemetry.line(
            f"  {self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate(per_s)}/s, {about(remaining_s)} to go"
        )


class _OfBar:
    def __init__(self, bar: Bar, what: str, total: int) -> None:
        self._bar, self._task = bar, bar.add_task(what, total=total)

    def advance(self, count: int = 1) -> None:
        self._bar.advance(self._task, count)


class _Foreseen:
    """Progress that prints the line of `outlook` once. The rate leaves out the first unit, which includes compiling."""

    def __init__(self, telemetry: Telemetry, shown: Progress, total: int, outlook: Callable[[float, int], str]) -> None:
        self._telemetry, self._shown, self._left, self._outlook = telemetry, shown, total, outlook
        self._done = 0
        self._start: float | None = None
        self._is_told = False

    def advance(self, count: int = 1) -> None:
        self._shown.advance(count)
        self._left -= count
        if self._start is None:
            self._start = time.monotonic()
            return
        self._done += count
        passed_s = time.monotonic() - self._start
        if passed_s >= SECONDS_BETWEEN_LINES and self._done and not self._is_told:
            self._is_told = True
            self._telemetry.line(self._outlook(self._done / passed_s, self._left))


def _bar(stream: TextIO, unit: str) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{rate(task.speed or 0)} {unit}/s")

    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Bar(*columns, console=Console(file=stream), transient=True)
