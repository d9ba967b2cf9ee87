"""The stages, in order: what each is made from, what it leaves, and how it is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from job.config import Config, digest_of
from job.context import Context
from job.records import read_run, timings

if TYPE_CHECKING:
    from job.job import Job


@dataclass(frozen=True)
class Stage:
    """One row of the pipeline.

    `schema` is raised when the code changes what comes out. `settings` is the part of the configuration that the outcome
    depends on. `outputs` last and are checked by digest; `stores` lie in the cache and are made again only where a later
    stage (one that names this one in `reads_stores_of`) needs them. `count` says how much the stage worked through.
    Where the work `is_shared`, all workers run it at the same time; other stages are the chief's alone.
    """

    name: str
    schema: int
    after: tuple[str, ...]
    settings: Callable[[Config], Any]
    outputs: tuple[str, ...]
    run: Callable[[Job], Any]
    load: Callable[[Context], Any]
    stores: Callable[[Any], Sequence[str]] = lambda _: ()
    reads_stores_of: tuple[str, ...] = ()
    count: Callable[[Job], int] | None = None
    is_shared: bool = False


def _intake(job: Job) -> Any:
    from job.stages.intake import intake

    return intake(job.config.intake, source=job.source, listing=job.listing, context=job.context)


def _split(job: Job) -> Any:
    from job.stages.split import split

    found = job["intake"]
    return split(
        job.config.split,
        examples=found.examples,
        images=found.images,
        max_quarantined_fraction=job.config.intake.max_quarantined_fraction,
        drop_small_classes=job.config.intake.drop_small_classes,
        context=job.context,
    )


def _explore(job: Job) -> Any:
    from job.stages.explore import explore

    return explore(
        job.config.explore,
        examples=job.examples,
        images=job["intake"].images,
        source_notes=job.listing.notes,
        context=job.context,
    )


def _extract(job: Job) -> Any:
    from job.stages.extract import extract

    job.cluster.join(job.context.peers, job.context.stop, job.config.cluster.start_timeout_s)
    return extract(
        job.config.extract,
        job.config.augment,
        num_views=job.recipe.views,
        wanted_inputs=job.config.fine_tune.inputs,
        fine_tunes=_fine_tunes(job.config),
        examples=job.examples,
        images=job["intake"].images,
        network=job.network,
        code_and_weights=digest_of([STAGES["extract"].schema, *_backbone_weights(job.config)]),
        context=job.context,
    )


def _audit(job: Job) -> Any:
    from job.stages.audit import audit

    return audit(
        job.config.audit,
        examples=job["split"].examples,
        images=job["intake"].images,
        features=job["extract"].features.plain,
        context=job.context,
    )


def _head(job: Job) -> Any:
    from job.stages.head import head

    return head(
        job.config.head,
        examples=job.examples,
        features=job["extract"].features,
        checkpoints=job.checkpoints("head"),
        context=job.context,
    )


def _fine_tune(job: Job) -> Any:
    from job.stages.fine_tune import fine_tune

    job.cluster.join(job.context.peers, job.context.stop, job.config.cluster.start_timeout_s)
    return fine_tune(
        job.config.fine_tune,
        job.recipe,
        examples=job.examples,
        features=job["extract"].features,
        inputs=job.inputs,
        chosen_head=job["head"].head,
        c=job["head"].c,
        network=job.network,
        train_seed=job.config.train.seed or 0,
        checkpoints=job.checkpoints("fine_tune"),
        context=job.context,
    )


def _evaluate(job: Job) -> Any:
    from job.stages.evaluate import evaluate

    return evaluate(
        job.config.evaluate,
        examples=job.examples,
        images=job["intake"].images,
        features=job["extract"].features.plain,
        inputs=job.inputs,
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
        source=job.source,
        entries={entry.path: entry for entry in job.listing.entries},
        chosen_head=job["head"].head,
        tuned_weights=job["fine_tune"].weights if job["evaluate"].ships_fine_tuned else None,
        network=job.network,
        context=job.context,
    )


def _report(job: Job) -> Any:
    from job.stages.report import report

    run = read_run(job.workdir)
    assert run is not None  # Written before the first stage.
    return report(job.config.report, run=run, timings=timings(job.workdir, job.done), context=job.context)


def _loader(stage: str, artifact: str) -> Callable[[Context], Any]:
    """Import the stage's module only when its artifact is wanted."""

    def load(context: Context) -> Any:
        module = importlib.import_module(f"job.stages.{stage}")
        return getattr(module, artifact).load(context)

    return load


