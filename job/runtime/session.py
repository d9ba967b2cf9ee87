"""What a command knows beside its options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from job.runtime.stop import StopRequest


@dataclass(frozen=True)
class Session:
    """What the command line knows beside its options. The defaults are for calls from Python.

    `environ` has the variables by which a scheduler tells a process that it is one of several workers; without them a run
    has one worker. `command` is written into run.json, so that people can run it again. `config_file` is the file of
    settings, which may lie in the output. `assignments` are settings given beside that file, for the command that `rank`
    recommends.
    """

    stop: StopRequest = field(default_factory=StopRequest)
    environ: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()
    config_file: Path | None = None
    assignments: Sequence[str] = ()
