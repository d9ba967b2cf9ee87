"""Progress of a whole run, not only of a stage: the percentage, and the seconds that are left."""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run: `percent` from 0 to 100, and the seconds that are left; None as long as nobody can know them."""

    percent: int
    remaining_s: int | None


@dataclass
class Forecast:
    """The seconds that each stage of a run will take, in the order in which they run.

    `guessed` are the stages whose seconds depend on rates of this machine that were not measured yet. `percent` is where an
    earlier start of the run has stopped.

    The percentage grows by the share of the time that has just passed in all the time that is left. So it never falls, also
    if the run turns out to take longer than expected, and it is 100 only at the end.
    """

    expected_s: dict[str, float]
    guessed: set[str] = field(default_factory=set)
    percent: float = 0.0

    def __post_init__(self) -> None:
        self._stage, self._rest_s, self._is_over, self._lock = "", 0.0, False, threading.Lock()
        self._rest_at = self._looked = time.monotonic()

    def begin(self, stage: str) -> None:
        """Note that a stage begins, and that those before it are over."""
        names = list(self.expected_s)
        self.end(names[: names.index(stage)] if stage in names else ())
        self._stage = stage
        self._expect(self.expected_s.get(stage, 0.0))

    def end(self, stages: Iterable[str]) -> None:
        """Note that stages are over, or will not run."""
        with self._lock:
            for stage in stages:
                self.expected_s.pop(stage, None)
                self.guessed.discard(stage)
            self._rest_s = 0.0

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take better predictions for stages that have not begun, from measured rates."""
        with self._lock:
            self.expected_s |= {stage: s for stage, s in seconds.items() if stage in self.expected_s}
            self.guessed -= seconds.keys()

    def measured(self, units_per_s: float, num_left: float, later: Mapping[str, float]) -> None:
        """Take the rate of the loop of the stage that runs, which has `num_left` units to do.

        `later` has stages that take as long as so many units; for this stage, the units that come after the loop.
        """
        self.expect({self._stage: 0.0, **{stage: units / units_per_s for stage, units in later.items()}})
        self._expect((num_left + later.get(self._stage, 0)) / units_per_s)

    def complete(self) -> None:
        """Note that the run is over."""
        self._is_over = True

    def now(self) -> RunProgress:
        """Return the progress at this moment. Any thread may call this."""
        with self._lock:
            now = time.monotonic()
            left_s = max(0.0, self._rest_s - (now - self._rest_at))
            left_s += sum(s for stage, s in self.expected_s.items() if stage != self._stage)
            passed_s, self._looked = now - self._looked, now
            if passed_s > 0:
                self.percent += (100 - self.percent) * passed_s / (passed_s + left_s)
            if self._is_over:
                return RunProgress(100, 0)
            self.percent = min(self.percent, 99.9)  # Something may take longer than expected.
            return RunProgress(int(self.percent), None if self.guessed else round(left_s))

    def _expect(self, rest_s: float) -> None:
        with self._lock:
            self._rest_s, self._rest_at = rest_s, time.monotonic()
