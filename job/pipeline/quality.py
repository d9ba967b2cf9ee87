"""The choice of the quality of a run with a time budget, from a prediction of what each would take.

The choice is made after split, before anything else is computed with the backbone. A few batches are timed with the layers
of each quality. The seconds of extract and fine_tune follow from these rates and from the number of photos. The other stages
take what they took on two cores (docs/scale.md), times how much slower this machine is at the moment.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from job.config import Config
from job.pipeline.budget import Budget, Estimate
from job.pipeline.job import Job
from job.pipeline.settings import settings_digest
from job.pipeline.table import STAGES
from job.runtime.cgroups import memory_bytes
from job.runtime.telemetry import Telemetry
from job.serving.formats.table import FORMATS
from job.storage.files import digest_of, in_units
from job.text.numbers import about, seconds
from job.train.recipe import QUALITIES, Recipe, with_quality
from job.train.schedule import Schedule

if TYPE_CHECKING:
    import tensorflow as tf

    from job.model.network import Network
    from job.stores.arrays import ArrayStore

CHOICE = "stages/budget.json"
HEAD = "head"  # The choice where no quality fits: nothing is fine-tuned.
MARGIN = 1.1  # A quality fits if it does with so many times its prediction.
# CPU seconds, on two cores, of audit and head with few photos, of the stages after fine_tune, and what mirrored photos add
# to these (docs/decisions/0036-time-budget.md).
_BEFORE_S, LATER_S, _MIRRORING_S = 3.5, 12.0, 4.0
CONVERT_S = 20.0  # CPU seconds of each further format with 700 photos (docs/decisions/0043-formats.md).
AUDIT_S_PER_PHOTO, HEAD_S_PER_VALUE = 15 / 60_000, 20e-9


def settle(job: Job, budget: Budget) -> None:
    """Choose the best quality that fits, say what each would take, and give the job the configuration of the choice.

    The choice is kept: the same command makes the same choice when it resumes.
    """
    line, left_s = job.context.telemetry.line, budget.limit_s - budget.spent_s
    line(f"Budget {seconds(budget.limit_s)}, of which {about(budget.spent_s)} are spent. Predicted for the rest of the run:")
    found = _estimates(job)
    for one in found:
        fits = "fits" if one.seconds * MARGIN <= left_s else "too long"
        sizes = f"{in_units(one.disk_bytes)} of disk, {in_units(one.memory_bytes)} of memory"
        line(f"  {one.name:<9} {about(one.seconds)}, {sizes}: {fits}")
    chosen = best_that_fits(found, left_s)
    line(f"  {chosen.name} is taken{': nothing is fine-tuned' if chosen.name == HEAD else ''}")
    budget.settled_s = budget.spent_s
    total = {**asdict(chosen), "seconds": budget.settled_s + chosen.seconds}
    job.workdir.write_sealed(CHOICE, {"made_from": _made_from(job), "chosen": total})
    resume(job, budget)


def resume(job: Job, budget: Budget) -> None:
    """Give the job the configuration of an earlier choice, if one was made from the same data, settings and budget."""
    kept = job.workdir.read_sealed(CHOICE)
    if kept and kept["made_from"] == _made_from(job):
        budget.chosen = Estimate(**kept["chosen"])
        job.configure(configured(job.given, budget.chosen.name))


def best_that_fits(found: Sequence[Estimate], left_s: float) -> Estimate:
    """Return the last of these predictions that fits into the time with a margin, or the first one if none does."""
    return next((one for one in reversed(found) if one.seconds * MARGIN <= left_s), found[0])


def configured(config: Config, name: str) -> Config:
    """Return the configuration of a run with this quality, or of one that trains the head alone."""
    if name == HEAD:
        views = 1 if config.augment.views == "auto" else config.augment.views
        augment = config.augment.model_copy(update={"views": views})
        untuned = config.fine_tune.model_copy(update={"epochs": 0})
        return with_quality(config.model_copy(update={"augment": augment, "fine_tune": untuned}))
    return with_quality(config.model_copy(update={"train": config.train.model_copy(update={"quality": name})}))


def _made_from(job: Job) -> str:
    settings = [settings_digest(stage, with_quality(job.given)) for stage in STAGES]
    return digest_of([settings, job.given.train.budget_s, job.records.outcome("split")])


@dataclass(frozen=True)
class Timed:
    """Seconds of a compiled function: of its first call, and for each example after that.

    `slowdown` is how much longer the first call took than it would on an idle machine.
    """

    first_s: float
    per_example_s: float
    slowdown: float = 1.0


def _estimates(job: Job) -> list[Estimate]:
    """Return predictions for the head alone and for each quality, from the cheapest on."""
    forward = _timed_forward(job.network, job["intake"].images, job.config.extract.batch_size)
    found, steps = [], {"": Timed(0.0, 0.0)}
    for name in (HEAD, *QUALITIES):
        config = configured(job.given, name)
        network = job.network.recut(config.backbone.unfreeze)
        cut = network.cut_point.name if network.cut_point and name != HEAD else ""
        if cut not in steps:
            recipe = Recipe.resolve(config, num_examples=len(job["split"].examples.of("train")))
            steps[cut] = _timed_step(config, recipe, network, len(job["split"].examples.class_names))
        found.append(_estimate(job, name, config, network, forward, steps[cut]))
    return found


def _estimate(job: Job, name: str, config: Config, network: Network, forward: Timed, step: Timed) -> Estimate:
    from job.model.inputs import choose_inputs

    examples, cache = job["split"].examples, job.context.cache
    num_photos, num_train, num_val = (len(examples.of(*splits)) for splits in ((), ("train",), ("val",)))
    recipe = Recipe.resolve(config, num_examples=num_train)
    num_views = num_photos + num_train * (recipe.views - 1)
    point = network.cut_point if name != HEAD else None
    is_stored = (
        point is not None
        and choose_inputs(
            config.fine_tune.inputs,
            num_photos=num_photos,
            num_training_photos=num_train,
            num_views=recipe.views,
            network=network,
            budget_bytes=cache.free_bytes if cache.max_gb is None else cache.max_gb * 1e9,
            memory_bytes=memory_bytes(),
        ).kind
        == "stored"
    )
    share = point.share_above if point else 0.0
    tuning_s = 0.0
    if point:
        tuning_s = fine_tuning_s(recipe, step, num_train, num_val, forward.per_example_s, share, is_stored=is_stored)
        tuning_s += forward.first_s
    values = recipe.views * num_train * network.feature_width * len(examples.class_names)
    before_s = _BEFORE_S + num_photos * AUDIT_S_PER_PHOTO + values * HEAD_S_PER_VALUE
    later_s = forward.slowdown * LATER_S
    convert_s = forward.slowdown * CONVERT_S * len(FORMATS.keys() & set(config.export.formats))
    if point and config.evaluate.mirror is True:  # By each seed and, if there are several, by the mean of their weights.
        num_models = recipe.seeds + (recipe.seeds > 1)
        later_s += forward.slowdown * _MIRRORING_S + num_models * (num_photos - num_train) * forward.per_example_s
    extract_s = 2 * forward.first_s + num_views * forward.per_example_s
    stored_values = point.values_per_view * 2 if point and is_stored else 0
    return Estimate(
        name,
        seconds=extract_s + forward.slowdown * before_s + tuning_s + later_s + convert_s,
        tuning_s=tuning_s,
        later_s=later_s,
        disk_bytes=num_views * (4 * network.feature_width + stored_values),
        memory_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def fine_tuning_s(
    recipe: Recipe, step: Timed, num_train: int, num_val: int, forward_s: float, share_above: float, *, is_stored: bool
) -> float:
    """Return the seconds of fine-tuning. `forward_s` are those of a forward pass of the whole backbone with one photo.

    After each epoch, the trained layers compute the validation photos. Without stored inputs, the frozen layers compute the
    training photos in every epoch.
    """
    frozen_s = 0.0 if is_stored else (1 - share_above) * forward_s
    epoch_s = num_train * (step.per_example_s + frozen_s) + num_val * share_above * forward_s
    return step.first_s + recipe.seeds * recipe.epochs * epoch_s


def _timed_forward(network: Network, images: ArrayStore, batch_size: int) -> Timed:
    photos = images.rows(np.arange(network.replicas.padded_size(batch_size)) % len(images))
    step = network.compiled()
    return _timed(lambda: [network.replicas.gather(o) for o in step(*network.replicas.scatter((photos,)))], len(photos))


def _timed_step(config: Config, recipe: Recipe, network: Network, num_classes: int) -> Timed:
    from job.model.heads import Head
    from job.stages.fine_tune import new_trainer

    size, point, tuning = recipe.global_batch_size, network.cut_point, config.fine_tune
    assert point is not None
    inputs = _Zeros(point.shape)
    precision = network.devices.best_precision if tuning.precision == "auto" else tuning.precision
    head = Head.zeros(network.feature_width, num_classes)
    schedule = Schedule.resolve(recipe, num_examples=size, warmup_fraction=0.0, seed=0)
    trainer = new_trainer(tuning, head, schedule, network, network.replicas, precision, inputs, Telemetry(None))
    targets, weights = np.full((size, num_classes), 1 / num_classes, np.float32), np.ones(size, np.float32)
    return _timed(lambda: trainer.step((inputs.plain, targets, weights)), size)


@dataclass(frozen=True)
class _Zeros:
    """Inputs of this shape for the layers above a cut."""

    shape: tuple[int, ...]

    def plain(self, rows_B: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.zeros((len(rows_B), *self.shape), np.float16),)

    def on_device(self, arrays: tuple[tf.Tensor, ...], *, training: bool) -> tf.Tensor:  # noqa: ARG002
        return arrays[0]


def _timed(compute: Callable[[], object], num_examples: int) -> Timed:
    """Time a compiled function: its first call, in which it is traced, and three more."""
    started, cpu = time.monotonic(), time.process_time()
    compute()
    first_s, first_cpu_s = time.monotonic() - started, time.process_time() - cpu
    started = time.monotonic()
    for _ in range(3):
        compute()
    # Tracing works on one core, so on an idle machine it takes no longer than its CPU time.
    slowdown = max(1.0, first_s / max(first_cpu_s, 1e-9))
    return Timed(first_s, (time.monotonic() - started) / (3 * num_examples), slowdown)
