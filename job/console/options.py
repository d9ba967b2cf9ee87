"""The options that several commands share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from job.console.places import place
from job.errors import UsageError

if TYPE_CHECKING:
    from job.config import Config

Command = TypeVar("Command", bound=Callable[..., object])


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
        if "://" in value:
            raise UsageError(f"{param.opts[0] if param else ''} {value}: this must be a file on this machine. Copy it here.")
        return Path(super().convert(value, param, ctx))


PLACE = _Place()


@dataclass(frozen=True)
class RunOptions:
    """Values of the options that `run`, `explore` and `rank` share.

    `flags` are those of options that stand for one setting, by the setting; None where the option is not given.
    """

    data: str
    labels: str | None
    out: str
    config_file: Path | None
    assignments: tuple[str, ...]
    flags: Mapping[str, object]

    def config(self) -> "Config":
        """Return the configuration: the file, overridden by --set, then by `flags`. Raises: UsageError."""
        from job.config import PLACES, Config
        from job.storage.bucket.objects import refuse_credentials

        # The address of a tracking server is no place in a bucket. Its own check refuses credentials.
        places = (assignment for assignment in self.assignments if not assignment.lstrip().startswith("tracking."))
        assigned = (assignment.partition("=")[2].strip("\"' ") for assignment in places)
        flags = (flag for name in PLACES if isinstance(flag := self.flags.get(name), str))
        refuse_credentials(self.data, self.labels, self.out, *flags, *assigned)
        return Config.load(self.config_file, self.assignments, self.flags)


def comma_separated(_: click.Context, __: click.Parameter, given: str | None) -> tuple[str, ...] | None:
    """Return values that are separated by commas; None if the option is not given."""
    return None if given is None else tuple(value.strip() for value in given.split(","))


_COLUMNS = {
    "path": "the paths of the photos",
    "label": "the labels",
    "split": "the splits",
    "group": "what was taken together, for example patients: no group is in two splits",
}
_OF_INTAKE = (*(f"{kind}_column" for kind in _COLUMNS), "test_values", "val_values", "tfds_dir", "corrections")
# Options that stand for one setting, by their names in Python.
_SETTINGS = {
    "weights": "backbone.weights",
    "quality": "train.quality",
    "budget": "train.budget_s",
    "seeds": "train.seeds",
    "formats": "export.formats",
    **{name: f"intake.{name}" for name in _OF_INTAKE},
}
_RUN_OPTIONS = (
    click.option(
        "--data",
        required=True,
        metavar="SOURCE",
        type=PLACE,
        help="The labelled photos. A folder with one folder per class, or with train/, val/ and test/ of class "
        "folders; or a table with columns path,label[,split] (.csv, .tsv, .parquet, .jsonl, .xlsx). Local, or gs:// or "
        "s3://BUCKET/PREFIX. Or a data set of tensorflow-datasets: tfds:NAME[:VERSION].",
    ),
    click.option(
        "--labels",
        metavar="FILE",
        type=PLACE,
        help="Labels for the photos in --data: a table with columns path,label[,split].",
    ),
    click.option(
        "--corrections",
        metavar="FILE",
        type=PLACE,
        help="Correct labels: an edited copy of label_issues.csv, or a table with columns sha256,decision (keep, drop, or a "
        "class). The source is not touched. Same as --set intake.corrections=...",
    ),
    click.option(
        "--out",
        required=True,
        metavar="DIR",
        type=PLACE,
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
        metavar="imagenet|random|PATH",
        type=PLACE,
        help="Initial weights of the backbone: the published ones, which are downloaded once; random ones; a file; or a "
        "place that transfer-job weights fetch has filled. Same as --set backbone.weights=...",
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
        "--export",
        "formats",
        metavar="FORMAT[,FORMAT]",
        callback=comma_separated,
        help="Formats of the exported model beside savedmodel and keras: onnx, litert, litert-int8. Same as --set "
        "export.formats=...",
    ),
    click.option(
        "--tfds-dir",
        metavar="DIR",
        type=PLACE,
        help="Folder or bucket with prepared data sets of tensorflow-datasets. Same as --set intake.tfds_dir=...",
    ),
    *(
        click.option(f"--{kind}-column", metavar="NAME", help=f"Column of the table with {what}.")
        for kind, what in _COLUMNS.items()
    ),
    click.option(
        "--test-values",
        metavar="VALUE[,VALUE]",
        callback=comma_separated,
        help="Values of the split column that mean the test set, for example a fold. Other rows are training photos.",
    ),
    click.option(
        "--val-values",
        metavar="VALUE[,VALUE]",
        callback=comma_separated,
        help="Values of the split column that mean validation.",
    ),
)


def with_run_options(command: Command) -> Command:
    """Add the options of `RunOptions` to a command, which gets them as its first argument."""

    @wraps(command)
    def called(**given: Any) -> object:
        flags = {setting: given.pop(name) for name, setting in _SETTINGS.items()}
        own = {field.name: given.pop(field.name) for field in fields(RunOptions) if field.name != "flags"}
        return command(RunOptions(**own, flags=flags), **given)

    for option in reversed(_RUN_OPTIONS):
        called = option(called)
    return called  # type: ignore[return-value]


def with_output_options(command: Command) -> Command:
    """Add `--log-format` and `--json` to a command, which does not get them: `job.console.log` has read them already."""
    formats, as_result = (
        click.option(
            "--log-format",
            type=click.Choice(("text", "json")),
            default="text",
            show_default=True,
            expose_value=False,
            help="Form of the messages on standard error: text, or a JSON object on each line.",
        ),
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            help="End standard output with a line of JSON: result, exit_code, run_id, and what was made or the error.",
        ),
    )
    return formats(as_result(command))
