"""The command line: each command calls a function of the package."""

import json
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import job
from job.cluster.environment import Cluster
from job.console.group import CommandGroup
from job.console.log import LOG
from job.console.options import PLACE, RunOptions, comma_separated, with_output_options, with_run_options
from job.console.places import check_current_folder, check_temporary_folder
from job.console.weights import weights
from job.errors import JobError, UsageError
from job.pipeline.table import STAGES
from job.runtime.stop import STOP, ignore_signals
from job.version import __version__

if TYPE_CHECKING:
    from job.pipeline.results import Ranking, Result
    from job.runtime.session import Session

# The package imports its functions when they are first used: `--help` must not wait for pydantic, pyarrow or TensorFlow.


@click.group(cls=CommandGroup, context_settings={"max_content_width": 120})
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
    check_current_folder()
    with suppress(JobError):  # A command that needs the workers says what is wrong with their variables.
        LOG.worker = Cluster.from_environ(os.environ).index


@main.command()
@with_run_options
@click.option(
    "--stop-after",
    type=click.Choice(tuple(STAGES)),
    help="Stop after this stage. If explore has run, write the report, too.",
)
@click.option("--dry-run", is_flag=True, help="Only print the resolved configuration, and which stages would run, and why.")
@with_output_options
def run(call: RunOptions, stop_after: str | None, dry_run: bool) -> None:
    """Train a model.

    Runs the stages intake, split, explore, extract, audit, head, fine_tune, evaluate, heatmaps, export, convert,
    report.

    The same command resumes an interrupted run. After a change, only the stages that depend on it run again.
    """
    if dry_run:
        _dry_run(call, stop_after)
    else:
        _run(call, stop_after)


@main.command()
@with_run_options
@with_output_options
def explore(call: RunOptions) -> None:
    """Check the photos without training. Same as run --stop-after explore; needs no TensorFlow."""
    _run(call, "explore")


@main.command()
@with_run_options
@with_output_options
def doctor(call: RunOptions) -> None:
    """Check what run needs, without running: data, output, disk, memory, weights, GPUs, other workers.

    Takes the options of run, and prints a line for each check. The exit code is 0, or 75 if waiting may help, or 2. A run
    does the same checks at its start.
    """
    from job.preflight.base import Finding, exit_code

    findings: list[Finding] = []
    for finding in job.doctor(call.data, call.out, config=call.config(), labels=call.labels, session=_session(call)):
        findings.append(finding)
        LOG.show(f"{finding.level:<8}{finding.check:<14}{finding.text}")
    code = exit_code(findings)
    wrong = "\n".join(finding.text for finding in findings if finding.exit_code)
    LOG.last_words(code, wrong, findings=[asdict(finding) for finding in findings])
    sys.exit(code)


