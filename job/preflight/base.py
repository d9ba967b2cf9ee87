"""The subject of the checks before a run, and their findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self

from job.cluster.devices import Devices
from job.cluster.environment import Cluster
from job.cluster.tensorflow import import_tensorflow
from job.config import Config
from job.errors import JobError, StorageFailed, TryAgainLater, UsageError
from job.runtime.context import Context
from job.runtime.stop import StopRequest
from job.runtime.telemetry import Telemetry
from job.sources.base import Listing, Source
from job.storage.workdir import Workdir
from job.train.recipe import with_quality

if TYPE_CHECKING:
    from job.model.network import Network


@dataclass(frozen=True)
class Finding:
    """A line about one part of what a run needs. A warning or an error also says what to do.

    `exit_code` is the one with which a run would end because of an error; otherwise it is 0. A check is skipped if it needs
    something that an earlier check has found missing.
    """

    level: Literal["ok", "warning", "error", "skipped"]
    text: str
    exit_code: int = 0
    check: str = ""

    @classmethod
    def of(cls, error: JobError) -> Self:
        """Return the finding of a check that has met this error."""
        return cls("error", " ".join(line.strip() for line in error.args), error.exit_code)


def ok(text: str) -> Finding:
    """Return the finding that nothing is wrong."""
    return Finding("ok", text)


def warning(text: str) -> Finding:
    """Return the finding of something that does not stop a run."""
    return Finding("warning", text)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the exit code of `doctor`: 0, or 75 if every error may pass by itself, else 2."""
    codes = {finding.exit_code for finding in findings} - {0}
    if codes <= {StorageFailed.exit_code, TryAgainLater.exit_code}:
        return TryAgainLater.exit_code if codes else 0
    return UsageError.exit_code


class Planned:
    """A run that has not begun, with what the checks use of a `Job`.

    Each part is opened when a check first needs it, so that one fault does not hide others.
    """

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        stop: StopRequest,
        open_workdir: Callable[[], Workdir],
        open_source: Callable[[], Source],
    ) -> None:
        self.config, self.cluster, self.stop = with_quality(config), cluster, stop
        self._open_workdir, self._open_source = open_workdir, open_source

    @cached_property
    def context(self) -> Context:
        return Context(self._open_workdir(), Telemetry(None), self.config.seed, self.stop, self.config.cache)

    @property
    def workdir(self) -> Workdir:
        return self.context.workdir

    @cached_property
    def ahead_s(self) -> float:
        """Seconds that the clock of the output's file system is ahead of ours. The output is tried for that; see `probe`."""
        return self.workdir.probe()

    @cached_property
    def source(self) -> Source:
        return self._open_source()

    @cached_property
    def listing(self) -> Listing:
        return self.source.listing()

    @cached_property
    def network(self) -> Network:
        from job.model.network import Network

        import_tensorflow()
        devices = Devices(self.cluster, logical_cpus=self.config.cluster.logical_cpus)
        return Network(self.config.backbone, self.config.intake.image_size, devices, seed=self.config.seed)
