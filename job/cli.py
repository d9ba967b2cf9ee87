"""The command line: thin commands over the pipeline, and the only translator of errors into exit codes."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from job import __version__
from job.console.places import place
from job.console.terminal import end, say
from job.errors import OF_STORAGE, JobError, UsageError
from job.pipeline.table import STAGES
from job.runtime.stop import STOP
from job.text.untrusted import escaped

# No import of the pipeline up here: `--help` must not wait for pydantic, pyarrow or TensorFlow.

Command = TypeVar("Command", bound=Callable[..., Any])


class _Translating(click.Group):
    """Errors written for users become their message and their exit code; anything else is a bug with a traceback."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run the program and leave with its exit code."""
        try:
            return super().main(*arguments, **settings)
        except JobError as error:
            end(error)
        except OSError as error:  # From a library that writes where nobody thought of it.
            if error.errno not in OF_STORAGE:
                raise
            from job.storage.files import storage_failed

            end(storage_failed(error, Path(error.filename or ".")))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # It may repeat names that a pattern of the shell stood for.
            raise click.UsageError(escaped(error.format_message()), error.ctx) from None


class _Place(click.ParamType[str]):
    """A path, with `~` expanded, or the URI of something elsewhere."""

    name = "path"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """Return the value as the program takes it. Raises: UsageError, OSError."""
        return place(param.opts[0] if param else "", value)


