"""The reports of a run while it works: lines or a progress bar for people, events.jsonl and TensorBoard for programs."""

from __future__ import annotations

import json
import math
import resource
import secrets
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import numpy as np

from job.console.log import LOG, Level, Log
from job.errors import Stopped, code_of
from job.runtime.forecast import Forecast
from job.storage.files import storage_errors
from job.text.numbers import about, rate, seconds
from job.text.untrusted import escaped

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from tensorboardX.event_file_writer import EventsWriter

SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_EVENTS = 30.0  # A bucket gets the whole log with each checkpoint.

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
    """The reports of a run. It writes files in `folder`, or none if that is None, and lines to the log or to `stream`.

    TensorBoard's event file is opened for the first scalar, so a run that trains nothing leaves none. Every start of the
    program has a `run_id` of its own, by default a random one. `forecast` knows how much of the whole run is done; None for
    commands that are not a run. `latest` has the last value of each curve.
    """

    def __init__(self, folder: Path | None, stream: TextIO | None = None, run_id: str | None = None) -> None:
        self._folder = folder
        self._log = LOG if stream is None else Log(stream)
        self.run_id = run_id or secrets.token_hex(8)
        self.forecast: Forecast | None = None
        self.latest: dict[str, float] = {}
        self._event_at = -math.inf
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

    def join(self, run_id: str) -> None:
        """Take over the id of the chief's run, so that the messages of all workers have the same one."""
        self.run_id = self._log.run_id = run_id

    def line(self, text: str, fields: Mapping[str, object] | None = None, level: Level = "info") -> None:
        """Print a line for people, above the progress bar if there is one. In a JSON log it has these fields, too."""
        if self._bar is None:
            self._log.say(text, level, fields)
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
                file = self._folder / "events.jsonl"
                is_cut = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")  # By a power failure.
                self._events = file.open("a", encoding="utf-8")
                self._events.write("\n" if is_cut else "")
            self._events.write(json.dumps(record) + "\n")  # Only ASCII, because people look at logs on terminals.
            self._events.flush()

    def begin(self, stage: str, how: str = "runs") -> None:
        """Say that a stage begins. Raises: StorageFailed."""
        self._log.stage = stage
        if self.forecast:
            self.forecast.begin(stage)
        self.line(f"{stage:<10}{how}")
        self.event("stage_started", stage=stage)

    def finish(self, stage: str, wall_s: float, cpu_s: float) -> None:
        """Say that a stage has ended, and what it took. Raises: StorageFailed."""
        if self.forecast:
            self.forecast.end([stage])
        self.line(f"{stage:<10}done in {seconds(wall_s)}", {"wall_s": wall_s, "cpu_s": cpu_s})
        self.event("stage_finished", stage=stage, wall_s=wall_s, cpu_s=cpu_s, **self._progress_of_run())
        self._log.stage = None

    def _progress_of_run(self) -> dict[str, int | None]:
        """Return `percent` and `remaining_s` of the whole run; nothing for commands that are not a run."""
        return vars(self.forecast.now()) if self.forecast else {}

    def ended(self, error: BaseException | None = None, **outcome: object) -> None:
        """Write the event of the end: `result` is ok, stopped or failed. Raises: StorageFailed."""
        result = "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed" if error else "ok"
        said = {"error": str(error) or type(error).__name__} if error else {}
        if self.forecast and not error:
            self.forecast.complete()
        self.event("run_ended", result=result, exit_code=code_of(error), **self._progress_of_run(), **outcome, **said)

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
        self.latest[tag] = value
        if self._folder is not None:
            self._show("scalar", tag, step, value)

    def image(self, tag: str, image_HWC: np.ndarray) -> None:
        """Show a uint8 picture in TensorBoard. Raises: StorageFailed."""
        if self._folder is not None:
            self._show("image", tag, 0, image_HWC, dataformats="HWC")

    @contextmanager
    def progress(self, what: str, total: int, unit: str, later: Mapping[str, float] | None = None) -> Iterator[Progress]:
        """Show the progress of a loop of `total` units: a bar on a terminal, otherwise a line every few seconds.

        `later` has stages that take as long as so many of these units, to predict the end of the run from the rate of this
        loop. For the stage of the loop itself it has the units that come after the loop.
        """
        stream = self._log.stream or sys.stderr
        with nullcontext() if self._log.as_json or not stream.isatty() else _bar(stream, unit) as bar:
            loop, self._bar = _Loop(self, what, total, unit, later or {}, bar), bar
            try:
                yield loop
            finally:
                self._bar = None
        loop.end()

    def measured(self, units_per_s: float, num_left: float, later: Mapping[str, float]) -> dict[str, int | None]:
        """Take the rate of a loop. Return `percent` and `remaining_s` of the whole run. Raises: StorageFailed."""
        if self.forecast and units_per_s:
            self.forecast.measured(units_per_s, num_left, later)
        progress = self._progress_of_run()
        if progress and time.monotonic() - self._event_at >= _SECONDS_BETWEEN_EVENTS:
            self._event_at = time.monotonic()
            self.event("progress", stage=self._log.stage, **progress)
        return progress

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


