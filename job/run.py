"""A run: which stages have to work, in what order, and what is left for users when they are done.

A stage is skipped if its record matches everything it depends on, by content: its settings, the version of its code, the
outcome of the stages before it, and the files it left. Records are written last, so a stage that was cut off has none.
"""

import importlib
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from job import __version__, publishing
from job.config import digest_of
from job.data.exchange import complete, is_listed, open_store, sweep_bucket
from job.data.stores import ArrayStore, sweep, unwanted, wanted
from job.errors import DataUnusable, GateNotMet
from job.job import Job
from job.output import owned
from job.peers import secret
from job.peers.chief import Chief
from job.peers.peers import peers_first
from job.peers.worker import Worker
from job.pipeline import STAGES
from job.provenance import describe, warn_of_another_machine
from job.records import read_record, read_run, record_name, write_record, write_run
from job.telemetry import spent_once

# The stages that can look at data on which nobody can train.
_LOOKING = ("intake", "split", "explore", "report")


@dataclass(frozen=True)
class Step:
    """A line of the plan: whether a stage runs, and why. `is_current` where what it left before still holds."""

    stage: str
    runs: bool
    reason: str
    is_current: bool = False


def plan(job: Job, stop_after: str | None = None) -> list[Step]:
    """What a run would do. A stage whose predecessors run may turn out to be unchanged when its time comes.

    Stages behind `stop_after` are in it where they are up to date, because the report shows them.
    """
    steps = _stale(job, stop_after)
    for name in reversed(list(steps)):
        for provider in STAGES[name].reads_stores_of if steps[name].runs else ():
            if not steps[provider].runs and not _stores_intact(job, provider):
                reason = f"{name} needs its store, which is missing or damaged"
                steps[provider] = Step(provider, True, reason, is_current=True)
    return list(steps.values())


def _stale(job: Job, stop_after: str | None) -> dict[str, Step]:
    """The plan but for stores, which are large."""
    steps: dict[str, Step] = {}
    for name in STAGES:
        left_out = [] if name == "report" else [s for s in STAGES[name].after if s not in steps]
        before = [s for s in STAGES[name].after if s in steps and steps[s].runs] + left_out
        reason = f"{before[0]} runs before it" if before else _why_stale(job, name, list(steps))
        known = "split" in steps and not steps["split"].runs
        if name not in _LOOKING and known and job["split"].refusals:
            steps[name] = Step(name, False, "the data cannot be used as it is")
        elif name == "export" and not before and not job["evaluate"].numbers["gate"]["met"]:
            steps[name] = Step(name, False, "the quality gate was not met")
        elif not reason or name in _wanted(stop_after):
            steps[name] = Step(name, bool(reason), reason or "nothing that it depends on has changed", not reason)
    return steps


def run(job: Job, stop_after: str | None = None, config_file: Path | None = None) -> None:
    """Run what is stale, up to and with `stop_after`, and draw the report of what there is.

    Raises:
        TryAgainLater: where another run works in the same directory; before anything is looked at.
        DataUnusable: after the report is written, where nobody can train on the data as it is.
        GateNotMet: after the report is written, where the model is not good enough; nothing is exported then.
        JobError: as the stages do.
    """
    with owned(job.context, config_file):
        publishing.finish(job.workdir)
        with _led(job, steps := plan(job, stop_after), stop_after):
            is_due = any(step.runs for step in steps) or read_run(job.workdir) is None  # A kill may have left it out.
            if is_due:
                failure = _run_stages(job, steps, stop_after)
            else:
                failure, job.done = None, [step.stage for step in steps if step.is_current]
            publishing.publish(job.workdir, job.done)
            _raise_if_refused(job)
            _sweep(job)
            if failure:
                raise failure
            _raise_if_gate_not_met(job)


def assist(job: Job, stop_after: str | None = None) -> None:
    """Do this worker's part of a run that another one leads, until that one has finished everything.

    Raises:
        JobError: that with which the chief ends, or this worker's own.
    """
    context, cluster = job.context, job.cluster
    with Worker(cluster.index, cluster.num_workers, context.stop) as worker, peers_first(context.stop):
        is_needed = worker.connect(
            cluster.control_address,
            find_secret=lambda: secret.find(context.workdir),
            made_from=_made_from(job, stop_after),
            start_timeout_s=job.config.cluster.start_timeout_s,
            is_needed=lambda: _is_needed(job, stop_after),
            prepare=cluster.prepare if "extract" in _wanted(stop_after) else lambda: None,
            tell=context.telemetry.line,
        )
        if not is_needed:
            context.telemetry.line("The run is finished.")
            return
        job.context = replace(context, peers=worker)
        for order in worker.orders():
            context.telemetry.line(f"{order['stage']:<10}runs, this worker's part")
            job.done = order["done"]
            job.forget()
            context.workdir.refresh()
            with spent_once("imports"):
                importlib.import_module(f"job.stages.{order['stage']}")
            STAGES[order["stage"]].run(job)


