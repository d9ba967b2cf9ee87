"""What has to be settled before anything else is imported: where modules come from.

Only modules that Python has loaded by itself may be imported up here.
"""

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120  # pathlib imports much.
# Measured with the smallest run on two cores of a CPU. Address space: 4.4 GB were used, and 3 GB too few. Data: 4 GB were
# enough, and with 2 GB the run never ended. Open files: 26 were enough and 20 too few; each more core takes four.
_MIN_ADDRESS_SPACE, _MIN_DATA = 6 * 2**30, 4 * 10**9
_MIN_OPEN_FILES = 128
_STANDARD_LIBRARY = os.path.dirname(os.__file__)  # noqa: PTH120


def keep_foreign_modules_out() -> None:
    """Import nothing from the current folder, in this process and in those that it starts.

    Python looks there first for `python -m` and `python -c`, with which multiprocessing starts its helpers, and for an empty
    entry of PYTHONPATH. A user's `pickle.py` would run in the place of the standard library's. What is imported before the
    first line of this program runs cannot be prevented here: `transfer-job` and `python -P -m job` do that.
    """
    if sys.flags.ignore_environment and not sys.flags.safe_path:  # Then the helpers would not see PYTHONSAFEPATH.
        os.execv(sys.executable, [sys.executable, "-P", *sys.orig_argv[1:]])  # noqa: S606
    named = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    here = _current_folder()
    # What Python adds for the current folder stands before the standard library.
    end = sys.path.index(_STANDARD_LIBRARY) if _STANDARD_LIBRARY in sys.path else len(sys.path)
    found_here = [entry for entry in sys.path[:end] if entry in ("", here)]
    if found_here and here == _ROOT:  # A checkout that is not installed: this package is nowhere else.
        named.insert(0, here)
    if here not in [os.path.abspath(entry) for entry in named]:  # noqa: PTH100  # Else somebody wants it so.
        sys.path[:end] = [entry for entry in sys.path[:end] if entry not in found_here]
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(named)
    if not named:
        del os.environ["PYTHONPATH"]


def refuse_small_limits() -> None:
    """End with 2 below a limit (`ulimit -v`, `-d`, `-n`) in which no run can finish.

    Libraries end in many ways where it is met: an ImportError, an error of TensorFlow's that says nothing, `abort()`, never.
    """
    import resource

    memory = ", and limit its memory with --mem (Slurm) or --memory (Docker), if it must be limited"
    for kind, least, what, unit, option, way_out in (
        (resource.RLIMIT_AS, _MIN_ADDRESS_SPACE, "the address space", 2**30, "-v unlimited", memory),
        (resource.RLIMIT_DATA, _MIN_DATA, "the data", 2**30, "-d unlimited", memory),
        (resource.RLIMIT_NOFILE, _MIN_OPEN_FILES, "the number of open files", 1, "-n 1024", ""),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < least:
            in_units = f"{limit / unit:.1f} GiB" if unit > 1 else str(limit)
            needed = f"{least / unit:.1f} GiB, most of it never used" if unit > 1 else str(least)
            said = (
                f"\nError: {what} of a process is limited to {in_units} here (`ulimit {option[:2]}`), and a run needs at "
                f"least {needed}. Start it below `ulimit {option}`{way_out}.\n"
            )
            os.write(2, said.encode())
            sys.exit(2)


def _current_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:  # It was removed.
        return None
