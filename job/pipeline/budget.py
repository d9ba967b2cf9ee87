"""The time budget of a run: its prediction, and how much time is spent and left."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from job.errors import Stopped, StorageFailed, TryAgainLater
from job.runtime.telemetry import events_in
from job.text.numbers import seconds

_RESUMED = (StorageFailed.exit_code, TryAgainLater.exit_code, Stopped.exit_code)


@dataclass(frozen=True)
class Estimate:
    """A prediction for a quality, or for the head alone: seconds until the run ends, bytes of its stores and of memory.

    Of the seconds, `tuning_s` are those of fine_tune, and `later_s` those of the stages after it.
    """

    name: str
    seconds: float
    tuning_s: float
    later_s: float
    disk_bytes: float
    memory_bytes: float


@dataclass
class Budget:
    """The seconds that a run may take, of which earlier starts of the run have spent `before_s`.

    `chosen` has a prediction for the whole run. `settled_s` says how much of it had passed when the choice was made; None if
    an earlier start made the choice.
    """

    limit_s: float
    before_s: float
    chosen: Estimate | None = None
    settled_s: float | None = None
    _started: float = field(default_factory=time.monotonic)

    @property
    def spent_s(self) -> float:
        return self.before_s + time.monotonic() - self._started

    def training_clock(self) -> Callable[[], float]:
        """Return a function that returns the seconds until fine-tuning must end, so that the later stages end in time.

        Call this when fine-tuning begins. If the run was slower than predicted so far, the later stages will be, too.
        """
        if self.chosen is None:
            return lambda: math.inf
        later_s = self.chosen.later_s
        if self.settled_s is not None:
            predicted_s = self.chosen.seconds - self.chosen.tuning_s - later_s - self.settled_s
            later_s *= max(1.0, (self.spent_s - self.settled_s) / predicted_s)
        return lambda: self.limit_s - self.spent_s - later_s

    def outcome(self) -> str:
        """Return a line about the prediction for the whole run and what it took."""
        assert self.chosen is not None
        return (
            f"Budget {seconds(self.limit_s)}: {self.chosen.name}, predicted {seconds(self.chosen.seconds)}, "
            f"took {seconds(self.spent_s)}."
        )


def spent_before(events: Path) -> float:
    """Return the seconds of all starts of a run since the last one that ended well, from logs/events.jsonl.

    A start counts from its first event to its last one.
    """
    spans: dict[str, tuple[float, float]] = {}
    for event in events_in(events):
        spans[event["run_id"]] = spans.get(event["run_id"], (event["time"],))[0], event["time"]
        if event["event"] == "run_ended" and event.get("result") == "ok":
            spans.clear()
    return sum(last - first for first, last in spans.values())


def percent_before(events: Path) -> float:
    """Return the percentage that the last start of a run has reached, from logs/events.jsonl.

    It is 0 if that start ended in a way that is not repaired by another start, so that the next one begins something new.
    """
    percent = 0.0
    for event in events_in(events):
        percent = event.get("percent", percent)
        if event["event"] == "run_ended" and event.get("exit_code") not in _RESUMED:
            percent = 0.0
    return percent
