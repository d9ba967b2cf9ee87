"""The context of a stage: everything that it gets beside its inputs."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from job.runtime.peers import Peers
from job.runtime.stop import StopRequest
from job.runtime.telemetry import Telemetry
from job.sections import CacheConfig, CheckpointConfig
from job.storage.bucket.downloads import scratch
from job.storage.bucket.objects import is_remote
from job.storage.bucket.open import open_objects
from job.storage.ledger import TEMPORARY
from job.storage.workdir import Workdir
from job.stores.cache import Cache


@dataclass(frozen=True)
class Context:
    """Everything that a stage gets beside its inputs.

    `workdir` is the output directory, `telemetry` takes progress and events, `stop` says when to end, and `peers` are the
    workers of the run. `caching` and `saving` are the settings of stores and checkpoints. `seed` is the seed of the run.
    """

    workdir: Workdir
    telemetry: Telemetry
    seed: int = 0
    stop: StopRequest = field(default_factory=StopRequest)
    caching: CacheConfig = field(default_factory=CacheConfig)
    saving: CheckpointConfig = field(default_factory=CheckpointConfig)
    peers: Peers = field(default_factory=Peers)

    @cached_property
    def cache(self) -> Cache:
        """The place of the stores: the run's own `cache/`, or the folder or bucket of cache.dir, which runs share."""
        shared = self.caching.dir
        if shared is None:
            objects = open_objects(self.workdir.shown("cache")) if self.workdir.objects else None
            root = self.workdir.path("cache")
        else:
            objects = open_objects(shared) if is_remote(shared) else None
            root = scratch(objects.uri) if objects else Path(shared).expanduser().resolve()
        temporary = self.workdir.path(TEMPORARY) if shared is None else None
        return Cache(root, is_shared=shared is not None, temporary=temporary, max_gb=self.caching.max_gb, objects=objects)
