"""Output of the command line: results, errors and tracebacks, with control characters escaped."""

import sys
import traceback
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

import click

from job.errors import JobError, Stopped
from job.text.untrusted import escaped


def say(*lines: str) -> None:
    """Print lines on standard output."""
    for line in lines:
        click.echo(escaped(line))


def end(error: JobError) -> NoReturn:
    """Print an error that is written for users, and exit with its exit code."""
    with suppress(OSError):  # Nobody may be reading standard error any more. The exit code still counts.
        click.echo(f"\n{'Stopped' if isinstance(error, Stopped) else 'Error'}: {error}", err=True)
    sys.exit(error.exit_code)


def show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an unexpected error. For use as `sys.excepthook`."""
    text = "".join(traceback.format_exception(kind, error, trace))
    click.echo("\n".join(map(escaped, text.rstrip("\n").split("\n"))), err=True)
