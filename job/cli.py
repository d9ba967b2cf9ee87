"""The command line: each command calls a function of `job.api`, and errors become exit codes here."""

import json
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
    from job.config import Config
    from job.runtime.session import Session

# `job.api` is imported inside the commands: `--help` must not wait for pydantic, pyarrow or TensorFlow.

Command = TypeVar("Command", bound=Callable[..., object])


class _Translating(click.Group):
    """A group of commands that turns a JobError into its message and exit code. Other exceptions keep their traceback."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run the program and exit with its exit code."""
        try:
            return super().main(*arguments, **settings)
        except JobError as error:
            end(error)
        except OSError as error:  # From a third-party library, in a place where the job does not expect one.
            if error.errno not in OF_STORAGE:
                raise
            end(_of_storage(error))

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            raise click.UsageError(escaped(error.format_message() + _as_setting(error.option_name)), error.ctx) from None
        except click.UsageError as error:  # It may quote file names that the shell put in place of a pattern.
            raise click.UsageError(escaped(error.format_message()), error.ctx) from None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first argument names. Raises: click.UsageError, with what may be meant."""
        meant = _MEANT.get(args[0].lower())
        if meant and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {meant!r}?", ctx)
        return super().resolve_command(ctx, args)


# Commands of other programs, and what they are here.
_MEANT = {
    **dict.fromkeys(("train", "fit", "finetune", "fine-tune", "start"), "run"),
    **dict.fromkeys(("eda", "check", "analyze", "validate"), "explore"),
    **dict.fromkeys(("infer", "inference", "classify"), "predict"),
}


def _as_setting(option: str) -> str:
    """Return how to set what somebody took for an option; empty if no setting has this name."""
    from job.config import fields as settings

    name = option.lstrip("-").replace("-", "_")
    found = [dotted for dotted, _ in settings() if dotted.rpartition(".")[2] == name]
    return f" It is a setting: --set {' or --set '.join(f'{dotted}=VALUE' for dotted in found)}" if found else ""


class _Place(click.ParamType[str]):
    """A path, with `~` expanded, or a URI."""

    name = "path"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ARG002
        """Return the path or URI. Raises: UsageError, OSError."""
        return place(param.opts[0] if param else "", value)


class _File(_Place):
    """A path on this machine, with `~` expanded."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # type: ignore[override]
        """Return the path. Raises: UsageError, OSError."""
        return Path(super().convert(value, param, ctx))


_PLACE = _Place()


@click.group(cls=_Translating, context_settings={"max_content_width": 120})
@click.version_option(__version__, prog_name="transfer-job")
def main() -> None:
    """Train an image classifier from labelled photos: check the data, train, measure, export, write a report.

    \b
    Start with:
      transfer-job demo                                    try everything on pictures that it draws itself
      transfer-job explore --data photos/ --out runs/1     only check the photos: folders named after the classes
      transfer-job run --data photos/ --out runs/1         train; the same command resumes after an interruption

    \b
    Exit codes:
      0   done
      1   a bug
      2   wrong usage, configuration or permissions
      3   the model is not good enough to ship
      65  the data cannot be used
      70  training diverged
      74  storage failed: start the same command again
      75  in use by another run, or a worker is missing: try again later
      143 stopped by a signal: the same command resumes
    """
    _check_surroundings()


@dataclass(frozen=True)
class _Call:
    """Values of the options that `run`, `explore` and `rank` share."""

    data: str
    labels: str | None
    out: str
    config_file: Path | None
    assignments: tuple[str, ...]
    weights: str | None
    quality: str | None
    budget: str | None
    seeds: int | None
    tfds_dir: str | None
    path_column: str | None
    label_column: str | None
    split_column: str | None
    group_column: str | None
    test_values: tuple[str, ...] | None
    val_values: tuple[str, ...] | None

    def config(self) -> "Config":
        """Return the configuration: the file, overridden by --set, then by `flags`. Raises: UsageError."""
        from job.config import Config
        from job.storage.bucket.objects import refuse_credentials

        assigned = (assignment.partition("=")[2].strip("\"' ") for assignment in self.assignments)
        refuse_credentials(self.data, self.labels, self.out, self.weights, self.tfds_dir, *assigned)
        return Config.load(self.config_file, self.assignments, self.flags)

    @property
    def flags(self) -> dict[str, object]:
        """The values of options that stand for one setting, by the setting; None where the option is not given."""
        columns = (f"{kind}_column" for kind in _COLUMNS)
        of_intake = {f"intake.{name}": getattr(self, name) for name in (*columns, "test_values", "val_values", "tfds_dir")}
        of_training = {"train.quality": self.quality, "train.budget_s": self.budget, "train.seeds": self.seeds}
        return {"backbone.weights": self.weights, **of_training, **of_intake}


def _values(_: click.Context, __: click.Parameter, given: str | None) -> tuple[str, ...] | None:
    """Return values that are separated by commas; None if the option is not given."""
    return None if given is None else tuple(value.strip() for value in given.split(","))


