"""One run with several workers: the chief leads, and the others follow its orders."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from job.cluster import secret
from job.cluster.chief import Chief
from job.cluster.connection import peers_first
from job.cluster.worker import Worker
from job.pipeline.job import Job
from job.pipeline.plan import Step, stale, wanted
from job.pipeline.table import STAGES
from job.pipeline.wiring import WIRING
from job.preflight.checks import before_run
from job.runtime.telemetry import spent_once
from job.storage.files import digest_of
from job.version import __version__


def assist(job: Job, stop_after: str | None = None) -> None:
    """Do this worker's part of a run until the chief has finished everything.

    Raises:
        JobError: if the chief or this worker fails.
    """
    context, cluster = job.context, job.cluster
    trains = any(STAGES[name].needs_devices for name in wanted(stop_after))
    before_run(job, computes=trains)
    with Worker(cluster.index, cluster.num_workers, context.stop) as worker, peers_first(context.stop):
        is_needed = worker.connect(
            cluster.control_address,
            find_secret=lambda: secret.find(context.workdir),
            made_from=_made_from(job, stop_after),
            start_timeout_s=job.config.cluster.start_timeout_s,
            is_needed=lambda: _is_needed(job, stop_after),
            prepare=job.devices.prepare if trains else lambda: None,
            tell=context.telemetry.line,
        )
        if not is_needed:
            context.telemetry.line("The run is finished.")
            return
        context.telemetry.line("Connected to the chief.")
        job.context = replace(context, peers=worker)
        for order in worker.orders():
            context.telemetry.join(order["run_id"])
            context.telemetry.begin(order["stage"], "runs, this worker's part")
            job.done = order["done"]
            job.forget()
            context.workdir.refresh()
            with spent_once("imports"):
                importlib.import_module(f"job.stages.{order['stage']}")
            WIRING[order["stage"]].run(job)


def _is_needed(job: Job, stop_after: str | None) -> bool:
    job.workdir.refresh()
    return any(step.runs for step in stale(job, stop_after).values())


@contextmanager
def led(job: Job, steps: list[Step], stop_after: str | None) -> Iterator[None]:
    """Give a block in which the chief leads the other workers. Alone, it does nothing."""
    cluster, context = job.cluster, job.context
    if cluster.num_workers == 1:
        yield
        return
    with (
        secret.shared(context.workdir, context.telemetry.line) as of_this_start,
        Chief(
            cluster.control_address,
            cluster.addresses[1:],
            secret=of_this_start,
            made_from=_made_from(job, stop_after),
            start_timeout_s=job.config.cluster.start_timeout_s,
            stop=context.stop,
            tell=context.telemetry.line,
        ) as chief,
        peers_first(context.stop),
    ):
        if any(step.runs and STAGES[step.stage].needs_devices for step in steps):
            job.devices.prepare()
        chief.be_ready()
        job.context = replace(context, peers=chief)
        yield


def _made_from(job: Job, stop_after: str | None) -> str:
    """Return a digest of everything that must be the same for all workers of a run."""
    what = [__version__, job.config.model_dump(mode="json"), job.source.uri, job.labels, stop_after]
    return digest_of(what)