def _is_needed(job: Job, stop_after: str | None) -> bool:
    job.workdir.refresh()
    return any(step.runs for step in _stale(job, stop_after).values())


@contextmanager
def _led(job: Job, steps: list[Step], stop_after: str | None) -> Iterator[None]:
    """A block in which the other workers of the cluster, if there are any, are led."""
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
        if any(step.runs and step.stage in ("extract", "fine_tune") for step in steps):
            cluster.prepare()
        chief.be_ready()
        job.context = replace(context, peers=chief)
        yield


def _made_from(job: Job, stop_after: str | None) -> str:
    """Return a digest of what all workers of a run must be started with."""
    what = [__version__, job.config.model_dump(mode="json"), job.source.uri, job.labels, stop_after]
    return digest_of(what)


def _run_stages(job: Job, steps: list[Step], stop_after: str | None) -> GateNotMet | None:
    """Those of the plan. An export that fails its gate is given back, because the page comes after it and says so, too."""
    context, telemetry = job.context, job.context.telemetry
    described = describe(job)
    warn_of_another_machine(job, described)
    write_run(job.workdir, described)
    job.workdir.commit()
    if any(step.runs and step.stage == "extract" for step in steps):
        _ = job.listing  # A mistake in --data is said before weights are waited for.
        job.look_for_weights()
        if job.cluster.num_workers == 1 and "export" in _wanted(stop_after):
            publishing.keep_room(context, job.network.backbone.count_params())
    failure: GateNotMet | None = None
    something_ran = False  # Then what comes later may have become stale, even if that was not planned.
    for step in steps:
        job.context.stop.check()
        if step.stage not in _LOOKING and job["split"].refusals:
            telemetry.line(f"{step.stage:<10}skipped: the data cannot be used as it is")
            continue
        if step.stage == "export" and not job["evaluate"].numbers["gate"]["met"]:
            if not job.workdir.exists(record_name("export")):
                job.workdir.remove("stages/export")  # Of an export that failed: the page would show it.
            telemetry.line("export    skipped: the quality gate was not met")
            continue
        stale = _why_stale(job, step.stage, job.done) or (step.runs and not _stores_intact(job, step.stage))
        if not stale:
            telemetry.line(f"{step.stage:<10}skipped: unchanged")
        elif step.runs or (something_ran and step.stage in _wanted(stop_after)):
            something_ran = True
            try:
                _run_stage(job, step.stage)
            except GateNotMet as error:
                failure = error
                continue
        else:
            continue
        job.done.append(step.stage)
    return failure


def bring_up_to_date(job: Job, *names: str) -> None:
    """Run those of these stages that are stale, in this order, and nothing else: nothing is drawn, published or swept.

    For work of its own on what the first stages leave. The stages before them must be in `job.done`.
    """
    for name in names:
        job.context.stop.check()
        if _why_stale(job, name, job.done) or not _stores_intact(job, name):
            _run_stage(job, name)
        job.done.append(name)


def headline(job: Job) -> list[str]:
    """Return the last lines of a run: its model, what came of it, where the page is, and which model stays in service."""
    place = publishing.place(job.workdir)
    page = f" Report: {job.workdir.shown(f'{place}report.html')}" if job.workdir.exists(f"{place}report.html") else ""
    if "evaluate" not in job.done:
        found = f"{len(job['intake'].examples):,} files looked at.{page}"
    else:
        numbers = job["evaluate"].numbers
        test = numbers[numbers["shipped"]]["test"]
        low, high = test["accuracy_ci95"]
        what = {"head": "head", "fine_tuned": "fine-tuned model"}[numbers["shipped"]]
        found = (
            f"Accuracy {test['accuracy']:.3f} ({low:.3f} to {high:.3f}) on {test['num_examples']:,} held-out photos, {what}."
        )
        if "export" in job.done and (notice := job["export"].parity["bytes"]["notice"]):
            found += f" {notice}"
        found += page
    return list(filter(None, (publishing.new_model(job.workdir), found, publishing.in_service(job.workdir))))


def _wanted(stop_after: str | None) -> list[str]:
    """The stages that run where they are stale."""
    names = list(STAGES)
    if stop_after in (None, "report"):
        return names
    wanted = names[: names.index(str(stop_after)) + 1]
    return [*wanted, "report"] if "explore" in wanted else wanted  # Without it there is nothing to draw.


