"""Settings and checks of the process before anything else is imported: which modules, from where, and resource limits.

At the top of this file, import only modules that Python has already loaded by itself.
"""

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120  # pathlib is slow to import.
# Measured with the smallest run on two CPU cores. Address space: the run used 4.4 GB, and 3 GB were too few. Data: 4 GB
# were enough; with 2 GB the run hung. Open files: 26 were enough, 20 too few; each further core needs four more.
_MIN_ADDRESS_SPACE, _MIN_DATA = 6 * 2**30, 4 * 10**9
_MIN_OPEN_FILES = 128
_STANDARD_LIBRARY = os.path.dirname(os.__file__)  # noqa: PTH120
# Packages, and what they import by themselves if it is installed. The job uses nothing that needs it, and importing it takes
# 1.6 CPU seconds (docs/decisions/0034-the-last-seconds.md). The compiled code of pyarrow imports in the name of its caller.
_DO_WITHOUT = {
    "keras": {"matplotlib", "pandas", "sklearn"},
    "pyarrow": {"pandas"},
    "job": {"pandas"},
    "sklearn": {"pandas"},
    "tensorboardX": {"boto3", "google.cloud.storage"},
}


def keep_foreign_modules_out() -> None:
    """Stop Python from importing modules from the current folder, in this process and in those that it starts.

    Python looks there first for `python -m`, for `python -c` (multiprocessing starts its child processes with it), and for
    an empty entry of PYTHONPATH. A user's `pickle.py` would then run instead of the standard library's. This function
    cannot prevent imports before the first line of this program; `transfer-job` and `python -P -m job` can.
    """
    if sys.flags.ignore_environment and not sys.flags.safe_path:  # With -E, child processes ignore PYTHONSAFEPATH.
        os.execv(sys.executable, [sys.executable, "-P", *sys.orig_argv[1:]])  # noqa: S606
    named = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    here = _current_folder()
    # Python adds its entry for the current folder before the standard library.
    end = sys.path.index(_STANDARD_LIBRARY) if _STANDARD_LIBRARY in sys.path else len(sys.path)
    found_here = [entry for entry in sys.path[:end] if entry in ("", here)]
    if found_here and here == _ROOT:  # The package runs from a checkout and is not installed.
        named.insert(0, here)
    if here not in [os.path.abspath(entry) for entry in named]:  # noqa: PTH100  # Otherwise the user asked for it.
        sys.path[:end] = [entry for entry in sys.path[:end] if entry not in found_here]
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(named)
    if not named:
        del os.environ["PYTHONPATH"]


def leave_out_optional_imports() -> None:
    """Make optional imports of libraries fail in this process, as if they were not installed; see `_DO_WITHOUT`."""
    sys.meta_path.insert(0, _OptionalImports)


class _OptionalImports:
    """A finder of modules that refuses those of `_DO_WITHOUT`, and leaves all others to the finders behind it."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        frame = sys._getframe(1)
        while frame.f_back and str(frame.f_globals.get("__name__")).startswith("importlib"):
            frame = frame.f_back
        importer = str(frame.f_globals.get("__name__"))  # Code that was given to exec() may have none.
        if name in _DO_WITHOUT.get(importer.partition(".")[0], ()):
            raise ModuleNotFoundError(f"{importer} works without {name} here", name=name)


def refuse_small_limits() -> None:
    """Exit with 2 if a limit of the shell (`ulimit -v`, `-d` or `-n`) is too small for any run.

    If a run hits such a limit later, libraries fail in many ways: with an ImportError, with a TensorFlow error that gives
    no reason, with `abort()`, or by hanging.
    """
    import resource

    from job.console.log import LOG
    from job.errors import UsageError

    memory = " To limit its memory, use --mem (Slurm) or --memory (Docker)."
    for kind, least, what, unit, option, way_out in (
        (resource.RLIMIT_AS, _MIN_ADDRESS_SPACE, "the address space", 2**30, "-v unlimited", memory),
        (resource.RLIMIT_DATA, _MIN_DATA, "the data segment", 2**30, "-d unlimited", memory),
        (resource.RLIMIT_NOFILE, _MIN_OPEN_FILES, "the number of open files", 1, "-n 1024", ""),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < least:
            in_units = f"{limit / unit:.1f} GiB" if unit > 1 else str(limit)
            needed = f"{least / unit:.1f} GiB (most of it only reserved)" if unit > 1 else str(least)
            error = UsageError(
                f"{what} of a process is limited to {in_units} here (`ulimit {option[:2]}`), and a run needs at least "
                f"{needed}. Type `ulimit {option}` before you start the job.{way_out}"
            )
            LOG.end(error)


def _current_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:  # The current folder was removed.
        return None
