"""The functions of the stages, and the arguments that each gets from the job."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from job.pipeline import publishing
from job.pipeline.job import Artifact, Job
from job.pipeline.records import read_run
from job.pipeline.settings import backbone_weights, fine_tunes
from job.pipeline.table import STAGES
from job.storage.files import digest_of


@dataclass(frozen=True)
class Wiring:
    """The functions of a stage.

    `run` does the work and returns the artifact, if the stage has one. Workers other than the chief may return None.
    `stores` returns the names of the stage's stores in the cache, and `count` how much it worked through, in the unit of
    the table.
    """

    run: Callable[[Job], Artifact | None]
    stores: Callable[[Job], Sequence[str]] = lambda _: ()
    count: Callable[[Job], int] | None = None


def _intake(job: Job) -> Artifact | None:
    from job.stages.intake import intake

    return intake(job.config.intake, source=job.source, listing=job.listing, context=job.context)


def _split(job: Job) -> Artifact | None:
    from job.stages.split import split

    found = job["intake"]
    return split(
        job.config.split,
        examples=found.examples,
        images=found.images,
        corrections=job.corrections,
        max_quarantined_fraction=job.config.intake.max_quarantined_fraction,
        drop_small_classes=job.config.intake.drop_small_classes,
        context=job.context,
    )


def _explore(job: Job) -> None:
    from job.stages.explore import explore

    explore(
        job.config.explore,
        examples=job["split"].examples,
        images=job["intake"].images,
        source_notes=(
            *job.listing.summary(),
            *job["intake"].notes,
            *job["split"].corrections.notes(job["split"].examples),
        ),
        context=job.context,
    )


def _extract(job: Job) -> Artifact | None:
    from job.stages.extract import extract

    job.devices.join(job.context.peers, job.context.stop, job.config.cluster.start_timeout_s)
    if job.exports:
        publishing.keep_room(job.context, job.network.backbone.count_params(), len(job.config.export.formats))
    return extract(
        job.config.extract,
        job.config.augment,
        recipe=job.recipe,
        wanted_inputs=job.config.fine_tune.inputs,
        fine_tunes=fine_tunes(job.config),
        examples=job["split"].examples,
        images=job["intake"].images,
        network=job.network,
        code_and_weights=digest_of([STAGES["extract"].schema, *backbone_weights(job.config)]),
        context=job.context,
    )


def _audit(job: Job) -> Artifact | None:
    from job.stages.audit import audit

    return audit(
        job.config.audit,
        examples=job["split"].examples,
        images=job["intake"].images,
        features=job["extract"].features.plain,
        corrections=job["split"].corrections,
        context=job.context,
    )


def _head(job: Job) -> Artifact | None:
    from job.stages.head import head

    return head(
        job.config.head,
        examples=job["audit"].examples,
        features=job["extract"].features,
        checkpoints=job.checkpoints("head"),
        context=job.context,
    )


def _fine_tune(job: Job) -> Artifact | None:
    from job.stages.fine_tune import fine_tune

    job.devices.join(job.context.peers, job.context.stop, job.config.cluster.start_timeout_s)
    return fine_tune(
        job.config.fine_tune,
        job.recipe,
        examples=job["audit"].examples,
        features=job["extract"].features,
        inputs=job.inputs,
        chosen_head=job["head"].head,
        network=job.network,
        train_seed=job.config.train.seed or 0,
        left_s=job.budget.training_clock() if job.budget else lambda: math.inf,
        checkpoints=[job.checkpoints("fine_tune", repetition) for repetition in range(job.recipe.seeds)],
        context=job.context,
    )


def _evaluate(job: Job) -> Artifact | None:
    from job.decoding.rules import DecodeRules
    from job.measure.models import Models
    from job.stages.evaluate import evaluate

    images, features = job["intake"].images, job["extract"].features.plain
    return evaluate(
        job.config.evaluate,
        examples=job["audit"].examples,
        models=Models(job.network, job["head"].head, job["fine_tune"].models, features, job.inputs, images),
        rules=DecodeRules.of(job.config.intake, job["intake"].bit_depth),
        context=job.context,
    )


def _heatmaps(job: Job) -> None:
    from job.stages.heatmaps import heatmaps

    heatmaps(
        job.config.heatmaps,
        examples=job["audit"].examples,
        images=job["intake"].images,
        features=job["extract"].features.plain,
        shipped=job.shipped,
        evaluated=job["evaluate"].numbers,
        context=job.context,
    )


def _export(job: Job) -> None:
    from job.stages.export import export

    export(
        job.config.export,
        job.config.intake,
        bit_depth=job["intake"].bit_depth,
        examples=job["audit"].examples,
        images=job["intake"].images,
        source=job.source,
        entries={entry.path: entry for entry in job.listing.entries},
        shipped=job.shipped,
        context=job.context,
    )


def _convert(job: Job) -> None:
    from job.stages.convert import convert

    convert(
        job.config.export,
        examples=job["audit"].examples,
        images=job["intake"].images if job.records.stores_intact("intake") else None,
        context=job.context,
    )


def _report(job: Job) -> None:
    from job.stages.report import report

    run = read_run(job.workdir)
    assert run is not None  # run.json is written before the first stage.
    report(job.config.report, run=run, timings=job.records.timings(job.done), context=job.context)


def _num_trained_examples(job: Job) -> int:
    num_epochs = sum(entry["epoch"] > 0 for entry in job["fine_tune"].history)
    return len(job["audit"].examples.of("train")) * num_epochs


WIRING: Mapping[str, Wiring] = {
    "intake": Wiring(_intake, lambda job: (job["intake"].store_name,), lambda job: len(job["intake"].examples)),
    "split": Wiring(_split, count=lambda job: len(job["split"].examples)),
    "explore": Wiring(_explore, count=lambda job: len(job["split"].examples.of())),
    "extract": Wiring(_extract, lambda job: tuple(job["extract"].stores.values()), lambda job: job["extract"].num_looked_at),
    "audit": Wiring(_audit, count=lambda job: len(job["split"].examples.in_store_order())),
    "head": Wiring(_head),
    "fine_tune": Wiring(_fine_tune, count=_num_trained_examples),
    "evaluate": Wiring(_evaluate, count=lambda job: len(job["audit"].examples.of("val", "test"))),
    "heatmaps": Wiring(_heatmaps),
    "export": Wiring(_export),
    "convert": Wiring(_convert),
    "report": Wiring(_report),
}
