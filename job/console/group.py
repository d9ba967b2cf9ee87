"""The group of all commands. Errors become exit codes here, and mistakes in a command line get a hint."""

import io
import os
import sys
from typing import Any

import click

from job.cluster.variables import numbered
from job.console.log import LOG
from job.errors import OF_STORAGE, JobError, UsageError
from job.text.untrusted import escaped


class CommandGroup(click.Group):
    """A group of commands that turns a JobError into its message and exit code. Other exceptions keep their traceback."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run the program and exit with its exit code."""
        try:
            sys.argv[1:] = [numbered(word, os.environ) for word in sys.argv[1:]]
            sys.exit(super().main(*arguments, **{**settings, "standalone_mode": False}) or 0)
        except JobError as error:
            LOG.end(error)
        except click.ClickException as error:
            shown = io.StringIO()
            error.show(shown)
            LOG.end(UsageError(*error.format_message().splitlines()), shown.getvalue())
        except OSError as error:  # From a third-party library, in a place where the job does not expect one.
            if error.errno not in OF_STORAGE:
                raise
            from job.storage.files import storage_failed

            LOG.end(storage_failed(error))

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
    **dict.fromkeys(("diff", "versus"), "compare"),
    **dict.fromkeys(("preflight", "diagnose"), "doctor"),
}


def _as_setting(option: str) -> str:
    """Return how to set what somebody took for an option; empty if no setting has this name."""
    from job.config import fields as settings

    name = option.lstrip("-").replace("-", "_")
    found = [dotted for dotted, _ in settings() if dotted.rpartition(".")[2] == name]
    return f" It is a setting: --set {' or --set '.join(f'{dotted}=VALUE' for dotted in found)}" if found else ""
