"""What the command line prints: results, errors and the traces of bugs, without anything that a terminal would obey."""

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
    """Print an error that is written for users, and leave with its exit code."""
    with suppress(OSError):  # Whoever listens may be gone; the exit code stands.
        click.echo(f"\n{'Stopped' if isinstance(error, Stopped) else 'Error'}: {error}", err=True)
    sys.exit(error.exit_code)


def show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that nobody foresaw. A `sys.excepthook`."""
    text = "".join(traceback.format_exception(kind, error, trace))
    click.echo("\n".join(map(escaped, text.rstrip("\n").split("\n"))), err=True)
