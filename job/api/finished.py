"""Commands for what a run has left: label photos with its model, compare it, draw its report, export its model."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from job.api.opening import Place, checked_place, context_for
from job.config import Config, with_dotted_names
from job.errors import UsageError
from job.pipeline import output, publishing, results
from job.pipeline.job import Job
from job.pipeline.records import Records, read_run, write_run
from job.pipeline.results import Result
from job.reporting.summaries import Run
from job.runtime.session import Session
from job.runtime.telemetry import Telemetry
from job.serving.formats.table import require
from job.storage.workdir import Workdir

if TYPE_CHECKING:
    from job.comparing.compare import Comparison


def predict(
    model: Place,
    data: Place,
    out: Place,
    *,
    model_sha256: str | None = None,
    overwrite: bool = False,
    probabilities: bool = False,
    accepted_only: bool = False,
    neighbours: int = 0,
    explain: Place | None = None,
    explain_photos: int = 200,
    tfds_dir: Place | None = None,
    batch_size: int = 64,
    session: Session | None = None,
) -> pa.Table:
    """Label photos with an exported model, write the predictions to `out` (.parquet or .csv), and return them.

    Each photo has one row: path, label, probability, familiarity, accepted, top_3 (JSON), and error if it could not be read.
    An older model leaves familiarity and accepted empty. With `accepted_only`, photos whose answer is not accepted are left
    out. With `neighbours`, a column of this name has so many of the most similar training photos (JSON); `model` must be
    in the output of its run then. With `probabilities`, a column `probability:NAME` for each class follows. `batch_size` is
    the number of photos in one forward pass. A model is code: its graph can read and write files as the user of this
    process. With `model_sha256`, the SHA-256 of its model.json, only that model is loaded. With `overwrite`, `out` may
    replace a file that predict did not write.

    `explain` is a folder for a PNG with the heatmap of each photo and a table of them, heatmaps.csv, or the name of an HTML
    page. Only the first `explain_photos` photos are explained.

    Raises:
        UsageError: if there is no such model, it cannot give what is asked for, or `out` or `explain` must not be written.
            This is checked before any photo is read.
        DataUnusable: if there is not a single photo.
        StorageFailed, Stopped.
    """
    from job.serving.predict import Wanted
    from job.serving.predict import predict as label_photos

    session = session or Session()
    wanted = Wanted(probabilities, accepted_only, neighbours, checked_place("--explain", explain), explain_photos)
    return label_photos(
        checked_place("--model", model),
        checked_place("--data", data),
        checked_place("--out", out),
        wanted,
        tfds_dir=checked_place("--tfds-dir", tfds_dir),
        batch_size=batch_size,
        telemetry=Telemetry(None),
        stop=session.stop,
        model_sha256=model_sha256,
        overwrite=overwrite,
    )


def compare(*runs: Place, out: Place | None = None) -> "Comparison":
    """Compare finished runs on the test photos that they share. `runs` are outputs, each a folder or a prefix of a bucket.

    Runs that differ only by seed are one group; the other groups are compared with that of the first run. With `out`, an
    HTML page is written, which may replace only a page that compare wrote.

    Raises:
        UsageError: if a run is not finished or cannot be read, if they share no photo, or if `out` must not be written.
        StorageFailed.
    """
    from job.comparing.compare import compare as compare_runs

    return compare_runs([checked_place("RUN", run) for run in runs], checked_place("--out", out))


def report(out: Place, *, session: Session | None = None) -> Result:
    """Write the report of a run again, from the files that its stages have left.

    Raises:
        UsageError: `out` is not the output of a run, or holds results of several runs or versions.
        TryAgainLater, StorageFailed.
    """
    from job.stages.report import report as draw

    session = session or Session()
    workdir = output.existing_workdir(checked_place("--out", out))
    with context_for(workdir, Config(), session) as context, output.owned(context, session):
        described, made = _finished(workdir)
        settings = Config.model_validate(described["config"])
        publishing.finish(workdir)
        described["config"] = settings.model_dump(mode="json")  # With the settings that are newer than the run.
        draw(settings.report, run=described, timings=Records(workdir).timings(made), context=context)
        publishing.publish(workdir, [*made, "report"])
        return Result(workdir, [f"Report: {workdir.shown(f'{publishing.place(workdir)}report.html')}"])


def export(out: Place, formats: Sequence[str], *, session: Session | None = None) -> Result:
    """Add formats (`onnx`, `litert`, `litert-int8`) to the published model of a finished run, and compare them.

    Nothing is trained again, and the photos of the run are not needed: the held-out ones are taken from its store. Formats
    that the model has already stay. run.json then lists all of them.

    Raises:
        UsageError: `out` is not the output of a run that has exported a model, or packages are missing.
        GateNotMet: a format disagrees with what was measured, and is not published.
        TryAgainLater, StorageFailed, Stopped.
    """
    from job.pipeline.run import bring_up_to_date
    from job.pipeline.settings import settings_digest

    session = session or Session()
    workdir = output.existing_workdir(checked_place("--out", out))
    with context_for(workdir, Config(), session) as context, output.owned(context, session):
        publishing.finish(workdir)
        described, made = _finished(workdir)
        if "export" not in made or publishing.place(workdir):
            raise UsageError(f"{out}: the last run there has exported no model. Give the --out of a run that has.")
        given = dict(with_dotted_names(described["config"]))
        before = Config.model_validate(described["config"]).export.formats
        settings = Config.load(None, (), given | {"export.formats": (*before, *formats)})
        require(settings.export.formats)
        job = Job(settings, None, replace(context, caching=settings.cache), labels=described["labels"])
        job.done = [name for name in made if name not in ("convert", "report")]
        described["config"] = settings.model_dump(mode="json")
        described["settings_of_stages"]["convert"] = settings_digest("convert", settings)
        write_run(workdir, described)
        with closing(job.context.cache) as cache:
            cache.claim()
            bring_up_to_date(job, "convert", "report")
        publishing.publish(workdir, job.done)
        results.raise_if_formats_disagree(job)
        return Result(workdir, results.headline(job))


def lay_out(out: Place, base: Place) -> str:
    """Copy the model of a finished run as the next version below `base`, as TensorFlow Serving expects it.

    `base` is a folder or a prefix of a bucket, and its name is that of the model. What is there already is never changed.
    Return the place of the version.

    Raises:
        UsageError: `out` is not the output of a run that has exported a model, or `base` is inside of it.
        StorageFailed.
    """
    from job.serving.folder import is_below
    from job.serving.tensorflow_serving import lay_out as copy

    model, place = checked_place("--out", out), checked_place("--to serving", base)
    if is_below(place, model):
        raise UsageError(f"--to serving {place}: it is inside of {model}, where only the run writes. Give another folder.")
    return copy(model, place)


def _finished(workdir: Workdir) -> tuple[Run, list[str]]:
    """Return run.json, and the stages that were made with its settings, without report. Raises: UsageError."""
    described, records = read_run(workdir), Records(workdir)
    if described is None:
        raise UsageError(f"{workdir.shown('run.json')} is missing or damaged. Give the --out of a run, or run it again.")
    made = [name for name in records.made_with(described["settings_of_stages"]) if name != "report"]
    if mixed := records.contradictions(made):
        raise UsageError(
            f"{workdir.uri} holds results that do not belong together:",
            *(f"  {line}" for line in mixed),
            "Run the job on it again to repair this.",
        )
    return described, made