def _run_stage(job: Job, name: str) -> None:
    stage = STAGES[name]
    telemetry, stop = job.context.telemetry, job.context.stop
    stop.doing, stop.saved = name, ""
    telemetry.line(f"{name:<10}runs")
    telemetry.event("stage_started", stage=name)
    job.workdir.remove(record_name(name))
    telemetry.take_spent()  # What was spent between stages.
    wall, cpu = time.monotonic(), _cpu_s(job)
    if stage.is_shared and isinstance(job.context.peers, Chief):
        job.context.peers.order(stage=name, done=job.done)
    with spent_once("imports"):
        importlib.import_module(f"job.stages.{name}")
    artifact = stage.run(job)
    job.keep(name, artifact)
    spent_s, done = telemetry.take_spent()
    record = {
        "stage": name,
        "schema": stage.schema,
        "key": job.made_from(name, job.done),
        "outputs": job.workdir.digests(stage.outputs),
        "stores": {store: open_store(job.context.cache, store).digest for store in stage.stores(artifact)},
        "count": stage.count(job) if stage.count else None,
        "wall_s": round(time.monotonic() - wall, 2),
        "cpu_s": round(_cpu_s(job) - cpu, 2),
        "spent_s": {what: round(seconds, 3) for what, seconds in spent_s.items()},
        "done": done,
    }
    write_record(job.workdir, name, record)
    job.workdir.commit()
    telemetry.line(f"{name:<10}done in {record['wall_s']:.1f} s")
    telemetry.event("stage_finished", stage=name, wall_s=record["wall_s"], cpu_s=record["cpu_s"])


def _why_stale(job: Job, name: str, done: list[str]) -> str:
    """Why a stage has to run; empty where it does not. `done` are the stages of this run that stand before it."""
    stage, record = STAGES[name], read_record(job.workdir, name)
    if record is None:
        return "it has not been finished before"
    if record.get("schema") != stage.schema:
        return "its code has changed"
    key = job.made_from(name, done)
    changed = [what for what in key if record.get("key", {}).get(what) != key[what]]
    if changed or record["key"].keys() != key.keys():
        return f"{changed[0] if changed else 'what it depends on'} changed"
    outputs = job.workdir.digests(stage.outputs)
    damaged = [path for path, digest in record["outputs"].items() if outputs.get(path) != digest]
    return f"{damaged[0]} is missing or damaged" if damaged else ""


def _stores_intact(job: Job, name: str) -> bool:
    record = read_record(job.workdir, name)
    if record is None:
        return False
    for store in set(record["stores"]) - job.intact_stores:
        if not _store_intact(job, store):
            return False
        job.intact_stores.add(store)
    return True


def _store_intact(job: Job, store: str) -> bool:
    cache = job.context.cache
    if job.workdir.is_glance and cache.objects:
        return is_listed(cache, store)  # Who only looks does not fetch what may be large.
    complete(cache, store)
    return ArrayStore.is_intact(cache.path(store))


def _sweep(job: Job) -> None:
    """Remove stores of earlier settings, where the cache is this run's alone."""
    cache = job.context.cache
    if cache.may_be_swept:
        records = [read_record(job.workdir, name) for name in STAGES]
        names = {store for record in records if record for store in record["stores"]}
        indexes = [cache.path(name) for name in names]
        there = [index for index in indexes if index.exists()]
        with job.workdir.held():
            sweep(unwanted(cache.root, there))
        if there == indexes and (kept := wanted(indexes)) is not None:
            sweep_bucket(cache, kept)


def _raise_if_refused(job: Job) -> None:
    refusals = job["split"].refusals if "split" in job.done else ()
    if refusals:
        place = publishing.place(job.workdir)
        page, table = (job.workdir.shown(f"{place}{name}") for name in ("report.html", "examples.parquet"))
        lines = [line for refusal in refusals for line in refusal.lines]
        lines.append(f"Every file is listed in {table}. The page shows all of it: {page}")
        raise DataUnusable(*lines, *filter(None, [publishing.in_service(job.workdir)]))


def _raise_if_gate_not_met(job: Job) -> None:
    if "evaluate" not in job.done or job["evaluate"].numbers["gate"]["met"]:
        return
    wanted = job["evaluate"].numbers["gate"]["min_accuracy"]
    gate = f"The quality gate evaluate.min_accuracy = {wanted} was not met: nothing is exported."
    raise GateNotMet(gate, *headline(job))


def _cpu_s(job: Job) -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage) + job.context.telemetry.cpu_s_elsewhere