def _decoding(config: Config) -> Any:
    """What decides about the pixels and the table of intake; whether its outcome will do is asked later."""
    asked_later = {"max_quarantined_fraction", "drop_small_classes"}
    return {name: value for name, value in config.intake.what().items() if name not in asked_later}


def _backbone_weights(config: Config) -> list[Any]:
    from job.model import backbones

    return [backbones.fingerprint(config.backbone), config.seed if config.backbone.weights == "random" else None]


def _backbone(config: Config) -> Any:
    return [*_backbone_weights(config), config.backbone.unfreeze, config.intake.image_size]


def _fine_tunes(config: Config) -> bool:
    return config.fine_tune.epochs != 0 and config.backbone.unfreeze != "none"


def _num_trained_examples(job: Job) -> int:
    return len(job.examples.of("train")) * max(0, len(job["fine_tune"].history) - 1)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="intake",
            schema=3,
            after=(),
            settings=_decoding,
            outputs=("stages/intake/table.parquet", "stages/intake/intake.json"),
            run=_intake,
            load=_loader("intake", "Intake"),
            stores=lambda artifact: (artifact.store_name,),
            count=lambda job: len(job["intake"].examples),
            is_shared=True,
        ),
        Stage(
            name="split",
            schema=2,
            after=("intake",),
            settings=lambda c: [c.split.what(), c.intake.max_quarantined_fraction, c.intake.drop_small_classes],
            outputs=("stages/split",),
            run=_split,
            load=_loader("split", "SplitExamples"),
            reads_stores_of=("intake",),
            count=lambda job: len(job["split"].examples),
        ),
        Stage(
            name="explore",
            schema=3,
            after=("split",),
            settings=lambda c: [c.explore.what(), c.seed],
            outputs=("stages/explore",),
            run=_explore,
            load=_loader("explore", "Exploration"),
            reads_stores_of=("intake",),
            count=lambda job: len(job["split"].examples.of()),
        ),
        Stage(
            name="extract",
            schema=2,
            after=("split",),
            settings=lambda c: [_backbone(c), c.augment.what(), c.extract.what(), c.fine_tune.inputs, _fine_tunes(c)],
            outputs=("stages/extract",),
            run=_extract,
            load=_loader("extract", "Extraction"),
            stores=lambda artifact: tuple(artifact.stores.values()),
            reads_stores_of=("intake",),
            count=lambda job: job["extract"].num_looked_at,
            is_shared=True,
        ),
        Stage(
            name="audit",
            schema=2,
            after=("split", "extract"),
            settings=lambda c: [c.audit.what(), c.seed],
            outputs=("stages/audit",),
            run=_audit,
            load=_loader("audit", "Audit"),
            reads_stores_of=("intake", "extract"),
            count=lambda job: len(job["split"].examples.in_store_order()),
        ),
        Stage(
            name="head",
            schema=2,
            after=("audit", "extract"),
            settings=lambda c: c.head.what(),
            outputs=("stages/head",),
            run=_head,
            load=_loader("head", "ChosenHead"),
            reads_stores_of=("extract",),
        ),
        Stage(
            name="fine_tune",
            schema=2,
            after=("split", "audit", "extract", "head"),
            settings=lambda c: [c.fine_tune.what(), c.train.what()],
            outputs=("stages/fine_tune",),
            run=_fine_tune,
            load=_loader("fine_tune", "FineTuned"),
            reads_stores_of=("intake", "extract"),
            count=_num_trained_examples,
            is_shared=True,
        ),
        Stage(
            name="evaluate",
            schema=2,
            after=("audit", "extract", "head", "fine_tune"),
            settings=lambda c: [c.evaluate.what(), c.seed],
            outputs=("stages/evaluate",),
            run=_evaluate,
            load=_loader("evaluate", "Evaluation"),
            reads_stores_of=("intake", "extract"),
            count=lambda job: len(job.examples.of("val", "test")),
        ),
        Stage(
            name="export",
            schema=4,
            after=("audit", "extract", "head", "fine_tune", "evaluate"),
            settings=lambda c: [c.export.what(), _decoding(c)],
            outputs=("stages/export",),
            run=_export,
            load=_loader("export", "Exported"),
            reads_stores_of=("intake",),
        ),
        Stage(
            name="report",
            schema=2,
            after=("explore", "audit", "head", "fine_tune", "evaluate", "export"),
            settings=lambda c: c.report.what(),
            outputs=("stages/report",),
            run=_report,
            load=_loader("report", "Report"),
        ),
    )
}
