"""From the arguments of a command to what the stages need: configuration, output, source, context."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import overload

from job.cluster.environment import Cluster
from job.config import PLACES, Config, with_dotted_names
from job.console.places import place
from job.errors import UsageError
from job.pipeline import output
from job.pipeline.job import Job
from job.runtime.context import Context
from job.runtime.session import Session
from job.runtime.telemetry import Telemetry
from job.sections import NAMED_WEIGHTS
from job.sources.base import Source
from job.sources.open import open_source
from job.storage.bucket.objects import refuse_credentials
from job.storage.workdir import Workdir

Settings = Config | Mapping[str, object] | str | os.PathLike[str] | None
Place = str | os.PathLike[str]


def config_of(given: Settings, *, checks_backbone: bool = True) -> Config:
    """Return the configuration that was given in one of four forms. Raises: UsageError, with all mistakes in it."""
    from job.model import backbones

    if isinstance(given, Config):
        config = given
    elif isinstance(given, Mapping):
        config = Config.load(None, (), dict(with_dotted_names(given)))
    else:
        config = Config.load(None if given is None else Path(place("config", os.fspath(given))))
    for name in PLACES:
        checked_place(name, attrgetter(name)(config))  # A configuration made in Python was not checked yet.
    if checks_backbone and (mistakes := backbones.check(config.backbone)):
        raise UsageError("The configuration has mistakes:", *(f"  {mistake}" for mistake in mistakes))
    return config


@contextmanager
def context_for(workdir: Workdir, config: Config, session: Session, *, logs: bool = True) -> Iterator[Context]:
    """Give a block the context for work in an output directory. With `logs`, its events are written there."""
    session.stop.grace_s = config.checkpoint.grace_s
    telemetry = Telemetry(workdir.path("logs") if logs else None, run_id=session.run_id)
    try:
        yield Context(workdir, telemetry, config.seed, session.stop, config.cache, config.checkpoint)
    finally:
        telemetry.close()


def workdir_for(data: Place, out: Place, labels: Place | None, config: Config, session: Session, worker: int = 0) -> Workdir:
    """Return the output directory. Raises: UsageError, if it overlaps with an input."""
    source = checked_place("--data", data)
    folders, files = (
        [config.intake.tfds_dir, *config.intake.link_roots],
        [checked_place("--labels", labels), config.intake.corrections, str(session.config_file or "") or None],
    )
    if config.backbone.weights not in NAMED_WEIGHTS:
        files.append(config.backbone.weights)
    if not source.startswith("tfds:"):
        (files if Path(source).is_file() or output.is_table(source) else folders).append(source)
    if config.cache.dir:
        output.refuse_nested(config.cache.dir, "cache.dir", [source])
    return output.make_workdir(checked_place("--out", out), folders=folders, files=files, worker=worker)


def job_of(config: Config, data: Place, labels: Place | None, context: Context, cluster: Cluster | None = None) -> Job:
    """Return the job of a configuration, after opening its source. Raises as `open_source` does."""
    return Job(config, source_of(config, data, labels), context, labels=checked_place("--labels", labels), cluster=cluster)


def source_of(config: Config, data: Place, labels: Place | None) -> Source:
    """Return the source of the photos. Raises as `open_source` does."""
    return open_source(checked_place("--data", data), checked_place("--labels", labels), settings=config.intake)


@overload
def checked_place(option: str, given: Place) -> str: ...
@overload
def checked_place(option: str, given: Place | None) -> str | None: ...
def checked_place(option: str, given: Place | None) -> str | None:
    """Return a path or URI as text, as `place` does, if it contains no credentials. Raises: UsageError, OSError."""
    refuse_credentials(given)
    return given if given is None else place(option, os.fspath(given))


def as_python(*call: object) -> list[str]:
    """Return the call of `job.run` with these arguments as text, for run.json."""
    data, out, config, labels, stop_after = call
    more = {"config": config, "labels": labels, "stop_after": stop_after}
    return [f"job.run({data!r}, {out!r}{''.join(f', {k}={v!r}' for k, v in more.items() if v is not None)})"]
