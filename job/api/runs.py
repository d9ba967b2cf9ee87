"""Commands that take photos, and work on them or say what they would do."""

from collections.abc import Iterator, Sequence

from job.api.opening import Place, Settings, as_python, checked_place, config_of, context_for, job_of, source_of, workdir_for
from job.cluster.environment import Cluster
from job.config import Config
from job.errors import UsageError
from job.pipeline import output, quality, results
from job.pipeline.plan import Step, wanted
from job.pipeline.plan import plan as plan_of
from job.pipeline.results import Ranking, Result
from job.preflight.base import Finding, Planned
from job.preflight.checks import examine
from job.runtime.context import Context
from job.runtime.session import Session
from job.runtime.telemetry import Telemetry
from job.serving.formats.table import require
from job.storage.bucket.objects import is_remote, refuse_credentials
from job.storage.workdir import Workdir


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
    settings = config_of(config)
    if "convert" in wanted(stop_after):
        require(settings.export.formats)
    cluster = Cluster.from_environ(session.environ)
    workdir = workdir_for(data, out, labels, settings, session, cluster.index)
    with context_for(workdir, settings, session, logs=cluster.is_chief) as context:
        job = job_of(settings, data, labels, context, cluster)
        if cluster.is_chief:
            runs.run(job, stop_after, session, session.command or as_python(data, out, config, labels, stop_after))
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
    settings = config_of(config)
    Cluster.from_environ(session.environ)  # It raises if they are wrong.
    given = workdir_for(data, out, labels, settings, session)
    output.check(Context(given, Telemetry(None), caching=settings.cache), session)
    with given.glance() as workdir:
        context = Context(workdir, Telemetry(None), settings.seed, caching=settings.cache)
        job = job_of(settings, data, labels, context)
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
    settings = config_of(config)
    cluster = Cluster.from_environ(session.environ)

    def workdir() -> Workdir:
        found = workdir_for(data, out, labels, settings, session, cluster.index)
        found.check(session)
        return found

    yield from examine(Planned(settings, cluster, session.stop, workdir, lambda: source_of(settings, data, labels)))


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
    settings = config_of(config, checks_backbone=False)
    workdir = workdir_for(data, out, labels, settings, session)
    sizes = [str(size) for size in image_sizes]
    found = candidates(backbones, sizes, settings, workdir.shown("cache"), fine_tune=fine_tune)
    with context_for(workdir, settings, session) as context, output.owned(context, session, dict):
        lines = rank_candidates(
            found,
            checked_place("--data", data),
            labels=checked_place("--labels", labels),
            config_file=session.config_file,
            assignments=session.assignments,
            context=context,
        )
        numbers = workdir.read_json("rank.json")
    chosen = next(candidate for candidate in found if candidate.folder == numbers["recommended"])
    return Ranking(numbers["candidates"], recommended(settings, chosen), workdir.path("rank.svg"), lines, workdir)


def demo(out: Place, *, seed: int = 0, session: Session | None = None) -> Result:
    """Draw pictures in `out`, a folder on this machine, and run the whole job on them. Raises as `run` does."""
    from job.demo import demo as drawn

    session = session or Session()
    if Cluster.from_environ(session.environ).num_workers > 1:
        raise UsageError(
            "The demo works with one worker only: several would draw the same pictures. Use run on a folder of photos."
        )
    folder = checked_place("--out", out)
    if is_remote(folder):
        raise UsageError(f"--out {folder}: the demo draws its pictures into a folder on this machine. Give one.")
    workdir = output.make_workdir(folder)
    with context_for(workdir, Config(), session, logs=False) as context, output.owned(context, session):
        data = drawn.draw_photos(context.workdir, seed)
    return run(data, workdir.path("run"), config=drawn.config(seed), session=session)
