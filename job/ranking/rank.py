"""Compare backbones: the accuracy of a small head on the stored features of each, or after brief fine-tuning, and the cost.

The test set (held-out photos) is not used. The accuracy of heads is out of fold, on the training and validation photos
together; that after fine-tuning is on the validation photos. All candidates have the same photos and folds, so that their
difference is paired.
"""

import gc
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from job.config import Config
from job.errors import DataUnusable, Diverged, JobError, StorageFailed, UsageError
from job.model.cut import multiply_adds
from job.model.network import Network
from job.pipeline.job import Job
from job.pipeline.provenance import program
from job.pipeline.run import bring_up_to_date
from job.ranking.candidates import Candidate
from job.ranking.photos import Photos, shared_photos
from job.ranking.predictions import Predictions, compared, fine_tune, fine_tuned, probe
from job.ranking.table import Accuracy, Cost, Row, as_csv, as_text, draw, in_order, recommended, undecided
from job.runtime.context import Context
from job.sources.open import open_source
from job.storage.claim import claim
from job.storage.files import digest_of
from job.storage.workdir import Workdir
from job.stores.arrays import ArrayStore

_PROBED = "of a small head, out of fold on training and validation photos"
_TUNED = "after fine-tuning, on validation photos"
_TIMED_S, _MAX_TIMED_BATCHES = 2.0, 9


def rank(
    candidates: Sequence[Candidate],
    data: str,
    *,
    labels: str | None,
    config_file: Path | None,
    assignments: Sequence[str],
    context: Context,
) -> list[str]:
    """Write rank.csv, rank.svg and rank.json, and return the lines of the table and of the recommendation.

    Each candidate has its own folder, so that finished work is not repeated. If one cannot be built, the others are ranked.

    Raises:
        DataUnusable, UsageError, StorageFailed, Diverged: if no candidate can be ranked.
        Stopped: if the job was asked to stop.
    """
    source = open_source(data, labels, settings=candidates[0].config.intake)
    jobs = {c.folder: Job(c.config, source, _inside(context, c), labels=labels) for c in candidates}
    costs, failures = _measured(candidates, jobs, data, context)
    photos, found = _predicted({folder: jobs[folder] for folder in costs}, candidates, context)
    accuracies = compared(found, costs, photos, jobs[candidates[0].folder].config)
    rows = in_order([_row(c, costs, accuracies, failures) for c in candidates])
    chosen = recommended(rows)
    config = jobs[chosen.folder].config
    command = _run_command(config, data, labels, config_file, assignments, context.workdir)
    _write(rows, chosen, photos, command, context.workdir)
    return [*as_text(rows, photos.meaning).split("\n"), "", *_conclusion(rows, chosen, photos, command, context.workdir)]


def _measured(
    candidates: Sequence[Candidate], jobs: Mapping[str, Job], data: str, context: Context
) -> tuple[dict[str, Cost], dict[str, JobError]]:
    """Compute the features of each candidate, and fine-tune it if wanted. Return the costs, and the errors of the others.

    Raises: the error of the first candidate, if all of them fail.
    """
    costs: dict[str, Cost] = {}
    failures: dict[str, JobError] = {}

    def fails(candidate: Candidate, error: JobError) -> None:
        failures[candidate.folder] = error
        context.telemetry.line(f"  not ranked: {_in_one_line(error)}")

    # All photos are decoded first, because processes are better started before TensorFlow is imported.
    for candidate in candidates:
        context.telemetry.line(f"{candidate.label}, {candidate.image_size} px: photos")
        try:
            _prepare(jobs[candidate.folder], data)
        except DataUnusable as error:  # Another image size may be usable, because fewer photos look alike there.
            fails(candidate, error)
    for candidate in (one for one in candidates if one.folder not in failures):
        job = jobs[candidate.folder]
        context.telemetry.line(f"{candidate.label}, {candidate.image_size} px: features")
        try:
            cost = _extract(job)
            if candidate.fine_tunes:
                fine_tune(job)
            costs[candidate.folder] = cost
        except (DataUnusable, UsageError, StorageFailed, Diverged) as error:
            fails(candidate, error)
        _forget_network(job)
    if not costs:
        raise type(next(iter(failures.values())))(*(f"{name}: {_in_one_line(e)}" for name, e in failures.items()))
    return costs, failures


