"""The stages, in order, and which of them have to run.

A stage is skipped if its record matches everything it depends on, by content: its settings, the version of its code, the
outcome of the stages before it, and the files it left. Records are written last, so a stage that was cut off has none.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job import __version__
from job.config import Config, digest_of
from job.context import Context
from job.data.sources import Listing, Source, open_source
from job.errors import GateNotMet, UsageError
from job.storage.workdir import Workdir
from job.train.cluster import Cluster

if TYPE_CHECKING:
    from job.data.examples import Examples
    from job.model.network import Network
    from job.stages.extract import Extraction


@dataclass(frozen=True)
class Stage:
    """One row of the pipeline.

    `schema` is raised when the code changes what comes out. `settings` is the part of the configuration that the outcome
    depends on. `outputs` last and are checked by digest; `stores` lie under cache/ and are made again only where a later
    stage (one that names this one in `reads_stores_of`) needs them. `count` says how much the stage worked through.
    """

    name: str
    schema: int
    after: tuple[str, ...]
    settings: Callable[[Config], Any]
    outputs: tuple[str, ...]
    run: Callable[[Job], Any]
    load: Callable[[Workdir], Any]
    stores: Callable[[Any], Sequence[str]] = lambda _: ()
    reads_stores_of: tuple[str, ...] = ()
    count: Callable[[Job], int] | None = None


class Job:
    """A run under way: the configuration and what the stages have made so far."""

    def __init__(self, config: Config, data: str, context: Context, command: Sequence[str] = ()) -> None:
        self.config, self.context, self.command = config, context, command
        self.workdir = context.workdir
        self.source: Source = open_source(data)
        self._artifacts: dict[str, Any] = {}
        self.done: list[str] = []  # The stages of this run that are up to date.

    @cached_property
    def listing(self) -> Listing:
        return self.source.listing()

    @cached_property
    def network(self) -> Network:
        from job.model.network import Network

        cluster = Cluster(logical_cpus=self.config.cluster.logical_cpus)
        return Network(self.config.backbone, self.config.intake.image_size, cluster, seed=self.config.seed)

    @property
    def examples(self) -> Examples:
        examples: Examples = self["split"].examples
        return examples

    def __getitem__(self, stage: str) -> Any:
        """What a stage made, now or in an earlier run."""
        if stage not in self._artifacts:
            self._artifacts[stage] = STAGES[stage].load(self.workdir)
        return self._artifacts[stage]

    def keep(self, stage: str, artifact: Any) -> None:
        self._artifacts[stage] = artifact


def _intake(job: Job) -> Any:
    from job.stages.intake import intake

    return intake(job.config.intake, source=job.source, listing=job.listing, context=job.context)


def _split(job: Job) -> Any:
    from job.stages.split import split

    found = job["intake"]
    drop = job.config.intake.drop_small_classes
    return split(
        job.config.split, examples=found.examples, images=found.images, drop_small_classes=drop, context=job.context
    )


def _explore(job: Job) -> Any:
    from job.stages.explore import explore

    return explore(job.config.explore, examples=job.examples, images=job["intake"].images, context=job.context)


def _extract(job: Job) -> Any:
    from job.model import backbones
    from job.stages.extract import extract

    return extract(
        job.config.extract,
        job.config.augment,
        examples=job.examples,
        images=job["intake"].images,
        network=job.network,
        backbone_fingerprint=backbones.fingerprint(job.config.backbone),
        context=job.context,
    )


def _head(job: Job) -> Any:
    from job.stages.head import head

    return head(job.config.head, examples=job.examples, features=job["extract"].features, context=job.context)


def _fine_tune(job: Job) -> Any:
    from job.stages.fine_tune import fine_tune

    return fine_tune(
        job.config.fine_tune,
        examples=job.examples,
        features=job["extract"].features,
        activations=job["extract"].activations,
        chosen_head=job["head"].head,
        c=job["head"].c,
        network=job.network,
        train_seed=job.config.train.seed or 0,
        context=job.context,
    )


def _evaluate(job: Job) -> Any:
    from job.stages.evaluate import evaluate

    return evaluate(
        job.config.evaluate,
        examples=job.examples,
        images=job["intake"].images,
        features=job["extract"].features.plain,
        activations=job["extract"].activations.plain,
        chosen_head=job["head"].head,
        tuned_weights=job["fine_tune"].weights,
        network=job.network,
        context=job.context,
    )


def _export(job: Job) -> Any:
    from job.stages.export import export

    return export(
        job.config.export,
        job.config.intake,
        examples=job.examples,
        images=job["intake"].images,
        source_uri=job.source.uri,
        chosen_head=job["head"].head,
        tuned_weights=job["fine_tune"].weights if job["evaluate"].ships_fine_tuned else None,
        network=job.network,
        context=job.context,
    )


def _report(job: Job) -> Any:
    from job.stages.report import report

    run = job.workdir.read_json("run.json")
    up_to_date = {name: times for name, times in timings(job.workdir).items() if name in job.done}
    return report(job.config.report, run=run, timings=up_to_date, context=job.context)


def _loader(stage: str, artifact: str) -> Callable[[Workdir], Any]:
    """Import the stage's module only when its artifact is wanted."""

    def load(workdir: Workdir) -> Any:
        module = importlib.import_module(f"job.stages.{stage}")
        return getattr(module, artifact).load(workdir)

    return load