def events_in(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of logs/events.jsonl, which may be missing. A line that was not written completely is left out."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and {"time", "run_id", "event"} <= event.keys():
                yield event


class _Loop:
    """A loop of `total` units. It is shown as lines, or as a bar, and its rate says how long the rest of the run takes."""

    def __init__(
        self, telemetry: Telemetry, what: str, total: int, unit: str, later: Mapping[str, float], bar: Bar | None
    ) -> None:
        self._telemetry, self._what, self._total, self._unit, self._later = telemetry, what, total, unit, later
        self._done = self._first = 0
        self._start = self._looked = self._first_at = time.monotonic()
        self._bar = bar
        if bar:
            self._task = bar.add_task(what, total=total, run="")

    def advance(self, count: int = 1) -> None:
        if self._bar:
            self._bar.advance(self._task, count)
        now = time.monotonic()
        self._done += count
        if not self._first:
            self._first, self._first_at = self._done, now
        if now - self._looked < SECONDS_BETWEEN_LINES:
            return
        self._looked = now
        # A rate needs some seconds after the first unit.
        per_s = self._rate(now) if now - self._first_at > SECONDS_BETWEEN_LINES else 0.0
        run = self._telemetry.measured(per_s, self._total - self._done, self._later)
        told = _in_words(run)
        if self._bar:
            self._bar.update(self._task, run=told.removesuffix(" to go"))  # A terminal may have 80 columns only.
            return
        per_s = self._done / (now - self._start)
        remaining_s = (self._total - self._done) / per_s if per_s else 0
        self._telemetry.line(
            f"  {self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate(per_s)}/s, {about(remaining_s)} to go"
            f"{told and '; '}{told}",
            {"done": self._done, "total": self._total, "unit": self._unit, **run},
        )

    def end(self) -> None:
        self._telemetry.measured(self._rate(time.monotonic()), 0, self._later)

    def _rate(self, now: float) -> float:
        """Return units per second, without the first unit, which includes compiling; 0 if there was no other."""
        return (self._done - self._first) / (now - self._first_at) if now > self._first_at else 0.0


def _in_words(run: Mapping[str, int | None]) -> str:
    """Return the progress of the whole run in words; an empty string if it is not known."""
    if not run:
        return ""
    left_s = run["remaining_s"]
    return f"run {run['percent']}%" + ("" if left_s is None else f", {about(left_s)} to go")


def _bar(stream: TextIO, unit: str) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{rate(task.speed or 0)} {unit}/s")

    columns = (TextColumn("  {task.description}"), BarColumn(20), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    return Bar(*columns, TextColumn("{task.fields[run]}"), console=Console(file=stream), transient=True)