def _predicted(
    jobs: Mapping[str, Job], candidates: Sequence[Candidate], context: Context
) -> tuple[Photos, dict[str, Predictions]]:
    """Return the photos that all of these jobs can use, and what each candidate predicts for them."""
    if candidates[0].fine_tunes:
        photos = shared_photos([job["audit"].examples for job in jobs.values()], _TUNED, "val")
        return photos, {folder: fine_tuned(job, photos) for folder, job in jobs.items()}
    photos = shared_photos([job["split"].examples for job in jobs.values()], _PROBED, "train", "val")
    context.telemetry.line(f"Probing {len(jobs)} of {len(candidates)} candidates on {len(photos.paths):,} photos")
    return photos, {folder: probe(job, photos) for folder, job in jobs.items()}


def _in_one_line(error: JobError) -> str:
    return " ".join(str(error).split())


def _inside(context: Context, candidate: Candidate) -> Context:
    workdir = Workdir(context.workdir.path(candidate.folder))
    workdir.lease = context.workdir.lease
    claim(workdir.root, str(workdir.root), environ={})
    workdir.clean()
    inside = Context(workdir, context.telemetry, candidate.config.seed, context.stop, candidate.config.cache, context.saving)
    inside.cache.claim()
    return inside


def _prepare(job: Job, data: str) -> None:
    bring_up_to_date(job, "intake", "split")
    if job["split"].refusals:
        said = [line for refusal in job["split"].refusals for line in refusal.lines]
        raise DataUnusable(*said, f"`transfer-job explore --data {shlex.quote(data)} --out DIR` shows all of it.")


def _extract(job: Job) -> Cost:
    """Compute the features and return their cost, which is measured once and stored in the candidate's folder.

    It is measured before the features of all photos are computed, so that those who read it may stop the program.
    """
    images = job["intake"].images
    try:
        known = job.workdir.read_sealed("cost.json")
        per_photo = None if known else measured(job.network, images, job.config.extract.batch_size)
        if per_photo:
            millions, seconds = per_photo["multiply_adds"] / 1e6, per_photo["forward_wall_ms"] / 1000 * len(images)
            job.context.telemetry.line(
                f"  {millions:,.0f} million multiply-adds for each photo; about {seconds:,.0f} s for all photos"
            )
        bring_up_to_date(job, "extract")
        record = job.records["extract"]
        assert record is not None  # Just brought up to date.
        key = digest_of([record["key"], record["stores"]])
        if known is None or known["key"] != key:
            per_photo = per_photo or measured(job.network, images, job.config.extract.batch_size)
            cost = Cost(**per_photo, extract_wall_s=record["wall_s"], extract_cpu_s=record["cpu_s"])
            job.workdir.write_sealed("cost.json", {"key": key, "cost": asdict(cost)})
            return cost
    except Exception as error:
        # The second is TensorFlow's; naming the class would import it.
        if not isinstance(error, MemoryError) and type(error).__name__ != "ResourceExhaustedError":
            raise
        size = job.config.extract.batch_size
        raise UsageError(f"There is not enough memory for batches of {size} photos: lower extract.batch_size.") from error
    return Cost(**known["cost"])


def measured(network: Network, images: ArrayStore, batch_size: int) -> dict[str, Any]:
    """Return the fields of `Cost` that are for one photo. Times are those of the median batch, without the first one."""
    parameters = network.backbone.count_params()  # Built before the step is traced, or it would be traced twice.
    replicas, step = network.replicas, network.compiled()
    numbers = np.arange(replicas.padded_size(batch_size)) % len(images)
    batch = replicas.scatter((images.rows(numbers),))
    walls: list[float] = []
    cpus: list[float] = []
    for number in range(1 + _MAX_TIMED_BATCHES):
        wall, cpu = time.perf_counter(), time.process_time()
        for output in step(*batch):
            replicas.gather(output)
        if number:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        if sum(walls) > _TIMED_S:
            break
    return {
        "multiply_adds": multiply_adds(network.backbone),
        "parameters": parameters,
        "weights_mb": parameters * 4 / 1e6,
        "feature_width": network.feature_width,
        "stored_bytes": network.image_size**2 * 3 + network.feature_width * 4,
        "forward_wall_ms": 1000 * statistics.median(walls) / len(numbers),
        "forward_cpu_ms": 1000 * statistics.median(cpus) / len(numbers),
    }


