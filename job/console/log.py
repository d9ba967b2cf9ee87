"""Messages on standard error, results on standard output, and the last message of the program.

Messages are text for people, or with `--log-format json` an object on each line for programs. The last message goes to the
termination log of a Kubernetes pod, too, and with `--json` its facts are the last line of standard output.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from types import TracebackType
from typing import Literal, NoReturn, TextIO

from job.errors import JobError, Stopped
from job.text.untrusted import escaped

Level = Literal["info", "warning", "error"]

_TERMINATION_LOG = "/dev/termination-log"
_MAX_TERMINATION_BYTES = 4096  # Kubernetes keeps no more.
_RESULTS = {0: "ok", Stopped.exit_code: "stopped"}


class Log:
    """Messages on a stream, by default on standard error of this process.

    `run_id`, `worker` (0 is the chief) and `stage` are in each JSON object; None as long as they are not known.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self.as_json = self._gives_result = False
        self.run_id: str | None = None
        self.worker: int | None = None
        self.stage: str | None = None
        self._termination_log = ""

    def begin(self, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        """Choose the forms by the arguments of the program.

        They are looked for before the command line is parsed, because its mistakes are messages, too.
        """
        self.as_json = "--log-format=json" in arguments or ("--log-format", "json") in pairwise(arguments)
        self._gives_result = "--json" in arguments
        self._termination_log = environ.get("TERMINATION_LOG", _TERMINATION_LOG)
        self.run_id = os.urandom(8).hex()

    def say(self, text: str, level: Level = "info", fields: Mapping[str, object] | None = None) -> None:
        """Write a message of one line. `fields` are in its JSON object only."""
        self._write(self.formatted(escaped(text), level, fields))

    def formatted(self, text: str, level: Level, fields: Mapping[str, object] | None = None) -> str:
        """Return a message as `say` writes it, with a line break at its end. In JSON, it may have several lines."""
        if not self.as_json:
            return f"{text}\n"
        time = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
        where = {"run_id": self.run_id, "worker": self.worker, "stage": self.stage}
        record = {"time": time, "level": level, **where, "message": text.strip(), "fields": fields or {}}
        return json.dumps(record, default=str) + "\n"

    def formatted_error(self, error: JobError) -> str:
        """Return the message of an error that is written for users, with a line break at its end."""
        is_stop = isinstance(error, Stopped)
        text = str(error) if self.as_json else f"\n{'Stopped' if is_stop else 'Error'}: {error}"
        fields = {"error": type(error).__name__, "exit_code": error.exit_code}
        return self.formatted(text, "warning" if is_stop else "error", fields)

    def end(self, error: JobError, shown: str = "") -> NoReturn:
        """Write an error that is written for users, as text in the form `shown` if given, and exit with its exit code."""
        self._write(shown if shown and not self.as_json else self.formatted_error(error))
        self.last_words(error.exit_code, str(error))
        sys.exit(error.exit_code)

    def bug(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Write the unexpected error that ends the program. For use as `sys.excepthook`."""
        self.last_words(1, self.trace(kind, error, trace))

    def trace(self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> str:
        """Write an unexpected error with its traceback. Return it in one line."""
        import traceback

        lines = "".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n")
        text, what = "\n".join(map(escaped, lines)), escaped(f"{kind.__name__}: {error}")
        fields = {"error": kind.__name__, "traceback": text}
        self._write(self.formatted(what if self.as_json else text, "error", fields))
        return what

    def finish(self, *lines: str, **facts: object) -> None:
        """Write the results of a command that ended well. `facts` are those of `--json`."""
        self.show(*lines)
        self.last_words(0, "\n".join(map(escaped, lines)), **facts)

    def show(self, *lines: str) -> None:
        """Write lines of results."""
        for line in lines:
            print(escaped(line))

    def last_words(self, exit_code: int, text: str, **facts: object) -> None:
        """Write how the program ends to the termination log, and with `--json` as the last line of standard output."""
        with suppress(OSError):  # Whoever runs the program elsewhere has no such file, and the end is decided.
            descriptor = os.open(self._termination_log, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
            with open(descriptor, "wb") as file:
                file.write(f"exit code {exit_code}: {text}\n".encode("utf-8", "backslashreplace")[:_MAX_TERMINATION_BYTES])
        if self._gives_result:
            said = {"error": text} if exit_code else {}
            result = {"result": _RESULTS.get(exit_code, "failed"), "exit_code": exit_code, "run_id": self.run_id}
            print(json.dumps({**result, **said, **facts}), flush=True)

    def _write(self, text: str) -> None:
        stream = self.stream or sys.stderr
        stream.write(text)
        stream.flush()


# There is one standard error for the process, so there is one log for the process.
LOG = Log()