def _backbone(config: Config) -> Any:
    from job.model import backbones

    seed = config.seed if config.backbone.weights == "random" else None
    return [backbones.fingerprint(config.backbone), config.backbone.unfreeze, config.intake.image_size, seed]


def _num_training_steps_times_batch(job: Job) -> int:
    return len(job.examples.of("train")) * max(0, len(job["fine_tune"].history) - 1)


def _num_views(job: Job) -> int:
    extraction: Extraction = job["extract"]
    num_augmented = len(extraction.train_rows_T) * (extraction.num_views - 1)
    return len(extraction.features.plain) + num_augmented


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="intake",
            schema=1,
            after=(),
            settings=lambda c: c.intake.what(),
            outputs=("stages/intake/table.parquet",),
            run=_intake,
            load=_loader("intake", "Intake"),
            stores=lambda _: ("cache/images",),
            count=lambda job: len(job["intake"].examples),
        ),
        Stage(
            name="split",
            schema=1,
            after=("intake",),
            settings=lambda c: [c.split.what(), c.intake.drop_small_classes],
            outputs=("examples.parquet",),
            run=_split,
            load=_loader("split", "SplitExamples"),
            reads_stores_of=("intake",),
        ),
        Stage(
            name="explore",
            schema=1,
            after=("split",),
            settings=lambda c: c.explore.what(),
            outputs=("stages/explore",),
            run=_explore,
            load=_loader("explore", "Exploration"),
            reads_stores_of=("intake",),
        ),
        Stage(
            name="extract",
            schema=1,
            after=("split",),
            settings=lambda c: [_backbone(c), c.augment.what(), c.extract.what()],
            outputs=("stages/extract",),
            run=_extract,
            load=_loader("extract", "Extraction"),
            stores=lambda artifact: artifact.store_names(),
            reads_stores_of=("intake",),
            count=_num_views,
        ),
        Stage(
            name="head",
            schema=1,
            after=("split", "extract"),
            settings=lambda c: c.head.what(),
            outputs=("stages/head",),
            run=_head,
            load=_loader("head", "ChosenHead"),
            reads_stores_of=("extract",),
        ),
        Stage(
            name="fine_tune",
            schema=1,
            after=("split", "extract", "head"),
            settings=lambda c: [c.fine_tune.what(), c.train.what()],
            outputs=("stages/fine_tune",),
            run=_fine_tune,
            load=_loader("fine_tune", "FineTuned"),
            reads_stores_of=("extract",),
            count=_num_training_steps_times_batch,
        ),
        Stage(
            name="evaluate",
            schema=1,
            after=("split", "extract", "head", "fine_tune"),
            settings=lambda c: [c.evaluate.what(), c.seed],
            outputs=("stages/evaluate", "predictions.parquet"),
            run=_evaluate,
            load=_loader("evaluate", "Evaluation"),
            reads_stores_of=("intake", "extract"),
        ),
        Stage(
            name="export",
            schema=1,
            after=("split", "extract", "head", "fine_tune", "evaluate"),
            settings=lambda c: [c.export.what(), c.intake.what()],
            outputs=("stages/export", "model"),
            run=_export,
            load=_loader("export", "Exported"),
            reads_stores_of=("intake",),
        ),
        Stage(
            name="report",
            schema=1,
            after=("explore", "head", "fine_tune", "evaluate", "export"),
            settings=lambda c: c.report.what(),
            outputs=("report.html",),
            run=_report,
            load=_loader("report", "Report"),
        ),
    )
}

# What users take away. A run that will replace it withdraws it first, so that it never contradicts the rest.
_PUBLIC = {
    "evaluate": ("metrics.json", "predictions.parquet", "stages/evaluate"),
    "export": ("model", "stages/export"),
    "report": ("report.html",),
}


@dataclass(frozen=True)
class Step:
    """A line of the plan: whether a stage runs, and why."""

    stage: str
    runs: bool
    reason: str


