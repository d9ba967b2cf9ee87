"""A run: its stages one after the other, and the publication of what they leave."""

import importlib
import time
from collections.abc import Sequence

from job.cluster.chief import Chief
from job.errors import GateNotMet
from job.pipeline import publishing, quality, results
from job.pipeline.job import Job
from job.pipeline.outlook import outlook, take_choice
from job.pipeline.output import owned
from job.pipeline.plan import Step, plan, wanted
from job.pipeline.provenance import describe, warn_of_the_run_before
from job.pipeline.records import Record, read_run, write_run
from job.pipeline.table import STAGES
from job.pipeline.team import led
from job.pipeline.tracking import tracked
from job.pipeline.wiring import WIRING
from job.preflight.checks import before_run
from job.runtime.kubeflow import reported
from job.runtime.session import Session
from job.runtime.telemetry import spent_once
from job.stores.exchange import open_store


def run(job: Job, stop_after: str | None, session: Session, command: Sequence[str]) -> None:
    """Run the stale stages up to `stop_after`, write the report, and publish.

    `command` is what people type to make the run again.

    Raises:
        TryAgainLater: if another run works in the same directory.
        DataUnusable: if the data cannot be trained on as it is. The report is written before.
        GateNotMet: if the model is not good enough, so nothing is exported. The report is written before.
        JobError: if a stage fails.
    """
    telemetry = job.context.telemetry
    with reported(telemetry, session.environ), owned(job.context, session, lambda: results.outcome(job)), tracked(job):
        publishing.finish(job.workdir)
        if job.budget:
            quality.resume(job, job.budget)
        for line in job.listing.summary():
            telemetry.line(line)
        _ = job.corrections  # A mistake in them ends the run before photos are decoded.
        steps = plan(job, stop_after)
        if any(step.runs for step in steps):
            before_run(job, computes=any(step.runs and STAGES[step.stage].needs_devices for step in steps))
        with led(job, steps, stop_after):
            telemetry.forecast = outlook(job, steps, stop_after)
            # run.json is missing if the run before was killed at once.
            is_open = job.budget is not None and job.budget.chosen is None and "extract" in wanted(stop_after)
            if any(step.runs for step in steps) or read_run(job.workdir) is None or is_open:
                failure = _run_stages(job, steps, stop_after, command)
            else:
                failure, job.done = None, [step.stage for step in steps if step.is_current]
            publishing.publish(job.workdir, job.done)
            results.raise_if_refused(job)
            job.records.sweep()
            if failure:
                raise failure
            results.raise_if_gate_not_met(job)
            results.raise_if_formats_disagree(job)


def _run_stages(job: Job, steps: list[Step], stop_after: str | None, command: Sequence[str]) -> GateNotMet | None:
    """Run the stages of the plan. Return the error of an export that fails, because the report comes after it."""
    telemetry = job.context.telemetry
    described = describe(job, command)
    warn_of_the_run_before(job, described)
    write_run(job.workdir, described)
    job.workdir.commit()
    if any(step.runs and STAGES[step.stage].needs_devices for step in steps):
        job.look_for_weights()
    job.exports = any("model" in STAGES[name].public for name in wanted(stop_after))
    failure: GateNotMet | None = None
    something_ran = False  # Then later stages may be stale that were not planned.
    for step in steps:
        job.context.stop.check()
        stage = STAGES[step.stage]
        if not stage.looks_only and job.refusals:
            telemetry.line(f"{step.stage:<10}skipped: the data cannot be used as it is")
            continue
        if step.stage == "extract" and job.budget and job.budget.chosen is None:
            quality.settle(job, job.budget)
            if telemetry.forecast:
                take_choice(telemetry.forecast, job.budget)
            write_run(job.workdir, describe(job, command))
            something_ran = True
        if stage.needs_gate and (failure or not job.gate_met):
            if not job.records.exists(step.stage):
                job.workdir.remove(*stage.outputs)  # A failed export left them, and the report would show them.
            telemetry.line(f"{step.stage:<10}skipped: {'the export failed' if failure else 'the quality gate was not met'}")
            continue
        stale = job.why_stale(step.stage, job.done) or (step.runs and not job.records.stores_intact(step.stage))
        if not stale:
            telemetry.line(f"{step.stage:<10}skipped: unchanged")
        elif step.runs or (something_ran and step.stage in wanted(stop_after)):
            something_ran = True
            try:
                _run_stage(job, step.stage)
            except GateNotMet as error:
                failure = error
                continue
        else:
            continue
        job.done.append(step.stage)
    if job.budget and job.budget.chosen and "report" in job.done:
        telemetry.line(job.budget.outcome())
    return failure


def bring_up_to_date(job: Job, *names: str) -> None:
    """Run those of these stages that are stale, in this order. Publish nothing, and remove no stores.

    `rank` uses it for the first stages of each candidate. The stages before `names` must be in `job.done`.
    """
    for name in names:
        job.context.stop.check()
        if job.why_stale(name, job.done) or not job.records.stores_intact(name):
            _run_stage(job, name)
        job.done.append(name)


def _run_stage(job: Job, name: str) -> None:
    stage, wiring = STAGES[name], WIRING[name]
    telemetry = job.context.telemetry
    telemetry.begin(name)
    job.records.remove(name)
    telemetry.take_spent()  # Drop what was spent between stages.
    wall, cpu = time.monotonic(), telemetry.cpu_s()
    if stage.is_shared and isinstance(job.context.peers, Chief):
        job.context.peers.order(stage=name, done=job.done, run_id=telemetry.run_id)
    with job.context.stop.during(name):
        with spent_once("imports"):
            importlib.import_module(f"job.stages.{name}")
        artifact = wiring.run(job)
    assert artifact is not None  # On the chief every stage returns its artifact.
    job.keep(name, artifact)
    spent_s, done = telemetry.take_spent()
    record: Record = {
        "stage": name,
        "schema": stage.schema,
        "key": job.made_from(name, job.done),
        "outputs": job.workdir.digests(stage.outputs),
        "stores": {store: open_store(job.context.cache, store).digest for store in wiring.stores(job)},
        "count": wiring.count(job) if wiring.count else None,
        "wall_s": round(time.monotonic() - wall, 2),
        "cpu_s": round(telemetry.cpu_s() - cpu, 2),
        "spent_s": {what: round(seconds, 3) for what, seconds in spent_s.items()},
        "done": done,
    }
    job.records.write(name, record)
    job.workdir.commit()
    telemetry.finish(name, record["wall_s"], record["cpu_s"])
