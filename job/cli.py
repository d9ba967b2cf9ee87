"""The command line: thin commands over `job.api`, and the only place where errors become exit codes."""

import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from job.console.places import place
from job.console.terminal import end, say
from job.errors import OF_STORAGE, JobError, StorageFailed, UsageError
from job.pipeline.table import STAGES
from job.runtime.stop import STOP
from job.text.untrusted import escaped
from job.version import __version__

if TYPE_CHECKING:
    from job.api import Session
    from job.config import Config

# `job.api` is imported inside the commands: `--help` must not wait for pydantic, pyarrow or TensorFlow.

Command = TypeVar("Command", bound=Callable[..., object])


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
            end(_of_storage(error))

    def invoke(self, ctx: click.Context) -> object:
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
    """The options that every command on photos has."""

    data: str
    labels: str | None
    out: str
    config_file: Path | None
    assignments: tuple[str, ...]
    weights: str | None
    tfds_dir: str | None

    def config(self) -> "Config":
        """Return the configuration: the file, then --set, then options that stand for a setting. Raises: UsageError."""
        from job.config import Config
        from job.storage.bucket.objects import refuse_credentials

        assigned = (assignment.partition("=")[2].strip("\"' ") for assignment in self.assignments)
        refuse_credentials(self.data, self.labels, self.out, self.weights, self.tfds_dir, *assigned)
        flags = {"backbone.weights": self.weights, "intake.tfds_dir": self.tfds_dir}
        return Config.load(self.config_file, self.assignments, flags)


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
    def called(**given: Any) -> object:
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
    if dry_run:
        _dry_run(call, stop_after)
    else:
        _run(call, stop_after)


@main.command()
@_with_run_options
def explore(call: _Call) -> None:
    """Only look at the data: the same as run --stop-after explore."""
    _run(call, "explore")


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
    from job import api

    ranking = api.rank(
        call.data,
        call.out,
        backbones,
        image_sizes=image_sizes,
        config=call.config(),
        labels=call.labels,
        session=_session(call),
    )
    say(*ranking.lines)


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
    from job import api

    errors = api.predict(model, data, out, session=_session(), **options)["error"].to_pylist()
    failed = sum(map(bool, errors))
    say(f"{len(errors) - failed:,} photos labelled, {failed:,} could not be read: {out}")


@main.command()
@click.argument("directory", metavar="DIR", type=_PLACE)
def report(directory: str) -> None:
    """Draw the page of a run again from its artifacts, DIR/report.html."""
    from job import api

    say(*api.report(directory, session=_session()).lines)


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
    from job import api

    say(*api.demo(out, seed=seed, session=_session()).lines)


def _run(call: _Call, stop_after: str | None) -> None:
    from job import api

    result = api.run(
        call.data, call.out, config=call.config(), labels=call.labels, stop_after=stop_after, session=_session(call)
    )
    say(*result.lines)


def _dry_run(call: _Call, stop_after: str | None) -> None:
    from job import api
    from job.config import as_toml
    from job.pipeline.plan import cut_in_words

    with api.planned(
        call.data, call.out, config=call.config(), labels=call.labels, stop_after=stop_after, session=_session(call)
    ) as (job, steps):
        say(*as_toml(job.config).split("\n"))
        say(*(f"{step.stage:<10} {'runs' if step.runs else 'skipped'}: {step.reason}" for step in steps))
        if any(step.runs and STAGES[step.stage].needs_devices for step in steps):
            say(cut_in_words(job))


def _of_storage(error: OSError) -> JobError:
    """Return an error of the system as one that is written for users."""
    from job.storage.files import storage_failed

    if isinstance(error.filename, str):
        return storage_failed(error, Path(error.filename))
    return StorageFailed(f"Reading or writing failed ({error.strerror}), the system does not say where. Try it again.")


def _session(call: _Call | None = None) -> "Session":
    from job import api
    from job.pipeline.provenance import program

    _check_temporary_folder()
    command = [*shlex.split(program()), *sys.argv[1:]]
    return api.Session(STOP, os.environ, command, call.config_file if call else None, call.assignments if call else ())


def _check_temporary_folder() -> None:
    """Refuse to work where nothing can be kept for a while. Raises: UsageError."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UsageError(
            "No file can be made in any folder for temporary files, neither in /tmp, /var/tmp, nor the current folder. Set "
            "TMPDIR to a folder that can be written to."
        ) from None


def _check_surroundings() -> None:
    """Refuse to start where nothing can work. Raises: UsageError."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise UsageError(
            "The current folder was deleted. Change to one that exists (cd), and type the command again."
        ) from None