_COLUMNS = {
    "path": "the paths of the photos",
    "label": "the labels",
    "split": "the splits",
    "group": "what was taken together, for example patients: no group is in two splits",
}
_RUN_OPTIONS = (
    click.option(
        "--data",
        required=True,
        metavar="SOURCE",
        type=_PLACE,
        help="The labelled photos. A folder with one folder per class, or with train/, val/ and test/ of class "
        "folders; or a table with columns path,label[,split] (.csv, .tsv, .parquet, .jsonl, .xlsx). Local, or gs:// or "
        "s3://BUCKET/PREFIX. Or a data set of tensorflow-datasets: tfds:NAME[:VERSION].",
    ),
    click.option(
        "--labels",
        metavar="FILE",
        type=_PLACE,
        help="Labels for the photos in --data: a table with columns path,label[,split].",
    ),
    click.option(
        "--out",
        required=True,
        metavar="DIR",
        type=_PLACE,
        help="Folder, or gs:// or s3:// prefix, for all results. It must be new, empty, or from an earlier run, which "
        "is then resumed.",
    ),
    click.option("--config", "config_file", type=_File(), help="TOML file of settings; docs/configuration.md lists them."),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Change one setting, for example fine_tune.epochs=20. Overrides --config. Repeatable.",
    ),
    click.option(
        "--weights",
        metavar="imagenet|random|FILE",
        type=_PLACE,
        help="Initial weights of the backbone: ImageNet weights, which Keras downloads once; random ones; or a file. "
        "Same as --set backbone.weights=...",
    ),
    click.option(
        "--quality",
        metavar="fast|balanced|best",
        help="Accuracy against time: what the job chooses where settings are left at auto. Same as --set train.quality=...",
    ),
    click.option(
        "--budget",
        metavar="TIME",
        help="Time that the run may take, such as 90s, 20m or 2h, earlier starts of it included. Chooses the best --quality "
        "that fits, and trains the head alone if none does. Same as --set train.budget_s=...",
    ),
    click.option(
        "--seeds",
        metavar="NUMBER",
        type=click.IntRange(1),
        help="Fine-tune so many times with different seeds, report how much the results differ, and use the mean of the "
        "weights. Same as --set train.seeds=...",
    ),
    click.option(
        "--tfds-dir",
        metavar="DIR",
        type=_PLACE,
        help="Folder or bucket with prepared data sets of tensorflow-datasets. Same as --set intake.tfds_dir=...",
    ),
    *(
        click.option(f"--{kind}-column", metavar="NAME", help=f"Column of the table with {what}.")
        for kind, what in _COLUMNS.items()
    ),
    click.option(
        "--test-values",
        metavar="VALUE[,VALUE]",
        callback=_values,
        help="Values of the split column that mean the test set, for example a fold. Other rows are training photos.",
    ),
    click.option(
        "--val-values", metavar="VALUE[,VALUE]", callback=_values, help="Values of the split column that mean validation."
    ),
)


def _with_run_options(command: Command) -> Command:
    """Add the options of `_Call` to a command, which gets them as its first argument."""

    @wraps(command)
    def called(**given: Any) -> object:
        call = _Call(**{field.name: given.pop(field.name) for field in fields(_Call)})
        return command(call, **given)

    for option in reversed(_RUN_OPTIONS):
        called = option(called)
    return called  # type: ignore[return-value]


@main.command()
@_with_run_options
@click.option(
    "--stop-after",
    type=click.Choice(tuple(STAGES)),
    help="Stop after this stage. If explore has run, write the report, too.",
)
@click.option("--dry-run", is_flag=True, help="Only print the resolved configuration, and which stages would run, and why.")
def run(call: _Call, stop_after: str | None, dry_run: bool) -> None:
    """Train a model. Runs the stages intake, split, explore, extract, audit, head, fine_tune, evaluate, export, report.

    The same command resumes an interrupted run. After a change, only the stages that depend on it run again.
    """
    if dry_run:
        _dry_run(call, stop_after)
    else:
        _run(call, stop_after)


@main.command()
@_with_run_options
def explore(call: _Call) -> None:
    """Check the photos without training. Same as run --stop-after explore; needs no TensorFlow."""
    _run(call, "explore")