def plan(job: Job, stop_after: str | None = None) -> list[Step]:
    """What a run would do. A stage whose predecessors run may turn out to be unchanged when its time comes."""
    steps: dict[str, Step] = {}
    for name in _wanted(stop_after):
        before = [s for s in STAGES[name].after if s in steps and steps[s].runs]
        reason = f"{before[0]} runs before it" if before else _why_stale(job, name, list(steps))
        steps[name] = Step(name, bool(reason), reason or "nothing that it depends on has changed")
    for name in reversed(list(steps)):
        for provider in STAGES[name].reads_stores_of if steps[name].runs else ():
            if not steps[provider].runs and not _stores_intact(job, provider):
                steps[provider] = Step(provider, True, f"{name} needs its store, which is missing or damaged")
    return list(steps.values())


def run(job: Job, stop_after: str | None = None) -> None:
    """Run what is stale, up to and with `stop_after`, and draw the report of what there is.

    Raises:
        GateNotMet: after the report is written, where the model is not good enough; nothing is exported then.
        JobError: as the stages do.
    """
    steps = plan(job, stop_after)
    telemetry = job.context.telemetry
    if not any(step.runs for step in steps):
        _raise_if_gate_not_met(job, steps)
        return
    job.workdir.write_json("run.json", describe(job))
    _withdraw(job.workdir, {step.stage for step in steps if step.runs})
    failure: GateNotMet | None = None
    for step in steps:
        job.context.stop.check()
        if step.stage == "export" and not job["evaluate"].numbers["gate"]["met"]:
            telemetry.line("export    skipped: the quality gate was not met")
            continue
        if step.runs and (_why_stale(job, step.stage, job.done) or not _stores_intact(job, step.stage)):
            try:
                _run_stage(job, step.stage)
            except GateNotMet as error:  # Of the export; the page says so, too.
                failure = error
                continue
        else:
            telemetry.line(f"{step.stage:<10}skipped: unchanged")
        job.done.append(step.stage)
    publish_metrics(job)
    if failure:
        raise failure
    _raise_if_gate_not_met(job, steps)


def timings(workdir: Workdir) -> dict[str, dict[str, float]]:
    """Wall and CPU seconds of each stage whose record stands, in the order of the pipeline."""
    records = {name: workdir.read_json(_record_name(name)) for name in STAGES}
    return {name: {"wall_s": r["wall_s"], "cpu_s": r["cpu_s"]} for name, r in records.items() if r}


def publish_metrics(job: Job) -> None:
    """metrics.json: the numbers of evaluate, with the times of all stages so far."""
    if not job.workdir.exists(_record_name("evaluate")):
        return
    numbers = job["evaluate"].numbers
    records = {name: job.workdir.read_json(_record_name(name)) or {} for name in STAGES}
    throughput = {
        f"{name}_{unit}_per_s": round(records[name]["count"] / max(records[name]["wall_s"], 1e-9), 1)
        for name, unit in (("intake", "photos"), ("extract", "views"), ("fine_tune", "examples"))
        if records[name].get("count")
    }
    metrics = {"schema": 1, **{k: numbers[k] for k in ("shipped", "class_names", "head", "fine_tuned")}}
    job.workdir.write_json("metrics.json", {**metrics, "timings": timings(job.workdir), "throughput": throughput})


def headline(job: Job) -> str:
    """The last line of a run."""
    report = job.workdir.path("report.html")
    if not job.workdir.exists(_record_name("evaluate")):
        statuses = job["explore"].numbers["statuses"] if job.workdir.exists(_record_name("explore")) else {}
        return f"{sum(statuses.values()):,} files looked at. Report: {report}"
    numbers = job["evaluate"].numbers
    test = numbers[numbers["shipped"]]["test"]
    low, high = test["accuracy_ci95"]
    what = {"head": "head", "fine_tuned": "fine-tuned model"}[numbers["shipped"]]
    return (
        f"Accuracy {test['accuracy']:.3f} ({low:.3f} to {high:.3f}) on {test['num_examples']:,} held-out photos, {what}. "
        f"Report: {report}"
    )


def describe(job: Job) -> dict[str, Any]:
    """The content of run.json."""
    packages = ("keras", "tensorflow-cpu", "tensorflow", "numpy", "scipy", "scikit-learn", "pillow", "simplejpeg", "pyarrow")
    versions = {"transfer-job": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "schema": 1,
        "data": job.source.uri,
        "out": str(job.workdir.root),
        "command": shlex.join(job.command),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": job.config.model_dump(mode="json"),
        "versions": versions,
        "fingerprint": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "platform": platform.platform(),
            "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
            "op_determinism": True,
        },
    }


