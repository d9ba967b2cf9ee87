"""Facts about the call of a command that are not options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from job.runtime.stop import StopRequest


@dataclass(frozen=True)
class Session:
    """Facts that the command line has and that are not options. The defaults are for calls from Python.

    `environ` contains the variables by which a scheduler tells a process that it is one of several workers; without them a
    run has one worker. `command` is written into run.json, so that people can run it again. `config_file` is the file of
    settings, which may be inside the output. `assignments` are the settings given in addition to that file; `rank` writes
    them into the command that it recommends. `run_id` is the id of this start in its messages and events; None for a random
    one.
    """

    stop: StopRequest = field(default_factory=StopRequest)
    environ: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()
    config_file: Path | None = None
    assignments: Sequence[str] = ()
    run_id: str | None = None