@main.command()
@_with_run_options
@click.option(
    "--backbones",
    required=True,
    multiple=True,
    metavar="LIST",
    help="Backbones to compare, separated by commas: NAME[:alpha=A][:weights=imagenet|random|FILE][:image_size=S]. "
    "docs/backbones.md lists the names. Repeatable.",
)
@click.option(
    "--image-size",
    "image_sizes",
    multiple=True,
    metavar="PIXELS",
    help="Image size, or several separated by commas (96,160,224), for the backbones without :image_size. Repeatable.",
)
@click.option(
    "--fine-tune",
    is_flag=True,
    help="Fine-tune each backbone, for 2 epochs unless fine_tune.epochs is set, and compare on the validation photos.",
)
def rank(call: _Call, backbones: tuple[str, ...], image_sizes: tuple[str, ...], fine_tune: bool) -> None:
    """Compare backbones. Each needs one pass over the photos, and more with --fine-tune. The test set is not used.

    Prints a table of accuracy and cost, and the run command for the cheapest backbone that is not worse than the best one.
    """
    from job import api

    ranking = api.rank(
        call.data,
        call.out,
        backbones,
        image_sizes=image_sizes,
        config=call.config(),
        labels=call.labels,
        fine_tune=fine_tune,
        session=_session(call),
    )
    say(*ranking.lines)


@main.command()
@click.option(
    "--model",
    required=True,
    metavar="DIR",
    type=_PLACE,
    help="The model/ folder of a run, local or in a bucket. A model is code: use only models that you trust.",
)
@click.option(
    "--model-sha256",
    metavar="HEX",
    help="The digest that the run printed (SHA-256 of model.json). Any other model is refused before it is loaded.",
)
@click.option(
    "--data",
    required=True,
    metavar="SOURCE",
    type=_PLACE,
    help="The photos: a folder, including its subfolders, or a table with a column path; local or in a bucket; or "
    "tfds:NAME[:VERSION].",
)
@click.option(
    "--out", required=True, metavar="FILE", type=_PLACE, help="The .parquet or .csv file to write, local or in a bucket."
)
@click.option("--overwrite", is_flag=True, help="Replace --out even if predict did not write it.")
@click.option("--probabilities", is_flag=True, help="Add a column probability:NAME for each class.")
@click.option(
    "--tfds-dir",
    metavar="DIR",
    type=_PLACE,
    help="Folder or bucket with prepared data sets of tensorflow-datasets, for --data tfds:NAME.",
)
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Photos in one forward pass.")
def predict(model: str, data: str, out: str, **options: Any) -> None:
    """Label photos with an exported model. Writes one row per photo.

    The columns are path, label, probability, top_3 (the three most likely classes), and error if it could not be read.

    A model is code: it can read and write files with your rights. docs/security.md explains how to check that it is the
    model that your run exported.
    """
    from job import api
    from job.cluster.tensorflow import leave_out_keras

    leave_out_keras()
    errors = api.predict(model, data, out, session=_session(), **options)["error"].to_pylist()
    failed = sum(map(bool, errors))
    say(f"{len(errors) - failed:,} photos labelled, {failed:,} could not be read: {out}")


@main.command()
@click.argument("directory", metavar="DIR", type=_PLACE)
def report(directory: str) -> None:
    """Write DIR/report.html again. DIR is the --out of a run."""
    from job import api

    say(*api.report(directory, session=_session()).lines)


@main.command()
@click.option(
    "--out", default="demo-run", show_default=True, metavar="DIR", type=_PLACE, help="Folder for the pictures and the run."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the pictures and of the run.")
def demo(out: str, seed: int) -> None:
    """Try the whole job on drawn pictures. Takes about a minute and needs no network."""
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
    from job.train.recipe import with_quality

    config = with_quality(call.config())
    steps = api.plan(call.data, call.out, config=config, labels=call.labels, stop_after=stop_after, session=_session(call))
    say(*as_toml(config).split("\n"))
    say(*(f"{step.stage:<10} {'runs' if step.runs else 'skipped'}: {step.reason}" for step in steps))
    if any(step.runs and STAGES[step.stage].needs_devices for step in steps):
        say(cut_in_words(config))


def _of_storage(error: OSError) -> JobError:
    """Return the JobError for an error of the operating system."""
    from job.storage.files import storage_failed

    if isinstance(error.filename, str):
        return storage_failed(error, Path(error.filename))
    return StorageFailed(
        f"Reading or writing a file failed ({error.strerror}); the system does not say which. Run the same command again."
    )


def _session(call: _Call | None = None) -> "Session":
    from job.pipeline.provenance import program
    from job.runtime.session import Session

    _check_temporary_folder()
    command = [*shlex.split(program()), *sys.argv[1:]]
    if call is None:
        return Session(STOP, os.environ, command)
    assignments = [f"{name}={json.dumps(value)}" for name, value in call.flags.items() if value is not None]
    return Session(STOP, os.environ, command, call.config_file, (*call.assignments, *assignments))


def _check_temporary_folder() -> None:
    """Check that there is a folder for temporary files. Raises: UsageError."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UsageError(
            "There is no folder for temporary files: /tmp, /var/tmp and the current folder are not writable or are full. "
            "Set TMPDIR to a folder that you can write to."
        ) from None


def _check_surroundings() -> None:
    """Check that the current folder exists. Raises: UsageError."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise UsageError(
            "The current folder was deleted. Change to an existing folder (cd) and run the same command again."
        ) from None