class _File(_Place):
    """A path on this machine, with `~` expanded."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # type: ignore[override]
        """Return the value as the program takes it. Raises: UsageError, OSError."""
        return Path(super().convert(value, param, ctx))


_PLACE = _Place()


@click.group(cls=_Translating, context_settings={"max_content_width": 120})
@click.version_option(__version__, prog_name="transfer-job")
def main() -> None:
    """Turn labelled photos into an image classifier: look at the data, train, measure, export, report.

    \b
    Exit codes: 0 done, 1 a bug, 2 usage or configuration, 3 not good enough to ship, 65 the data cannot be used,
    70 training diverged, 74 storage failed, 75 try again later, 143 stopped by a signal (run it again to go on).
    """
    _check_surroundings()


@dataclass(frozen=True)
class _Call:
    """What every command that works on photos is told."""

    data: str
    labels: str | None
    out: str
    config_file: Path | None
    assignments: tuple[str, ...]
    weights: str | None
    tfds_dir: str | None

    @property
    def flags(self) -> dict[str, str | None]:
        """Options that stand for a key of the configuration."""
        return {"backbone.weights": self.weights, "intake.tfds_dir": self.tfds_dir}


def _with_run_options(command: Command) -> Command:
    """The options of `_Call`, which the command gets as its first argument."""

    options = (
        click.option(
            "--data",
            required=True,
            metavar="SOURCE",
            type=_PLACE,
            help="Folder of class folders, or of train/, val/ and test/ with them; or a table of path,label[,split]; here "
            "or as gs://BUCKET/PREFIX or s3://BUCKET/PREFIX; or tfds:NAME[:VERSION].",
        ),
        click.option(
            "--labels",
            metavar="FILE",
            type=_PLACE,
            help="Table of path,label[,split] (.csv, .tsv, .parquet) for the photos below --data.",
        ),
        click.option(
            "--out",
            required=True,
            metavar="DIR",
            type=_PLACE,
            help="Folder, or gs:// or s3:// prefix, for everything; a second run goes on where the first stopped.",
        ),
        click.option(
            "--config",
            "config_file",
            type=_File(),
            help="TOML file; docs/configuration.md has every key.",
        ),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Set one key, over the file. Repeatable.",
        ),
        click.option(
            "--weights",
            metavar="imagenet|random|FILE",
            type=_PLACE,
            help="Backbone weights; the same as --set backbone.weights=...",
        ),
        click.option(
            "--tfds-dir",
            metavar="DIR",
            type=_PLACE,
            help="Folder or bucket of prepared tensorflow-datasets; the same as --set intake.tfds_dir=...",
        ),
    )

    @wraps(command)
    def called(**given: Any) -> Any:
        call = _Call(**{field.name: given.pop(field.name) for field in fields(_Call)})
        return command(call, **given)

    for option in reversed(options):
        called = option(called)
    return called  # type: ignore[return-value]


@main.command()
@_with_run_options
@click.option(
    "--stop-after",
    type=click.Choice(tuple(STAGES)),
    help="Leave out the stages behind this one (the report is drawn from explore on).",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and which stages would run, and why.")
def run(call: _Call, stop_after: str | None, dry_run: bool) -> None:
    """Run the whole job: intake, split, explore, extract, audit, head, fine_tune, evaluate, export, report."""
    work = _dry_run if dry_run else _run
    work(call, _config(call), stop_after)


@main.command()
@_with_run_options
def explore(call: _Call) -> None:
    """Only look at the data: the same as run --stop-after explore."""
    _run(call, _config(call), "explore")


@main.command()
@_with_run_options
@click.option(
    "--backbones",
    required=True,
    multiple=True,
    metavar="LIST",
    help="NAME[:alpha=A][:weights=imagenet|random|FILE][:image_size=S], separated by commas. Repeatable.",
)
@click.option(
    "--image-size",
    "image_sizes",
    multiple=True,
    metavar="PIXELS",
    help="Try each backbone without a size of its own at this size, or at each of 96,160,224. Repeatable.",
)
def rank(call: _Call, backbones: tuple[str, ...], image_sizes: tuple[str, ...]) -> None:
    """Which backbone? Probe several on features, one pass each: a table and a plot of accuracy against cost."""
    from job.pipeline import output
    from job.rank.candidates import candidates
    from job.rank.rank import rank as rank_candidates

    _refuse_credentials(*(part.partition("weights=")[2] for listed in backbones for part in listed.split(",")))
    config = _loaded(call)
    workdir = _workdir(call, config)
    found = candidates(backbones, image_sizes, config, workdir.shown("cache"))
    with _context(workdir, config) as context, output.owned(context, call.config_file):
        lines = rank_candidates(
            found,
            call.data,
            labels=call.labels,
            config_file=call.config_file,
            assignments=call.assignments,
            context=context,
        )
        say(*lines)


@main.command()
@click.option(
    "--model",
    required=True,
    metavar="DIR",
    type=_PLACE,
    help="The model/ folder of a run, or its URI in a bucket. It is code: give only models that you trust.",
)
@click.option(
    "--model-sha256",
    metavar="HEX",
    help="SHA-256 of the model's model.json, as its run printed it. Any other model is refused before its graph is loaded.",
)
@click.option(
    "--data",
    required=True,
    metavar="SOURCE",
    type=_PLACE,
    help="Folder (every file below is looked at), or a table of paths.",
)
@click.option("--out", required=True, metavar="FILE", type=_PLACE, help="A .parquet or .csv file, or its URI in a bucket.")
@click.option("--overwrite", is_flag=True, help="Let --out replace a file that predict did not write.")
@click.option(
    "--tfds-dir",
    metavar="DIR",
    type=_PLACE,
    help="Folder or bucket of prepared tensorflow-datasets, for --data tfds:NAME.",
)
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Photos in one forward pass.")
def predict(model: str, data: str, out: str, **options: Any) -> None:
    """Label photos with an exported model: path, label, probability, the three best, and what could not be read.

    A model is code: its graph can read and write files as the user who runs this. docs/security.md says how to be sure
    that it is the one that was exported.
    """
    from job.serving.predict import predict as predict_photos

    _refuse_credentials(model, data, out, options["tfds_dir"])
    with _context() as context:
        say(predict_photos(model, data, out, context=context, **options))


@main.command()
@click.argument("directory", metavar="DIR", type=_PLACE)
def report(directory: str) -> None:
    """Draw the page of a run again from its artifacts, DIR/report.html."""
    from job.config import Config
    from job.pipeline import publishing
    from job.pipeline.output import existing_workdir, owned
    from job.pipeline.records import Records, read_run
    from job.stages.report import report as draw_report

    with _context(existing_workdir(directory)) as context, owned(context):
        described = read_run(context.workdir)
        if described is None:
            raise UsageError(
                f"{directory}/run.json is missing or damaged. Give the --out of a run, or run the job on it again."
            )
        records = Records(context.workdir)
        made = [name for name in records.made_with(described["settings_of_stages"]) if name != "report"]
        if mixed := records.contradictions(made):
            raise UsageError(
                f"{directory} holds a mix of results:",
                *(f"  {line}" for line in mixed),
                "Run the job on it again, and it puts that right.",
            )
        config = Config.model_validate(described["config"])
        draw_report(config.report, run=described, timings=records.timings(made), context=context)
        publishing.publish(context.workdir, [*made, "report"])
        say(f"Report: {context.workdir.shown(f'{publishing.place(context.workdir)}report.html')}")


@main.command()
@click.option(
    "--out",
    default="demo-run",
    show_default=True,
    metavar="DIR",
    type=_PLACE,
    help="Where the pictures and the run go.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Decides the pictures and the run.")
def demo(out: str, seed: int) -> None:
    """The whole job on pictures that it draws itself, without any network, in about a minute."""
    from job.cluster.environment import Cluster
    from job.demo import demo as drawn
    from job.pipeline import output
    from job.storage.bucket.objects import is_remote

    if Cluster.from_environ(os.environ).num_workers > 1:
        raise UsageError("The demo is for one worker: they would all draw its pictures. Use run on a folder of photos.")
    _refuse_credentials(out)
    if is_remote(out):
        raise UsageError(f"--out {out}: the demo draws its pictures into a folder of this machine; give one.")
    with _context(output.make_workdir(out), logs=False) as context, output.owned(context):
        data = drawn.draw_photos(context.workdir, seed)
    _run(_Call(str(data), None, str(Path(out) / "run"), None, (), None, None), drawn.config(seed), None)


def _check_surroundings() -> None:
    """Refuse to start where nothing can work. Raises: UsageError."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise UsageError(
            "The current folder was deleted. Change to one that exists (cd), and type the command again."
        ) from None


