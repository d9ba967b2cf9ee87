"""What every stage is given beside its inputs."""

import signal
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType

from job.config import CacheConfig
from job.errors import Stopped
from job.storage.cache import Cache
from job.storage.workdir import Workdir
from job.telemetry import Telemetry


class StopRequest:
    """Set by a signal, asked between units of work."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._signal = "a request"

    def listen(self) -> None:
        """Let SIGTERM and SIGINT ask for the end of the run. Also makes the job a well-behaved PID 1."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def request(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises: Stopped, where somebody asked for the end."""
        if self._event.is_set():
            raise Stopped(f"Stopped by {self._signal}. Everything finished is saved: the same command goes on from there.")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        self._event.set()


@dataclass(frozen=True)
class Context:
    """Where a stage works (`workdir`), what it tells (`telemetry`), whether it should go on (`stop`), where its stores lie.

    `seed` is the run's; stages that draw have a seed in their own section.
    """

    workdir: Workdir
    telemetry: Telemetry
    seed: int = 0
    stop: StopRequest = field(default_factory=StopRequest)
    caching: CacheConfig = field(default_factory=CacheConfig)

    @cached_property
    def cache(self) -> Cache:
        """The run's own `cache/`, or the folder that runs share."""
        shared = self.caching.dir
        root = self.workdir.path("cache") if shared is None else Path(shared).expanduser().resolve()
        return Cache(root, is_shared=shared is not None, max_gb=self.caching.max_gb)
