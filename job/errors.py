"""The errors that end a run, each with its exit code.

Schedulers decide by the exit code whether to start a job again, so the codes must not change:

    JobError            1    a bug; every other exception ends with 1, too
    ├── UsageError      2    the command line, the configuration or the permissions are wrong
    ├── GateNotMet      3    the model is not good enough to ship, or the exported model gives other answers
    ├── DataUnusable   65    the data cannot be used as it is
    ├── Diverged       70    the loss or a weight became infinite or NaN
    ├── StorageFailed  74    reading or writing failed: retry
    ├── TryAgainLater  75    another run uses the output, or a worker is lost or missing: retry later
    └── Stopped       143    a signal stopped the run, and everything finished is saved: retry
"""

import errno

from job.text.untrusted import escaped

# The machine has no free file descriptors or no memory. The file that was to be read is not at fault.
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# An OSError with one of these numbers is an error of storage, also if a third-party library raises it.
OF_STORAGE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ELOOP),
    *OF_THE_MACHINE,
    *(errno.EACCES, errno.EPERM),  # During the work they mean an expired Kerberos ticket or a share mounted again.
)


class JobError(Exception):
    """An error whose message is written for the user: what is wrong and where, why, and what to do.

    Each argument is one line. A line break inside an argument can only come from a file name or from another program, so it
    is escaped, like all control characters.
    """

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(escaped, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class UsageError(JobError):
    exit_code = 2


class GateNotMet(JobError):
    exit_code = 3


class DataUnusable(JobError):
    exit_code = 65


class Diverged(JobError):
    exit_code = 70


class StorageFailed(JobError):
    exit_code = 74


class TryAgainLater(JobError):
    exit_code = 75


class Stopped(JobError):
    exit_code = 143


def code_of(error: BaseException | None) -> int:
    """Return the exit code of a run that ends with this error; 0 without an error."""
    if isinstance(error, JobError):
        return error.exit_code
    if isinstance(error, OSError) and error.errno in OF_STORAGE:
        return StorageFailed.exit_code
    return 1 if error else 0


def of_code(code: int, text: str) -> JobError:
    """Return the error with which another process of this run ended, from its exit code and its `str`."""
    kinds = {kind.exit_code: kind for kind in JobError.__subclasses__()}
    return kinds.get(code, JobError)(*text.split("\n"))
