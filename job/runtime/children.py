"""Child processes: those of multiprocessing in any script or notebook, and those that answer one request each."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TypeVar

from job.errors import JobError, TryAgainLater, code_of, of_code
from job.runtime.stop import StopRequest, ignore_signals

_TIMEOUT_S = 1800
_LOOKS_EVERY_S = 0.2
_LAST_CHARACTERS = 4000
Request = TypeVar("Request")


@contextmanager
def without_main() -> Iterator[None]:
    """Give a block in which child processes are started without the main module of this process.

    multiprocessing imports that module again in each child. A script without `if __name__ == "__main__"` would start the
    job again there.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def start(module: str) -> subprocess.Popen[str]:
    """Start a module of this package that calls `answer`. It loads its libraries while this process goes on."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    pipe = subprocess.PIPE
    command = [sys.executable, "-P", "-m", module]
    return subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


def ask(child: subprocess.Popen[str], request: Mapping[str, object], what: str, stop: StopRequest) -> object:
    """Send the request to a process that `start` has started, and return its answer. `what` it does is for messages.

    Raises:
        JobError: the one with which the process has ended.
        TryAgainLater: if the system has killed it, because memory is short.
        Stopped: if the job was asked to stop. End the process then.
    """
    written = written_by(child, json.dumps(request), _TIMEOUT_S, stop.check)
    if written is None:
        raise JobError(f"{what} took over {_TIMEOUT_S} s. Lower export.parity_photos.")
    answer, said = written
    if child.returncode != 0:
        stop.check()
        if child.returncode == -signal.SIGKILL:
            raise TryAgainLater(
                f"{what} was killed by the system: two processes with TensorFlow need more memory than there is. "
                "Give the job more memory and run the same command again."
            )
        raise JobError(f"{what} failed:", *said[-_LAST_CHARACTERS:].splitlines())
    code, message, result = json.loads(answer)
    if code:
        raise of_code(code, message)
    return result


def written_by(
    child: subprocess.Popen[str], request: str | None, within_s: float, check_stop: Callable[[], None]
) -> tuple[str, str] | None:
    """Return standard output and standard error of a process once it has ended; None if that takes too long."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            return child.communicate(request, timeout=_LOOKS_EVERY_S)
        except subprocess.TimeoutExpired:
            request = None  # It is already being sent.
            check_stop()
    return None


def answer(
    request: Callable[..., Request], respond: Callable[[Request], object], prepare: Callable[[], object] | None = None
) -> None:
    """Be a process that answers one request: what `respond` returns for it, or its JobError, as JSON on standard output.

    `request` is a dataclass. `prepare` is called before the request comes. What libraries print goes to standard error.
    """
    ignore_signals()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if prepare:
        prepare()
    sent = sys.stdin.read()
    if not sent:  # The job ended before it sent one.
        return
    try:
        said: tuple[int, str, object] = (0, "", respond(request(**json.loads(sent))))
    except JobError as error:
        said = (code_of(error), str(error), None)
    with answers:
        print(json.dumps(said), file=answers)
