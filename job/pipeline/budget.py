"""The time budget of a run: its prediction, and how much time is spent and left."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from job.text.numbers import about, seconds


@dataclass(frozen=True)
class Estimate:
    """A prediction for a quality, or for the head alone: seconds until the run ends, bytes of its stores and of memory.

    `later_s` of the seconds are those of the stages after fine_tune.
    """

    name: str
    seconds: float
    later_s: float
    disk_bytes: float
    memory_bytes: float


@dataclass
class Budget:
    """The seconds that a run may take, of which earlier starts of the run have spent `before_s`."""

    limit_s: float
    before_s: float
    chosen: Estimate | None = None
    _started: float = field(default_factory=time.monotonic)

    @property
    def spent_s(self) -> float:
        return self.before_s + time.monotonic() - self._started

    def left_to_train_s(self) -> float:
        """Return the seconds until fine-tuning must end, so that the later stages end in time."""
        return self.limit_s - self.spent_s - self.chosen.later_s if self.chosen else math.inf

    def outcome(self) -> str:
        """Return a line about the prediction for the whole run and what it took."""
        assert self.chosen is not None
        return (
            f"Budget {about(self.limit_s)}: {self.chosen.name}, predicted {seconds(self.chosen.seconds)}, "
            f"took {seconds(self.spent_s)}."
        )


def spent_before(events: Path) -> float:
    """Return the seconds of all starts of a run since the last one that ended well, from logs/events.jsonl.

    A start counts from its first event to its last one.
    """
    spans: dict[str, tuple[float, float]] = {}
    for line in events.read_text(encoding="utf-8").splitlines() if events.exists() else ():
        try:
            event = json.loads(line)
            spans[event["run_id"]] = spans.get(event["run_id"], (event["time"],))[0], event["time"]
            if event["event"] == "run_ended" and event["result"] == "ok":
                spans.clear()
        except (ValueError, KeyError, TypeError):
            continue  # The line was being written when the machine stopped.
    return sum(last - first for first, last in spans.values())