def _refuse_credentials(*uris: str | None) -> None:
    """Before anything can repeat them, in an error or in what a run writes down."""
    from job.storage.bucket.objects import is_remote, parts_of

    for uri in uris:
        if uri and is_remote(uri):
            parts_of(uri)


def _loaded(call: _Call) -> Any:
    from job.config import Config

    assigned = (assignment.partition("=")[2].strip("\"' ") for assignment in call.assignments)
    _refuse_credentials(call.data, call.labels, call.out, call.weights, call.tfds_dir, *assigned)
    config = Config.load(call.config_file, call.assignments, call.flags)
    _refuse_credentials(config.backbone.weights, config.intake.tfds_dir, config.cache.dir)
    return config


def _config(call: _Call) -> Any:
    from job.model import backbones

    config = _loaded(call)
    mistakes = backbones.check(config.backbone)
    if mistakes:
        raise UsageError("The configuration has mistakes:", *(f"  {m}" for m in mistakes))
    return config


@contextmanager
def _context(workdir: Any = None, config: Any = None, *, logs: bool = True) -> Iterator[Any]:
    from job.config import Config
    from job.runtime.context import Context
    from job.runtime.telemetry import Telemetry
    from job.storage.workdir import Workdir

    config = config or Config()
    STOP.grace_s = config.checkpoint.grace_s
    telemetry = Telemetry(workdir.path("logs") if workdir and logs else None)
    try:
        yield Context(workdir or Workdir(Path()), telemetry, config.seed, STOP, config.cache, config.checkpoint)
    finally:
        telemetry.close()


def _workdir(call: _Call, config: Any, worker: int = 0) -> Any:
    """Return the output directory, refused where it and the inputs do not go together."""
    from job.pipeline import output

    folders, files = [config.intake.tfds_dir], [call.labels, str(call.config_file or "") or None]
    if config.backbone.weights not in ("imagenet", "random"):
        files.append(config.backbone.weights)
    if not call.data.startswith("tfds:"):
        (files if Path(call.data).is_file() or output.is_table(call.data) else folders).append(call.data)
    if config.cache.dir:
        output.refuse_nested(config.cache.dir, "cache.dir", [call.data])
    return output.make_workdir(call.out, folders=folders, files=files, worker=worker)


def _run(call: _Call, config: Any, stop_after: str | None) -> None:
    from job.cluster.environment import Cluster
    from job.pipeline import results, run, team
    from job.pipeline.job import Job
    from job.pipeline.provenance import program

    cluster = Cluster.from_environ(os.environ)
    workdir = _workdir(call, config, cluster.index)
    with _context(workdir, config, logs=cluster.is_chief) as context:
        context.telemetry.line(str(cluster))
        command = [*shlex.split(program()), *sys.argv[1:]]
        job = Job(config, call.data, context, command, labels=call.labels, cluster=cluster)
        if cluster.is_chief:
            run.run(job, stop_after, call.config_file)
            say(*results.headline(job))
        else:
            team.assist(job, stop_after)


def _dry_run(call: _Call, config: Any, stop_after: str | None) -> None:
    from job.config import as_toml
    from job.model.network import Network
    from job.pipeline import output, plan
    from job.pipeline.job import Job
    from job.runtime.context import Context
    from job.runtime.telemetry import Telemetry

    given = _workdir(call, config)
    output.check(Context(given, Telemetry(None), caching=config.cache), call.config_file)
    with output.looked_at(given) as workdir:
        context = Context(workdir, Telemetry(None), config.seed, caching=config.cache)
        job = Job(config, call.data, context, labels=call.labels)
        say(*as_toml(config).split("\n"))
        steps = plan.plan(job, stop_after)
    for step in steps:
        say(f"{step.stage:<10} {'runs' if step.runs else 'skipped'}: {step.reason}")
    if any(step.stage == "extract" and step.runs for step in steps):
        backbone = config.backbone
        if backbone.weights == "imagenet":  # They may have to be downloaded, and the plan needs no more than the layers.
            backbone = backbone.model_copy(update={"weights": "random"})
        point = Network(backbone, config.intake.image_size, job.devices, seed=config.seed).cut_point
        cut = (
            f"cut after {point.name}, {point.share_above:.0%} of the multiply-adds are fine-tuned; "
            f"at most {point.values_per_view * 2:,} bytes stored for each view"
            if point
            else "nothing is fine-tuned"
        )
        say(f"{config.backbone.name}: {cut}.")
