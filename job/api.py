"""The commands as functions. The command line (`cli.py`) is thin over them, and `import job` gives them to Python.

Nothing here reads `sys.argv` or the environment, installs a signal handler, or ends the process: what the command line knows
beside its options is in a `Session`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, overload

import pyarrow as pa

from job.cluster.environment import Cluster
from job.config import NAMED_WEIGHTS, PLACES, Config, with_dotted_names
from job.console.places import place
from job.errors import UsageError
from job.pipeline import output, publishing, quality, results
from job.pipeline.job import Job
from job.pipeline.plan import Step, wanted
from job.pipeline.plan import plan as plan_of
from job.pipeline.records import Records, read_run, write_run
from job.pipeline.results import Ranking, Result
from job.preflight.base import Finding, Planned
from job.preflight.checks import examine
from job.reporting.summaries import Run
from job.runtime.context import Context
from job.runtime.session import Session
from job.runtime.telemetry import Telemetry
from job.serving.formats.table import require
from job.sources.base import Source
from job.sources.open import open_source
from job.storage.bucket.objects import is_remote, refuse_credentials
from job.storage.workdir import Workdir

if TYPE_CHECKING:
    from job.comparing.compare import Comparison

Settings = Config | Mapping[str, object] | str | os.PathLike[str] | None
Place = str | os.PathLike[str]


def run(
    data: Place,
    out: Place,
    *,
    config: Settings = None,
    labels: Place | None = None,
    stop_after: str | None = None,
    session: Session | None = None,
) -> Result:
    """Run the whole job, or resume an earlier run in `out`.

    `data` and `labels` are what --data and --labels take, `out` a folder or a prefix of a bucket. `config` is a
    configuration, a TOML file, or a mapping of settings with dotted names (`{"fine_tune.epochs": 20}`) or sections. With
    `stop_after`, later stages are left out.

    Raises:
        UsageError, DataUnusable, GateNotMet, Diverged, StorageFailed, TryAgainLater, Stopped: what the exit codes 2, 65, 3,
            70, 74, 75 and 143 of the command line mean.
    """
    from job.pipeline import run as runs
    from job.pipeline import team

    session = session or Session()
    settings = _config(config)
    if "convert" in wanted(stop_after):
        require(settings.export.formats)
    cluster = Cluster.from_environ(session.environ)
    workdir = _workdir(data, out, labels, settings, session, cluster.index)
    with _context(workdir, settings, session, logs=cluster.is_chief) as context:
        context.telemetry.line(str(cluster))
        job = _job(settings, data, labels, context, cluster)
        if cluster.is_chief:
            runs.run(job, stop_after, session, session.command or _as_python(data, out, config, labels, stop_after))
            return Result(workdir, results.headline(job))
        team.assist(job, stop_after)
        return Result(workdir, ())


def explore(
    data: Place, out: Place, *, config: Settings = None, labels: Place | None = None, session: Session | None = None
) -> Result:
    """Check the data without training: run the stages up to explore. Needs no TensorFlow. Raises as `run` does."""
    return run(data, out, config=config, labels=labels, stop_after="explore", session=session)


def plan(
    data: Place,
    out: Place,
    *,
    config: Settings = None,
    labels: Place | None = None,
    stop_after: str | None = None,
    session: Session | None = None,
) -> list[Step]:
    """Return which stages `run` would run, and why. Writes nothing, and downloads no weights. Raises as `run` does."""
    session = session or Session()
    settings = _config(config)
    Cluster.from_environ(session.environ)  # It raises if they are wrong.
    given = _workdir(data, out, labels, settings, session)
    output.check(Context(given, Telemetry(None), caching=settings.cache), session)
    with given.glance() as workdir:
        context = Context(workdir, Telemetry(None), settings.seed, caching=settings.cache)
        job = _job(settings, data, labels, context)
        if job.budget:
            quality.resume(job, job.budget)
        return plan_of(job, stop_after)


def doctor(
    data: Place, out: Place, *, config: Settings = None, labels: Place | None = None, session: Session | None = None
) -> Iterator[Finding]:
    """Check what `run` needs, without running. Yield what each check finds. Leaves nothing in `out`, and keeps weights.

    Raises:
        UsageError: if the configuration, or the variables of the scheduler, are wrong. Other errors are findings.
        Stopped.
    """
    session = session or Session()
    settings = _config(config)
    cluster = Cluster.from_environ(session.environ)

    def workdir() -> Workdir:
        found = _workdir(data, out, labels, settings, session, cluster.index)
        found.check(session)
        return found

    yield from examine(Planned(settings, cluster, session.stop, workdir, lambda: _source(settings, data, labels)))


def rank(
    data: Place,
    out: Place,
    backbones: Sequence[str],
    *,
    image_sizes: Sequence[int | str] = (),
    config: Settings = None,
    labels: Place | None = None,
    fine_tune: bool = False,
    session: Session | None = None,
) -> Ranking:
    """Compare backbones on stored features, one pass over the photos for each, or after brief fine-tuning (`fine_tune`).

    `backbones` are names of docs/backbones.md, each with `:alpha=A`, `:weights=W` or `:image_size=S` added if wanted.
    A backbone without a size of its own is tried at each of `image_sizes`, in pixels.

    Raises:
        UsageError, DataUnusable, StorageFailed, Diverged: if no backbone at all could be ranked.
    """
    from job.ranking.candidates import candidates, recommended
    from job.ranking.rank import rank as rank_candidates

    session = session or Session()
    for part in (part for listed in backbones for part in listed.split(",")):
        refuse_credentials(part.partition("weights=")[2])
    settings = _config(config, checks_backbone=False)
    workdir = _workdir(data, out, labels, settings, session)
    sizes = [str(size) for size in image_sizes]
    found = candidates(backbones, sizes, settings, workdir.shown("cache"), fine_tune=fine_tune)
    with _context(workdir, settings, session) as context, output.owned(context, session, dict):
        lines = rank_candidates(
            found,
            _place("--data", data),
            labels=_place("--labels", labels),
            config_file=session.config_file,
            assignments=session.assignments,
            context=context,
        )
        numbers = workdir.read_json("rank.json")
    chosen = next(candidate for candidate in found if candidate.folder == numbers["recommended"])
    return Ranking(numbers["candidates"], recommended(settings, chosen), workdir.path("rank.svg"), lines, workdir)


def predict(
    model: Place,
    data: Place,
    out: Place,
    *,
    model_sha256: str | None = None,
    overwrite: bool = False,
    probabilities: bool = False,
    tfds_dir: Place | None = None,
    batch_size: int = 64,
    session: Session | None = None,
) -> pa.Table:
    """Label photos with an exported model, write the predictions to `out` (.parquet or .csv), and return them.

    Each photo has one row: path, label, probability, top_3 (JSON), and error if it could not be read. With `probabilities`,
    a column `probability:NAME` for each class follows. `batch_size` is the number of photos in one forward pass. A model is
    code: its graph can read and write files as the user of this process. With `model_sha256`, the SHA-256 of its model.json,
    only that model is loaded. With `overwrite`, `out` may replace a file that predict did not write.

    Raises:
        UsageError: if there is no such model, or `out` must not be written. This is checked before any photo is read.
        DataUnusable: if there is not a single photo.
        StorageFailed, Stopped.
    """
    from job.serving.predict import predict as label_photos

    session = session or Session()
    refuse_credentials(model, data, out, tfds_dir)
    return label_photos(
        _place("--model", model),
        _place("--data", data),
        _place("--out", out),
        tfds_dir=_place("--tfds-dir", tfds_dir),
        batch_size=batch_size,
        telemetry=Telemetry(None),
        stop=session.stop,
        model_sha256=model_sha256,
        overwrite=overwrite,
        probabilities=probabilities,
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

    refuse_credentials(*runs)
    return compare_runs([_place("RUN", run) for run in runs], _place("--out", out))


def report(out: Place, *, session: Session | None = None) -> Result:
    """Write the report of a run again, from the files that its stages have left.

    Raises:
        UsageError: `out` is not the output of a run, or holds results of several runs or versions.
        TryAgainLater, StorageFailed.
    """
    from job.stages.report import report as draw

    session = session or Session()
    refuse_credentials(out)
    workdir = output.existing_workdir(_place("--out", out))
    with _context(workdir, Config(), session) as context, output.owned(context, session):
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
    refuse_credentials(out)
    workdir = output.existing_workdir(_place("--out", out))
    with _context(workdir, Config(), session) as context, output.owned(context, session):
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

    refuse_credentials(out, base)
    model, place = _place("--out", out), _place("--to serving", base)
    if is_below(place, model):
        raise UsageError(f"--to serving {place}: it is inside of {model}, where only the run writes. Give another folder.")
    return copy(model, place)


def _finished(workdir: Workdir) -> tuple[Run, list[str]]:
    """Return run.json, and the stages that were made with its settings, without report.

    Raises:
        UsageError: if it is missing, or the directory holds results of several runs or versions.
    """
    described, records = read_run(workdir), Records(workdir)
    if described is None:
        raise UsageError(
            f"{workdir.shown('run.json')} is missing or damaged. Give the --out of a run, or run the job again."
        )
    made = [name for name in records.made_with(described["settings_of_stages"]) if name != "report"]
    if mixed := records.contradictions(made):
        raise UsageError(
            f"{workdir.uri} holds results that do not belong together:",
            *(f"  {line}" for line in mixed),
            "Run the job on it again to repair this.",
        )
    return described, made


def demo(out: Place, *, seed: int = 0, session: Session | None = None) -> Result:
    """Draw pictures in `out`, a folder on this machine, and run the whole job on them. Raises as `run` does."""
    from job.demo import demo as drawn

    session = session or Session()
    if Cluster.from_environ(session.environ).num_workers > 1:
        raise UsageError(
            "The demo works with one worker only: several would draw the same pictures. Use run on a folder of photos."
        )
    refuse_credentials(out)
    if is_remote(os.fspath(out)):
        raise UsageError(f"--out {out}: the demo draws its pictures into a folder on this machine. Give one.")
    workdir = output.make_workdir(_place("--out", out))
    with _context(workdir, Config(), session, logs=False) as context, output.owned(context, session):
        data = drawn.draw_photos(context.workdir, seed)
    return run(data, workdir.path("run"), config=drawn.config(seed), session=session)


def _config(given: Settings, *, checks_backbone: bool = True) -> Config:
    from job.model import backbones

    if isinstance(given, Config):
        config = given
    elif isinstance(given, Mapping):
        config = Config.load(None, (), dict(with_dotted_names(given)))
    else:
        config = Config.load(None if given is None else Path(place("config", os.fspath(given))))
    for name in PLACES:
        path: str | None = attrgetter(name)(config)
        _place(name, path)  # A configuration made in Python was not checked yet.
        refuse_credentials(path)
    if checks_backbone and (mistakes := backbones.check(config.backbone)):
        raise UsageError("The configuration has mistakes:", *(f"  {mistake}" for mistake in mistakes))
    return config


@contextmanager
def _context(workdir: Workdir, config: Config, session: Session, *, logs: bool = True) -> Iterator[Context]:
    session.stop.grace_s = config.checkpoint.grace_s
    telemetry = Telemetry(workdir.path("logs") if logs else None, run_id=session.run_id)
    try:
        yield Context(workdir, telemetry, config.seed, session.stop, config.cache, config.checkpoint)
    finally:
        telemetry.close()


def _workdir(data: Place, out: Place, labels: Place | None, config: Config, session: Session, worker: int = 0) -> Workdir:
    """Return the output directory. Raises: UsageError, if it overlaps with an input."""
    refuse_credentials(data, labels, out)
    source = _place("--data", data)
    folders, files = (
        [config.intake.tfds_dir, *config.intake.link_roots],
        [_place("--labels", labels), config.intake.corrections, str(session.config_file or "") or None],
    )
    if config.backbone.weights not in NAMED_WEIGHTS:
        files.append(config.backbone.weights)
    if not source.startswith("tfds:"):
        (files if Path(source).is_file() or output.is_table(source) else folders).append(source)
    if config.cache.dir:
        output.refuse_nested(config.cache.dir, "cache.dir", [source])
    return output.make_workdir(_place("--out", out), folders=folders, files=files, worker=worker)


def _job(config: Config, data: Place, labels: Place | None, context: Context, cluster: Cluster | None = None) -> Job:
    return Job(config, _source(config, data, labels), context, labels=_place("--labels", labels), cluster=cluster)


def _source(config: Config, data: Place, labels: Place | None) -> Source:
    return open_source(_place("--data", data), _place("--labels", labels), settings=config.intake)


@overload
def _place(option: str, given: Place) -> str: ...
@overload
def _place(option: str, given: Place | None) -> str | None: ...
def _place(option: str, given: Place | None) -> str | None:
    """Return a path or URI as text, as `place` does; None stays None. Raises: UsageError, OSError."""
    return given if given is None else place(option, os.fspath(given))


def _as_python(*call: object) -> list[str]:
    data, out, config, labels, stop_after = call
    more = {"config": config, "labels": labels, "stop_after": stop_after}
    return [f"job.run({data!r}, {out!r}{''.join(f', {k}={v!r}' for k, v in more.items() if v is not None)})"]