@main.command()
@with_run_options
@click.option(
    "--backbones",
    required=True,
    multiple=True,
    metavar="LIST",
    help="Backbones to compare, separated by commas: NAME[:alpha=A][:weights=imagenet|random|PATH][:image_size=S]. "
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
@with_output_options
def rank(call: RunOptions, backbones: tuple[str, ...], image_sizes: tuple[str, ...], fine_tune: bool) -> None:
    """Compare backbones. Each needs one pass over the photos, and more with --fine-tune. The test set is not used.

    Prints a table of accuracy and cost, and the run command for the cheapest backbone that is not worse than the best one.
    """
    ranking = job.rank(
        call.data,
        call.out,
        backbones,
        image_sizes=image_sizes,
        config=call.config(),
        labels=call.labels,
        fine_tune=fine_tune,
        session=_session(call),
    )
    _finish(ranking, recommended=ranking.recommended.model_dump(mode="json"), candidates=ranking.rows)


@main.command()
@click.option(
    "--model",
    required=True,
    metavar="DIR",
    type=PLACE,
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
    type=PLACE,
    help="The photos: a folder, including its subfolders, or a table with a column path; local or in a bucket; or "
    "tfds:NAME[:VERSION].",
)
@click.option(
    "--out", required=True, metavar="FILE", type=PLACE, help="The .parquet or .csv file to write, local or in a bucket."
)
@click.option("--overwrite", is_flag=True, help="Replace --out even if predict did not write it.")
@click.option("--probabilities", is_flag=True, help="Add a column probability:NAME for each class.")
@click.option("--accepted-only", is_flag=True, help="Leave out photos whose answer is not accepted.")
@click.option(
    "--neighbours",
    default=0,
    metavar="N",
    type=click.IntRange(0, 100),
    help="Add a column with the N most similar training photos. --model must lie in the output of its run.",
)
@click.option(
    "--explain",
    metavar="PLACE",
    type=PLACE,
    help="Also show where the model looks: a folder that gets a picture of each photo with its heatmap, or FILE.html.",
)
@click.option(
    "--explain-photos",
    default=200,
    show_default=True,
    type=click.IntRange(1),
    help="Largest number of photos that --explain takes, the first ones.",
)
@click.option(
    "--tfds-dir",
    metavar="DIR",
    type=PLACE,
    help="Folder or bucket with prepared data sets of tensorflow-datasets, for --data tfds:NAME.",
)
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Photos in one forward pass.")
@with_output_options
def predict(model: str, data: str, out: str, **options: Any) -> None:
    """Label photos with an exported model. Writes one row per photo.

    The columns are path, label, probability, familiarity (0 to 1: how similar it is to the training photos), accepted
    (whether both are high enough to rely on the label), top_3 (the three most likely classes), and error if it could not be
    read.

    A model is code: it can read and write files with your rights. docs/security.md explains how to check that it is the
    model that your run exported.
    """
    from job.cluster.tensorflow import leave_out_keras

    if not options["explain"]:
        leave_out_keras()
    errors = job.predict(model, data, out, session=_session(), **options)["error"].to_pylist()
    failed = sum(map(bool, errors))
    said = f"{len(errors) - failed:,} photos labelled, {failed:,} could not be read: {out}"
    LOG.finish(said, out=out, num_labelled=len(errors) - failed, num_failed=failed)


@main.command()
@click.argument("runs", metavar="RUN_A RUN_B...", nargs=-1, required=True, type=PLACE)
@click.option("--out", metavar="FILE.html", type=PLACE, help="Write a page, too, with the photos that flipped.")
@with_output_options
def compare(runs: tuple[str, ...], out: str | None) -> None:
    """Compare finished runs on the test photos that they share. RUN is the --out of a run, local or in a bucket.

    Runs that differ only by seed are taken together, so give several seeds of each if you have them: runs/a-* runs/b-*.
    """
    compared = job.compare(*runs, out=out)
    LOG.finish(*compared.lines, out=out, **compared.numbers)


@main.command()
@click.argument("directory", metavar="DIR", type=PLACE)
@with_output_options
def report(directory: str) -> None:
    """Write DIR/report.html again. DIR is the --out of a run."""
    result = job.report(directory, session=_session())
    _finish(result, **result.facts())


@main.command()
@click.argument("directory", metavar="DIR", type=PLACE)
@click.argument("base", metavar="[BASE]", required=False, type=PLACE)
@click.option(
    "--to",
    "formats",
    required=True,
    metavar="FORMAT[,FORMAT]",
    callback=comma_separated,
    help="onnx, litert, or litert-int8 (8-bit numbers). Or serving: copy the model to BASE/VERSION for TensorFlow Serving.",
)
@with_output_options
def export(directory: str, base: str | None, formats: tuple[str, ...]) -> None:
    """Add formats to the model of a finished run, and compare them on its held-out photos. DIR is the --out of the run.

    Nothing is trained again. A format that disagrees with what was measured is not published, and the exit code is 3.

    --to serving changes nothing in DIR. BASE is a folder, or gs:// or s3:// prefix, with the name of the model. The version
    is the next number that is free there.
    """
    if (base is not None) != (formats == ("serving",)):
        raise UsageError(
            "Give a folder for TensorFlow Serving with --to serving, and only there: export DIR --to serving BASE"
        )
    if base is not None:
        place = job.lay_out(directory, base)
        LOG.finish(f"TensorFlow Serving loads this version: {place}", out=place)
        return
    result = job.export(directory, formats, session=_session())
    _finish(result, **result.facts())


@main.command()
@click.option(
    "--out", default="demo-run", show_default=True, metavar="DIR", type=PLACE, help="Folder for the pictures and the run."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the pictures and of the run.")
@with_output_options
def demo(out: str, seed: int) -> None:
    """Try the whole job on drawn pictures. Takes about a minute and needs no network."""
    _say_where()
    from job import api  # `job.demo` is the package of drawings.

    result = api.demo(out, seed=seed, session=_session())
    _finish(result, **result.facts())


@main.command(hidden=True)
def quickstart() -> None:
    """Print the first commands for a container. The image does so if it gets no command."""
    from job.console.quickstart import TEXT

    click.echo(TEXT)


main.add_command(weights)


def _run(call: RunOptions, stop_after: str | None) -> None:
    _say_where()
    result = job.run(
        call.data, call.out, config=call.config(), labels=call.labels, stop_after=stop_after, session=_session(call)
    )
    _finish(result, **result.facts())


def _say_where() -> None:
    """Write the first line of a run: the cluster and the GPUs. It comes before a second of imports."""
    LOG.say(str(Cluster.from_environ(os.environ)))


def _finish(result: "Result | Ranking", **facts: object) -> None:
    """Print the results of a run. Remove its local files if the output is in a bucket."""
    LOG.finish(*result.lines, out=result.workdir.uri, **facts)
    ignore_signals()  # The exit code is decided.
    result.workdir.discard()


def _dry_run(call: RunOptions, stop_after: str | None) -> None:
    from job.config import as_toml
    from job.pipeline.plan import cut_in_words
    from job.train.recipe import with_quality

    config = with_quality(call.config())
    steps = job.plan(call.data, call.out, config=config, labels=call.labels, stop_after=stop_after, session=_session(call))
    lines = as_toml(config).split("\n")
    lines += [f"{step.stage:<10} {'runs' if step.runs else 'skipped'}: {step.reason}" for step in steps]
    if any(step.runs and STAGES[step.stage].needs_devices for step in steps):
        lines.append(cut_in_words(config))
    LOG.finish(*lines, config=config.model_dump(mode="json"), stages=[asdict(step) for step in steps])


def _session(call: RunOptions | None = None) -> "Session":
    from job.pipeline.provenance import program
    from job.runtime.session import Session

    check_temporary_folder()
    command = [*shlex.split(program()), *sys.argv[1:]]
    if call is None:
        return Session(STOP, os.environ, command, run_id=LOG.run_id)
    assignments = [f"{name}={json.dumps(value)}" for name, value in call.flags.items() if value is not None]
    return Session(STOP, os.environ, command, call.config_file, (*call.assignments, *assignments), LOG.run_id)