def _forget_network(job: Job) -> None:
    """Free the backbone before the next one is built."""
    vars(job).pop("inputs", None)
    if vars(job).pop("network", None) is not None:
        import keras

        keras.utils.clear_session()
        gc.collect()


def _row(
    candidate: Candidate, costs: dict[str, Cost], accuracies: dict[str, Accuracy], failures: dict[str, JobError]
) -> Row:
    folder = candidate.folder
    reason = _in_one_line(failures[folder]) if folder in failures else ""
    weights = Path(candidate.config.backbone.weights).name
    return Row(candidate.label, candidate.image_size, weights, folder, costs.get(folder), accuracies.get(folder), reason)


def _run_command(
    config: Config, data: str, labels: str | None, config_file: Path | None, assignments: Sequence[str], workdir: Workdir
) -> str:
    """Return the command that trains with the recommended backbone and the other settings of this call."""
    chosen = ("backbone.name", "backbone.weights", "intake.image_size", "cache.dir")
    kept = [a for a in assignments if a.partition("=")[0].strip() not in chosen]
    backbone = config.backbone
    settings = [*kept, f"backbone.name={backbone.name}"]
    settings += [f"backbone.alpha={backbone.alpha:g}"] if backbone.alpha is not None else []
    settings += [f"intake.image_size={config.intake.image_size}", f"cache.dir={config.cache.dir}"]
    words = [*shlex.split(program()), "run", "--data", data, *(["--labels", labels] if labels else [])]
    words += ["--out", workdir.shown("run"), *(["--config", str(config_file)] if config_file else [])]
    words += ["--weights", backbone.weights, *(word for setting in settings for word in ("--set", setting))]
    return shlex.join(words)


def _write(rows: Sequence[Row], chosen: Row, photos: Photos, command: str, workdir: Workdir) -> None:
    workdir.write_bytes("rank.csv", as_csv(rows))
    with workdir.writing("rank.svg") as path:
        draw(rows, chosen, photos.meaning, path)
    numbers = {
        "schema": 1,
        "num_photos": len(photos.paths),
        "meaning": photos.meaning,
        "num_left_out": photos.num_left_out,
        "class_names": photos.class_names,
        "best": rows[0].folder,
        "recommended": chosen.folder,
        "undecided": [row.folder for row in undecided(rows, chosen)],
        "command": command,
        "candidates": [asdict(row) for row in rows],
    }
    workdir.write_json("rank.json", numbers)


def _conclusion(rows: Sequence[Row], chosen: Row, photos: Photos, command: str, workdir: Workdir) -> list[str]:
    lines = [f"Accuracy {photos.meaning}; {len(photos.paths):,} photos. The held-out photos were not looked at."]
    if photos.num_left_out:
        lines.append(
            f"{photos.num_left_out:,} more are left out: they count as copies, or are in another split, at some image sizes."
        )
    lines.append(f"Table: {workdir.shown('rank.csv')}  Plot: {workdir.shown('rank.svg')}")
    for row in undecided(rows, chosen):
        assert row.accuracy is not None
        lines.append(
            f"Too few photos to tell whether {_described(row)}, which costs less, is as good: "
            f"about {row.accuracy.num_deciding:,} would tell."
        )
    if chosen is rows[0]:
        lines.append(f"Recommended: {chosen.name} at {chosen.image_size} px, the most accurate.")
    else:
        lines.append(f"Recommended: {_described(chosen)}, the cheapest that is not worse than the best.")
    return [*lines, command]


def _described(row: Row) -> str:
    assert row.accuracy is not None
    points, low, high = (100 * share for share in (row.accuracy.difference, *row.accuracy.difference_ci95))
    return f"{row.name} at {row.image_size} px ({points:+.1f} points, {low:+.1f} to {high:+.1f} at 95%)"
