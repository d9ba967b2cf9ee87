"""Everything that can end a run, and the exit code it ends with.

Schedulers decide by the exit code whether to start a job again, so the codes are a contract:

    JobError            1    a bug; every other exception ends with 1 too
    ├── UsageError      2    the command line, the configuration or the permissions are wrong
    ├── GateNotMet      3    the model is not good enough to ship, or its export disagrees with training
    ├── DataUnusable   65    nobody can train on this data as it is
    ├── Diverged       70    training left the finite numbers
    ├── StorageFailed  74    reading or writing failed: worth a retry
    ├── TryAgainLater  75    somebody else holds what is needed: worth a retry, later
    └── Stopped       143    a signal asked for it, and everything finished is saved: worth a retry
"""

import errno

from job.text.untrusted import escaped

# There are no more descriptors or no more memory. It says nothing about the file that was to be read.
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# What a library may meet that writes or reads where nobody thought of it.
OF_STORAGE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ELOOP),
    *OF_THE_MACHINE,
    *(errno.EACCES, errno.EPERM),  # In the middle of the work: a ticket has run out, or a share was mounted anew.
)


class JobError(Exception):
    """An error whose message is written for the user: where, what, and the way out.

    Each argument is one line. A line break inside one came with a name or with another program's words, so it is escaped
    like everything else there that a terminal would obey.
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
    """The exit code of a run that an error ends; 0 where there is none."""
    if isinstance(error, JobError):
        return error.exit_code
    if isinstance(error, OSError) and error.errno in OF_STORAGE:
        return StorageFailed.exit_code
    return 1 if error else 0


def of_code(code: int, text: str) -> JobError:
    """The error that another process of the same run ended with; `text` is what `str` made of it there."""
    kinds = {kind.exit_code: kind for kind in JobError.__subclasses__()}
    return kinds.get(code, JobError)(*text.split("\n"))