def make_workdir(out: str, data: str) -> Workdir:
    """
    Raises:
        UsageError: where the run would write into its own source.
    """
    root = Path(out).resolve()
    if "://" not in data and root.is_relative_to(Path(data).resolve()):
        raise UsageError(f"--out {out} lies inside --data {data}: nothing is ever written there. Choose another folder.")
    if root.exists() and not root.is_dir():
        raise UsageError(f"--out {out}: this is a file; give a folder.")
    return Workdir(root)


def _wanted(stop_after: str | None) -> list[str]:
    names = list(STAGES)
    return names if stop_after in (None, "report") else [*names[: names.index(str(stop_after)) + 1], "report"]


def _run_stage(job: Job, name: str) -> None:
    stage = STAGES[name]
    telemetry = job.context.telemetry
    telemetry.line(f"{name:<10}runs")
    telemetry.event("stage_started", stage=name)
    job.workdir.remove(_record_name(name))
    wall, cpu = time.monotonic(), _cpu_s(job)
    artifact = stage.run(job)
    job.keep(name, artifact)
    record = {
        "stage": name,
        "schema": stage.schema,
        "key": _key(job, name, job.done),
        "outputs": job.workdir.digests(stage.outputs),
        "stores": {store: _store_digest(job.workdir, store) for store in stage.stores(artifact)},
        "count": stage.count(job) if stage.count else None,
        "wall_s": round(time.monotonic() - wall, 2),
        "cpu_s": round(_cpu_s(job) - cpu, 2),
    }
    job.workdir.write_json(_record_name(name), record)
    telemetry.line(f"{name:<10}done in {record['wall_s']:.1f} s")
    telemetry.event("stage_finished", stage=name, wall_s=record["wall_s"], cpu_s=record["cpu_s"])


def _why_stale(job: Job, name: str, done: list[str]) -> str:
    """Why a stage has to run; empty where it does not. `done` are the stages of this run that stand before it."""
    stage, record = STAGES[name], job.workdir.read_json(_record_name(name))
    if record is None:
        return "it has not been finished before"
    if record.get("schema") != stage.schema:
        return "its code has changed"
    key = _key(job, name, done)
    changed = [what for what in key if record.get("key", {}).get(what) != key[what]]
    if changed or record["key"].keys() != key.keys():
        return f"{changed[0] if changed else 'what it depends on'} changed"
    outputs = job.workdir.digests(stage.outputs)
    damaged = [path for path, digest in record["outputs"].items() if outputs.get(path) != digest]
    return f"{damaged[0]} is missing or damaged" if damaged else ""


def _key(job: Job, name: str, done: list[str]) -> dict[str, str]:
    """Everything a stage depends on, by content: a digest each for the source, the settings and each stage before."""
    stage = STAGES[name]
    key = {"its settings": digest_of(stage.settings(job.config))}
    if name == "intake":
        from job.stages.intake import source_digest

        key["the source"] = source_digest(job.source, job.listing, job.workdir)
    for before in stage.after:
        record = job.workdir.read_json(_record_name(before)) if before in done else None
        if record:
            key[before] = digest_of([record["outputs"], record["stores"]])
    return key


def _stores_intact(job: Job, name: str) -> bool:
    from job.data.stores import ArrayStore

    record = job.workdir.read_json(_record_name(name))
    return record is not None and all(ArrayStore.is_intact(job.workdir.path(store)) for store in record["stores"])


def _store_digest(workdir: Workdir, store: str) -> str:
    from job.data.stores import ArrayStore

    return ArrayStore(workdir.path(store)).digest


def _withdraw(workdir: Workdir, running: set[str]) -> None:
    for stage in ("report", "export", "evaluate"):
        if stage in running:
            for name in (_record_name(stage), *_PUBLIC[stage]):
                workdir.remove(name)


def _raise_if_gate_not_met(job: Job, steps: list[Step]) -> None:
    if "evaluate" not in {step.stage for step in steps} or job["evaluate"].numbers["gate"]["met"]:
        return
    wanted = job["evaluate"].numbers["gate"]["min_accuracy"]
    raise GateNotMet(f"{headline(job)}\nThe quality gate evaluate.min_accuracy = {wanted} was not met: nothing is exported.")


def _record_name(stage: str) -> str:
    return f"stages/{stage}.json"


def _cpu_s(job: Job) -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage) + job.context.telemetry.cpu_s_elsewhere


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def program() -> str:
    """How this program was called, for the command that runs it again."""
    return f"{Path(sys.executable).name} -m job" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name
